"""The region proposal network of Cascade RPN.

Vu et al., "Cascade RPN: Delving into High-Quality Region Proposal Network with Adaptive Convolution", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from ..assigners import MaxIoUAssigner, RegionAssigner
from ..boxes import BoxCoder, paired_iou
from ..layers import deformable_conv2d
from .anchor_generator import PyramidAnchors
from .two_stage import ProposalNetwork

__all__ = ["REGIONS", "AdaptiveConv2d", "CascadeProposalNetwork"]

STAGE_STDS = ((0.1, 0.1, 0.5, 0.5), (0.05, 0.05, 0.1, 0.1))  # of (dx, dy, dw, dh)
BOX_WEIGHT = 7.0  # of the IoU losses
OBJECTNESS_WEIGHT = 0.7
FEWEST_SAMPLES = 256  # an image, that the first stage's loss is divided by

REGIONS: dict[str, Any] = {
    "fg_iou_thresh": 0.65,
    "beta": 1.0,
    "classifier_weight": 1.5,
    "batch_size_per_image": 256,
    "bbox_reg_weights": tuple(1 / std for std in (0.04, 0.04, 0.08, 0.08)),
}
"""Options of `RoIHeads` behind these proposals, as in its authors' code: better boxes are judged more strictly."""


class CascadeProposalNetwork(ProposalNetwork):
    """One square anchor a place, refined by a first stage and judged and refined again by a second.

    The first stage regresses anchors from a convolution with dilation 3. It learns those in the middle of an object,
    whatever their IoU (`RegionAssigner`). The second one takes its features, reads them at the refined anchor
    (`AdaptiveConv2d`), and learns by IoU: an anchor of at least 0.7, and an object's best one, belongs to the object.
    Both box losses are 1 - IoU.

    The weights of the losses are 0.7 for objectness and 7 for boxes. The first box loss is divided by the number of
    positives, at least 256 an image. Proposals are suppressed at IoU 0.8. By default 300 an image are kept, or as many
    as the detections asked for.

    Args:
        channels: channels of the pyramid.
        strides: stride of each level, in pixels.
        anchor_scale: side of an anchor, in strides.
        detections_per_image: the most detections an image that the head will be asked for.
        proposals: the most proposals an image, in training and in evaluation; None for the default above.
        allowed_border: see `ProposalNetwork`; of the refined anchors, which are clipped to their image.

    Raises:
        ValueError: as `ProposalNetwork`.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        anchor_scale: float = 4,
        *,
        detections_per_image: int = 100,
        proposals: int | None = None,
        allowed_border: float | None = None,
    ) -> None:
        super().__init__(
            PyramidAnchors(strides, [(anchor_scale * stride,) for stride in strides], (1.0,)),
            nn.ModuleList([_FirstStage(channels), _SecondStage(channels)]),
            MaxIoUAssigner(0.7, 0.7),
            proposals=max(300, detections_per_image) if proposals is None else proposals,
            allowed_border=allowed_border,
        )
        self.nms_thresh = 0.8
        self.region_assigner = RegionAssigner(strides, anchor_scale)
        self.box_coders = [BoxCoder(stds) for stds in STAGE_STDS]

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The proposals of each image, `[K_n, 4]`, and in training the losses.

        Losses: `loss_rpn_box_reg_1`, of the first stage, `loss_objectness` and `loss_rpn_box_reg_2`.

        Raises:
            ValueError: if targets are missing in training.
        """
        first, second = self.head
        levels = list(features.values())
        anchors = self.anchor_generator.of_levels(levels)
        of_levels = []
        for level, of_level, stride in zip(levels, anchors, self.anchor_generator.strides, strict=True):
            bridge, offsets = first(level)
            refined = self.box_coders[0].decode(offsets, of_level)
            clipped = torch.stack(list(map(clip_boxes_to_image, refined.detach(), images.image_sizes)))
            objectness, offsets = second(bridge, clipped, stride)
            of_levels.append((refined, clipped, objectness, self.box_coders[1].decode(offsets, clipped)))
        refined, clipped, objectness, boxes = (torch.cat(parts, dim=1) for parts in zip(*of_levels, strict=True))
        level_sizes = [len(level) for level in anchors]
        proposals, _ = self.filter_proposals(
            boxes.detach(), objectness.flatten()[:, None], images.image_sizes, level_sizes
        )
        if not self.training:
            return proposals, {}
        if targets is None:
            raise ValueError("targets are needed in training mode")
        labels, aims = self.assign_targets_to_anchors(list(clipped), self.with_sizes(targets, images))
        objectness_loss, box_loss = self.compute_loss(objectness.flatten(), boxes.flatten(0, 1), labels, aims)
        return proposals, {
            "loss_rpn_box_reg_1": BOX_WEIGHT * self._first_loss(refined, torch.cat(anchors), level_sizes, targets),
            "loss_objectness": OBJECTNESS_WEIGHT * objectness_loss,
            "loss_rpn_box_reg_2": BOX_WEIGHT * box_loss,
        }

    def level_boxes(self, features: dict[str, Tensor], size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """See `ProposalNetwork`."""
        first, second = self.head
        levels = list(features.values())
        found = []
        for level, anchors, stride in zip(
            levels, self.anchor_generator.of_levels(levels), self.anchor_generator.strides, strict=True
        ):
            bridge, offsets = first(level)
            refined = clip_boxes_to_image(self.box_coders[0].decode(offsets, anchors), size)
            objectness, offsets = second(bridge, refined, stride)
            found.append((self.box_coders[1].decode(offsets, refined), objectness.squeeze(2)))
        return found

    def box_loss(self, predicted: Tensor, aims: Tensor) -> Tensor:
        """Of predicted boxes `[K, 4]` and objects `[K, 4]`: 1 - IoU, summed."""
        return (1 - paired_iou(predicted, aims)).sum()

    def _first_loss(
        self,
        refined: Tensor,  # [N, P, 4]
        anchors: Tensor,  # [P, 4]
        level_sizes: Sequence[int],
        targets: Sequence[dict[str, Tensor]],
    ) -> Tensor:
        owners = [self.region_assigner(target["boxes"].float(), anchors, level_sizes) for target in targets]
        positive = torch.stack(owners) >= 0
        aims = [target["boxes"].float()[owner[owner >= 0]] for target, owner in zip(targets, owners, strict=True)]
        samples = positive.sum().clamp(min=FEWEST_SAMPLES * len(targets))
        return self.box_loss(refined[positive], torch.cat(aims)) / samples


class AdaptiveConv2d(nn.Module):
    """A 3x3 convolution whose kernel is stretched over the anchor of each place.

    It reads the features at the anchor's centre, corners and the middles of its sides, where the anchor's coordinates
    are those of the image and a cell's are its column and row times the stride.

    Args:
        channels: channels of the features, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.normal_(self.weight, std=0.01)

    def forward(
        self,
        x: Tensor,  # [N, C, h, w]
        anchors: Tensor,  # [N, h * w, 4], in pixels
        stride: int,
    ) -> Tensor:
        """The features of the anchors, `[N, C, h, w]`."""
        offsets = anchor_offsets(anchors, (x.shape[-2], x.shape[-1]), stride)
        return deformable_conv2d(x, offsets, self.weight, padding=(1, 1))


def anchor_offsets(anchors: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """How far the places of a 3x3 kernel move so that it covers the anchors `[N, h * w, 4]`: `[N, 18, h, w]`, in cells.

    As `torchvision.ops.deform_conv2d` takes them: in the order of the kernel's places, y before x.
    """
    height, width = size
    x1, y1, x2, y2 = (anchors / stride).view(-1, height, width, 4).unbind(dim=3)
    taps = torch.arange(-1, 2, device=anchors.device)

    def moves(low: Tensor, high: Tensor, cells: Tensor) -> Tensor:  # [N, h, w, 3]
        return ((low + high) / 2 - cells)[..., None] + taps * ((high - low) / 2 - 1)[..., None]

    y = moves(y1, y2, torch.arange(height, device=anchors.device)[:, None])[..., :, None].expand(-1, -1, -1, 3, 3)
    x = moves(x1, x2, torch.arange(width, device=anchors.device))[..., None, :].expand(-1, -1, -1, 3, 3)
    return torch.stack((y, x), dim=-1).flatten(3).permute(0, 3, 1, 2).contiguous()


class _FirstStage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=3, dilation=3)
        self.regressor = _predictor(channels, 4)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[N, C, h, w]` to features for the second stage, of the same shape, and offsets `[N, h * w, 4]`."""
        x = self.conv(x).relu()
        return x, _flatten(self.regressor(x))


class _SecondStage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = AdaptiveConv2d(channels)
        self.classifier = _predictor(channels, 1)
        self.regressor = _predictor(channels, 4)

    def forward(self, x: Tensor, anchors: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Logits `[N, h * w, 1]` and offsets `[N, h * w, 4]` from features `[N, C, h, w]` and as many anchors."""
        x = self.conv(x, anchors, stride).relu()
        return _flatten(self.classifier(x)), _flatten(self.regressor(x))


def _predictor(channels: int, values: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, values, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _flatten(maps: Tensor) -> Tensor:
    """From `[N, values, h, w]` to `[N, h * w, values]` in float32."""
    return maps.flatten(2).permute(0, 2, 1).float()
