"""The two-stage head of Faster R-CNN on torchvision's parts (Ren et al., "Faster R-CNN", 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ..assigners import MaxIoUAssigner, without_negatives_inside
from .anchor_generator import ASPECT_RATIOS, PyramidAnchors
from .pooling import PyramidRoIAlign
from .roi_heads import RoIHeads

__all__ = ["ProposalNetwork", "TwoStageHead", "float32_outputs", "region_proposal_network"]


class TwoStageHead(nn.Module):
    """Region proposals, then classification and regression of each pooled proposal.

    Both box losses are torchvision's, SmoothL1 with beta 1/9.

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
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )
        self.roi_heads.box_predictor.register_forward_hook(float32_outputs)

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads`.

        Losses: `loss_objectness`, `loss_rpn_box_reg`, `loss_classifier` and `loss_box_reg`.
        """
        proposals, proposal_losses = self.rpn(batch, features, targets)
        detections, detection_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return detections, proposal_losses | detection_losses


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with the paper's sampling, 256 anchors an image, and any assigner.

    torchvision holds the IoU of every object with every anchor at once, which is gigabytes for thousands of objects;
    assigners go through the objects in chunks. The box loss is SmoothL1 with beta 1/9, which is torchvision's as it is
    the paper's. All but the features is float32 under autocast.

    Args:
        anchors: generates the anchors.
        head: predicts objectness and box offsets of each anchor.
        assigner: `assigner(boxes, anchors)`, see `srtod.models.assigners`.
        proposals_per_image: the most proposals an image in evaluation; 2000 in training.
    """

    def __init__(
        self,
        anchors: PyramidAnchors,
        head: nn.Module,
        assigner: Callable[[Tensor, Tensor], Tensor],
        proposals_per_image: int,
    ) -> None:
        proposals = {"training": 2000, "testing": proposals_per_image}
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=0.7,  # the assigner's matter, not these
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=proposals,
            post_nms_top_n=proposals,
            nms_thresh=0.7,
        )
        head.register_forward_hook(float32_outputs)
        self.assigner = assigner

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What each anchor has to find.

        Args:
            anchors: anchors of each image, `[A, 4]`.
            targets: `boxes` `[M, 4]` of each image, M may be 0, and perhaps `ignore` `[K, 4]`.

        Returns:
            For each image the anchors' labels `[A]`, 1 for an object, 0 for background and -1 for ignored anchors, and
            their objects' boxes `[A, 4]`, which mean nothing where the label is not 1.
        """
        labels, boxes = [], []
        for image_anchors, target in zip(anchors, targets, strict=True):
            owners = self.assigner(target["boxes"], image_anchors)
            owners = without_negatives_inside(owners, image_anchors, target.get("ignore"))
            labels.append((owners + 1).clamp(min=-1, max=1).to(image_anchors.dtype))
            none = len(target["boxes"]) == 0
            boxes.append(image_anchors if none else target["boxes"].to(image_anchors.dtype)[owners.clamp(min=0)])
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """torchvision's losses, and 0 where all anchors are ignored, which to torchvision is 0 / 0."""
        if all(bool((of_image < 0).all()) for of_image in labels):
            return objectness[:0].sum(), pred_bbox_deltas[:0].sum()
        losses: tuple[Tensor, Tensor] = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        return losses


def region_proposal_network(
    channels: int, strides: Sequence[int], anchor_scale: float, proposals_per_image: int
) -> ProposalNetwork:
    """A `ProposalNetwork` with square, wide and high anchors that are assigned by IoU, 0.7 and 0.3.

    Args:
        channels: channels of the pyramid.
        strides: stride of each level, in pixels.
        anchor_scale: side of a square anchor, in strides.
        proposals_per_image: the most proposals an image in evaluation; 2000 in training.
    """
    anchors = PyramidAnchors(strides, [(anchor_scale * stride,) for stride in strides])
    head = RPNHead(channels, num_anchors=len(ASPECT_RATIOS))
    return ProposalNetwork(anchors, head, MaxIoUAssigner(0.7, 0.3), proposals_per_image)


def float32_outputs(module: nn.Module, args: Any, outputs: Any) -> Any:
    """A forward hook: torchvision decodes boxes in the predictions' type, which autocast would make too coarse."""
    return tuple([x.float() for x in out] if isinstance(out, list) else out.float() for out in outputs)
