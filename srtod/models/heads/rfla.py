"""The region proposal network of RFLA (Xu et al., "RFLA: Gaussian Receptive Field based Label Assignment", 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.detection import _utils as det_utils
from torchvision.models.detection.rpn import RPNHead

from ..assigners import HierarchicalAssigner
from ..boxes import scale_boxes
from .anchor_generator import ASPECT_RATIOS, PyramidAnchors
from .two_stage import ProposalNetwork

__all__ = ["rfla_region_proposal_network"]


class _ScaledTargets(det_utils.BoxCoder):
    """Encodes against scaled anchors, but decodes with the full ones."""

    def __init__(self, scale: float) -> None:
        super().__init__(weights=(1.0, 1.0, 1.0, 1.0))
        self.scale = scale

    def encode(self, reference_boxes: list[Tensor], proposals: list[Tensor]) -> list[Tensor]:
        return super().encode(reference_boxes, [scale_boxes(anchors, self.scale) for anchors in proposals])


def rfla_region_proposal_network(
    channels: int,
    strides: Sequence[int],
    *,
    receptive_fields: Sequence[float],
    topk: tuple[int, int] = (3, 1),
    ratio: float = 0.9,
    fraction: float = 0.5,
    paper: bool = False,
    allowed_border: float | None = None,
    **options: Any,
) -> ProposalNetwork:
    """RFLA's region proposal network: anchors from receptive fields, assigned by `HierarchicalAssigner`.

    `paper=True` trains as the released code does. There the assigner's second step shrinks the anchors in place, so
    that the deltas are trained against anchors of `ratio` times the size, while proposals are decoded with the full
    anchors: every predicted side is 1 / `ratio` times too long. Its assignment differs, too; see
    `HierarchicalAssigner`. And it trains only anchors that lie inside their image.

    Args:
        channels: channels of the pyramid.
        strides: stride of each level, in pixels.
        receptive_fields: theoretical receptive field of each level, in pixels; `srtod.models.boxes.receptive_fields`
            computes them (ResNet-50's P2-P6: 35, 91, 267, 427, 555).
        topk: anchors per object in the assigner's two steps.
        ratio: scale of the anchors in the assigner's second step.
        fraction: side of a square anchor, in receptive fields.
        paper: whether to train as the released code.
        allowed_border: see `ProposalNetwork`; with `paper` None stands for 0, as in the released code.
        options: further options of `ProposalNetwork`.

    Raises:
        ValueError: if there is not one positive receptive field per stride, or an option is out of its range.
    """
    if len(receptive_fields) != len(strides):
        raise ValueError(
            f"there must be one receptive field per level, got {len(receptive_fields)} receptive fields for "
            f"{len(strides)} strides"
        )
    if not all(field > 0 for field in receptive_fields) or not fraction > 0:
        raise ValueError(
            f"receptive fields and their fraction must be positive, got {tuple(receptive_fields)} and {fraction}"
        )
    rpn = ProposalNetwork(
        PyramidAnchors(strides, [(fraction * field,) for field in receptive_fields]),
        RPNHead(channels, num_anchors=len(ASPECT_RATIOS)),
        HierarchicalAssigner(topk, ratio, paper=paper),
        allowed_border=0 if paper and allowed_border is None else allowed_border,
        **options,
    )
    if paper:
        rpn.box_coder = _ScaledTargets(ratio)
    return rpn
