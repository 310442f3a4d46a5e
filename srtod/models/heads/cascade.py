"""The head of Cascade R-CNN on torchvision's parts (Cai & Vasconcelos, "Cascade R-CNN", CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from .padded import PaddedDetections
from .pooling import PyramidRoIAlign
from .roi_heads import RoIHeads
from .two_stage import REPRESENTATION_SIZE, ProposalNetwork, float32_outputs, region_proposal_network

__all__ = ["CascadeHead", "ClassAgnosticPredictor"]

STAGE_IOUS = (0.5, 0.6, 0.7)  # a proposal with at least this IoU with an object is positive
STAGE_WEIGHTS = (1.0, 0.5, 0.25)  # of the losses
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))  # of (dx, dy, dw, dh)


class CascadeHead(nn.Module):
    """Region proposals, then three stages that classify and refine them, each trained on better boxes than the last.

    Every stage samples 512 boxes an image, a quarter of them positive, from the boxes of the stage before and the
    objects themselves. Its refined boxes, background included, are the next stage's proposals, without gradient; the
    objects that were added to the sample are not handed on, as there is nothing to refine. Detections have the last
    stage's boxes. Their scores are the softmax of the average of all stages' logits; each stage judges the boxes that
    it was given.

    The box losses are SmoothL1 with beta 1/9 in the region proposal network (torchvision's) and 1 in the stages; those
    of a stage are summed over positives and divided by the number of samples. Stage weights 1, 0.5 and 0.25 and
    thresholds as in the paper.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        anchor_scale: side of a square anchor, in strides (paper: DroneSwarms 2, AI-TOD 4, VisDrone 6).
        strides: strides of the levels the proposals come from; all but the last are pooled from.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped.
        proposals: how many proposals an image, see `ProposalNetwork`.
        allowed_border: which anchors are trained, see `ProposalNetwork`.
        representation_size: width of each stage's two layers.
        rpn: a region proposal network in place of the default one. It leaves `anchor_scale`, `proposals` and
            `allowed_border` without effect.
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
        proposals: int | None = None,
        allowed_border: float | None = None,
        representation_size: int = REPRESENTATION_SIZE,
        rpn: ProposalNetwork | None = None,
    ) -> None:
        super().__init__()
        if rpn is None:
            rpn = region_proposal_network(
                channels,
                strides,
                anchor_scale,
                detections_per_image=detections_per_image,
                proposals=proposals,
                allowed_border=allowed_border,
            )
        self.rpn = rpn
        self.stages = nn.ModuleList(
            RoIHeads(
                box_roi_pool=PyramidRoIAlign(strides[:-1], output_size=7),
                box_head=TwoMLPHead(channels * 7 * 7, representation_size),
                box_predictor=ClassAgnosticPredictor(representation_size, num_classes),
                fg_iou_thresh=iou,
                beta=1.0,
                batch_size_per_image=512,
                positive_fraction=0.25,
                bbox_reg_weights=tuple(1 / std for std in stds),
                score_thresh=score_threshold,
                nms_thresh=nms_threshold,
                detections_per_img=detections_per_image,
            )
            for iou, stds in zip(STAGE_IOUS, STAGE_STDS, strict=True)
        )

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads`.

        Losses: `loss_objectness`, `loss_rpn_box_reg`, and of each stage, weighted, `loss_classifier_1` to `_3` and
        `loss_box_reg_1` to `_3`.
        """
        proposals, losses = self.rpn(batch, features, targets)
        if self.training:
            return [], losses | self._losses(features, proposals, batch.image_sizes, targets)
        return self._detect(features, proposals, batch.image_sizes), {}

    def padded(self, features: dict[str, Tensor], size: tuple[int, int]) -> PaddedDetections:
        """See `srtod.models.heads`."""
        proposals, valid = self.rpn.padded(features, size)
        *stages, last = cast("list[RoIHeads]", list(self.stages))
        of_stages = []
        for stage in stages:
            logits, offsets = stage.predict_padded(features, proposals)
            of_stages.append(logits)
            boxes = stage.box_coder.decode_single(offsets, proposals.flatten(0, 1)).view_as(proposals)
            proposals = clip_boxes_to_image(boxes, size)
        logits, offsets = last.predict_padded(features, proposals)
        return last.padded(torch.stack([*of_stages, logits]).mean(dim=0), offsets, proposals, valid, size)

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],  # [K_n, 4] each
        image_sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        losses = {}
        stages = cast("list[RoIHeads]", list(self.stages))
        for number, (stage, weight) in enumerate(zip(stages, STAGE_WEIGHTS, strict=True), start=1):
            proposals, _, labels, offsets = stage.select_training_samples(proposals, targets)
            logits, predicted_offsets = _predict(stage, features, proposals, image_sizes)
            classifier_loss, box_loss = stage.losses(logits, predicted_offsets, labels, offsets)
            losses[f"loss_classifier_{number}"] = weight * classifier_loss
            losses[f"loss_box_reg_{number}"] = weight * box_loss
            refined = _refine(stage, predicted_offsets, proposals, image_sizes)
            proposals = [_next_proposals(*image) for image in zip(refined, labels, offsets, strict=True)]
        return losses

    def _detect(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],  # [K_n, 4] each
        image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        stages = cast("list[RoIHeads]", list(self.stages))
        of_stages = []
        for stage in stages[:-1]:
            logits, offsets = _predict(stage, features, proposals, image_sizes)
            of_stages.append(logits)
            proposals = _refine(stage, offsets, proposals, image_sizes)
        last = stages[-1]
        logits, offsets = _predict(last, features, proposals, image_sizes)
        average = torch.stack([*of_stages, logits]).mean(dim=0)
        per_class = offsets.repeat(1, average.shape[1])  # torchvision expects a box for each class
        outputs = last.postprocess_detections(average, per_class, proposals, image_sizes)
        return [{"boxes": boxes, "labels": labels, "scores": s} for boxes, s, labels in zip(*outputs, strict=True)]


class ClassAgnosticPredictor(nn.Module):
    """Class logits, and one box offset whatever the class, of pooled regions.

    Weights start from normal distributions, as in Fast R-CNN (Girshick, 2015, Sec. 2.3): an untrained stage leaves the
    boxes where they are.

    Args:
        in_channels: features of a region.
        num_classes: number of classes, background included.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_forward_hook(float32_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[K, in_channels]` to logits `[K, num_classes]` and offsets (dx, dy, dw, dh) `[K, 4]`, float32."""
        return self.cls_score(x), self.bbox_pred(x)


def _predict(
    stage: RoIHeads, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Logits `[K_1 + ... + K_N, num_classes]` and offsets `[K_1 + ... + K_N, 4]` of the proposals, `[K_n, 4]` each."""
    outputs: tuple[Tensor, Tensor] = stage.box_predictor(
        stage.box_head(stage.box_roi_pool(features, proposals, image_sizes))
    )
    return outputs


def _refine(
    stage: RoIHeads,
    offsets: Tensor,  # [K_1 + ... + K_N, 4]
    proposals: list[Tensor],  # [K_n, 4] each
    image_sizes: list[tuple[int, int]],
) -> list[Tensor]:
    """The stage's boxes, `[K_n, 4]` each, inside the images and without gradient."""
    boxes = stage.box_coder.decode(offsets.detach(), proposals).reshape(-1, 4)
    of_images = boxes.split([len(image) for image in proposals])
    return [clip_boxes_to_image(image, size) for image, size in zip(of_images, image_sizes, strict=True)]


def _next_proposals(boxes: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """What the next stage samples from: refined boxes `[K, 4]` but for objects themselves and boxes without extent.

    Args:
        boxes: refined boxes `[K, 4]`.
        labels: `[K]`, 0 for background.
        offsets: what the stage's regression should give, `[K, 4]`: 0 for a sample that was an object itself.
    """
    boxes = boxes[~((labels > 0) & (offsets == 0).all(dim=1))]
    return boxes[remove_small_boxes(boxes, min_size=1e-3)]  # as in torchvision's region proposal network
