"""The two-stage head of Faster R-CNN on torchvision's parts (Ren et al., "Faster R-CNN", 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .pooling import PyramidRoIAlign

__all__ = ["PyramidAnchors", "TwoStageHead", "region_proposal_network"]

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class PyramidAnchors(AnchorGenerator):
    """Anchors with one size a level, `scale * stride`, and three aspect ratios; always float32.

    torchvision's generator gives anchors the features' type, and bfloat16 rounds a coordinate of 1000 to a multiple of
    4 pixels: as large as the objects.

    Args:
        strides: stride of each level, in pixels.
        scale: side of a square anchor, in strides.
    """

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        super().__init__(tuple((scale * stride,) for stride in strides), (ASPECT_RATIOS,) * len(strides))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, `[A, 4]`, (x1, y1, x2, y2) in pixels; `feature_maps` are `[N, C, h, w]`."""
        return super().forward(image_list, [level[:, :1].float() for level in feature_maps])


class TwoStageHead(nn.Module):
    """Region proposals, then classification and regression of each pooled proposal.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        anchor_scale: side of a square anchor, in strides (paper: DroneSwarms 2, AI-TOD 4, VisDrone 6).
        strides: strides of the levels the proposals come from; all but the last are pooled from.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        anchor_scale: float = 4,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.rpn = region_proposal_network(channels, strides, anchor_scale, max(1000, detections_per_image))
        self.roi_heads = RoIHeads(
            box_roi_pool=PyramidRoIAlign(strides[:-1], output_size=7),
            box_head=TwoMLPHead(channels * 7 * 7, 1024),
            box_predictor=FastRCNNPredictor(1024, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )
        self.roi_heads.box_predictor.register_forward_hook(_float32_outputs)

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads`.

        Losses: `loss_objectness`, `loss_rpn_box_reg`, `loss_classifier` and `loss_box_reg`.
        """
        proposals, proposal_losses = self.rpn(batch, features, targets)
        detections, detection_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return detections, proposal_losses | detection_losses


def region_proposal_network(
    channels: int, strides: Sequence[int], anchor_scale: float, proposals_per_image: int
) -> RegionProposalNetwork:
    """torchvision's region proposal network with the paper's sampling: 256 anchors an image, IoU 0.7 and 0.3.

    Args:
        channels: channels of the pyramid.
        strides: stride of each level, in pixels.
        anchor_scale: side of a square anchor, in strides.
        proposals_per_image: the most proposals an image in evaluation; 2000 in training.
    """
    head = RPNHead(channels, num_anchors=len(ASPECT_RATIOS))
    head.register_forward_hook(_float32_outputs)
    proposals = {"training": 2000, "testing": proposals_per_image}
    return RegionProposalNetwork(
        PyramidAnchors(strides, anchor_scale),
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=proposals,
        post_nms_top_n=proposals,
        nms_thresh=0.7,
    )


def _float32_outputs(module: nn.Module, args: Any, outputs: Any) -> Any:
    """A forward hook: torchvision decodes boxes in the predictions' type, which autocast would make too coarse."""
    return tuple([x.float() for x in out] if isinstance(out, list) else out.float() for out in outputs)
