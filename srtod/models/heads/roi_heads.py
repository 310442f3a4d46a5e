"""torchvision's RoI heads for images of thousands of objects, and with ignore regions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import roi_heads

from ..assigners import MaxIoUAssigner, without_negatives_inside
from .padded import SMALLEST_SIDE, PaddedDetections, clipped, select_by_class

__all__ = ["RoIHeads"]


class RoIHeads(roi_heads.RoIHeads):
    """torchvision's, but regions get their objects from `MaxIoUAssigner`, which needs no matrix of all their IoUs.

    That matrix takes a gigabyte for 5,000 objects and 2,000 proposals. And of regions without an object none is sampled
    that lies in an ignore region.

    Args:
        fg_iou_thresh: IoU from which a region belongs to an object; all others are background.
        beta: where the box loss turns from quadratic to linear (SmoothL1); 0 for L1.
        classifier_weight: factor on the classification loss.
        options: see `torchvision.models.detection.roi_heads.RoIHeads`.
    """

    def __init__(
        self, *, fg_iou_thresh: float, beta: float = 1 / 9, classifier_weight: float = 1.0, **options: Any
    ) -> None:
        super().__init__(fg_iou_thresh=fg_iou_thresh, bg_iou_thresh=fg_iou_thresh, **options)
        self.assigner = MaxIoUAssigner(fg_iou_thresh, fg_iou_thresh, low_quality=False)
        self.beta = beta
        self.classifier_weight = classifier_weight

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],  # [K_n, 4] each, in pixels
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation; in training `loss_classifier` and `loss_box_reg`."""
        outputs: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
        if not self.training:
            outputs = super().forward(features, proposals, image_shapes)
            return outputs
        proposals, _, labels, offsets = self.select_training_samples(proposals, targets)
        logits, predicted_offsets = self.box_predictor(
            self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        )
        losses = self.losses(logits, predicted_offsets, labels, offsets)
        return [], dict(zip(("loss_classifier", "loss_box_reg"), losses, strict=True))

    def predict_padded(
        self,
        features: dict[str, Tensor],
        proposals: Tensor,  # [N, K, 4], in pixels
    ) -> tuple[Tensor, Tensor]:
        """Logits `[N * K, num_classes]` and offsets `[N * K, 4]` or `[N * K, 4 * num_classes]` of all places."""
        images = torch.arange(proposals.shape[0], device=proposals.device, dtype=proposals.dtype)
        regions = F.pad(proposals, (1, 0)) + F.pad(images[:, None, None], (0, 4))
        outputs: tuple[Tensor, Tensor] = self.box_predictor(
            self.box_head(self.box_roi_pool.pool(features, regions.flatten(0, 1)))
        )
        return outputs

    def padded(
        self,
        logits: Tensor,  # [N * K, num_classes]
        offsets: Tensor,  # [N * K, 4], or 4 * num_classes where each class has a box of its own
        proposals: Tensor,  # [N, K, 4], in pixels
        valid: Tensor,  # [N, K], bool: which places hold a proposal
        size: tuple[int, int],
    ) -> PaddedDetections:
        """As torchvision's `postprocess_detections`, of images that all are of `size` (h, w) without padding."""
        num_classes = logits.shape[1]
        scores = logits.softmax(dim=1)[:, 1:].unflatten(0, valid.shape)  # [N, K, classes]
        boxes = self.box_coder.decode_single(offsets, proposals.flatten(0, 1)).unflatten(1, (-1, 4))
        boxes = (boxes[:, 1:] if boxes.shape[1] > 1 else boxes.expand(-1, num_classes - 1, -1)).unflatten(
            0, valid.shape
        )
        boxes, visible = clipped(boxes, size, SMALLEST_SIDE)
        labels = torch.arange(1, num_classes, device=logits.device).expand(scores.shape)
        kept = visible & (scores > self.score_thresh) & valid[..., None]
        return select_by_class(
            boxes.flatten(1, 2),
            scores.flatten(1),
            labels.flatten(1),
            kept.flatten(1),
            iou=self.nms_thresh,
            most=self.detections_per_img,
        )

    def losses(
        self,
        logits: Tensor,  # [K_1 + ... + K_N, num_classes]
        predicted_offsets: Tensor,  # [K_1 + ... + K_N, 4], or 4 * num_classes where each class has a box of its own
        labels: list[Tensor],  # [K_n] each, int64, 0 for background
        offsets: list[Tensor],  # [K_n, 4] each, looked at where the label is not 0
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and SmoothL1 summed over positives; both divided by the number of samples; 0 for none.

        torchvision's losses, but for `beta` and `classifier_weight`, and for 0 where there are no samples, which to
        torchvision is 0 / 0.
        """
        classes = torch.cat(labels)
        samples = max(1, len(classes))
        positive = torch.where(classes > 0)[0]
        boxes = predicted_offsets.unflatten(1, (-1, 4))  # [K, 1 or num_classes, 4]
        own = boxes[positive, classes[positive] if boxes.shape[1] > 1 else 0]
        classifier_loss = F.cross_entropy(logits, classes, reduction="sum")
        box_loss = F.smooth_l1_loss(own, torch.cat(offsets)[positive], beta=self.beta, reduction="sum")
        return self.classifier_weight * classifier_loss / samples, box_loss / samples

    def select_training_samples(
        self,
        proposals: list[Tensor],  # [K_n, 4] each, in pixels
        targets: list[dict[str, Tensor]] | None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Draws what each image is trained on, from its proposals and its objects themselves.

        Returns:
            Of each image the regions `[S_n, 4]`, their objects `[S_n]`, labels `[S_n]`, 0 for background, and offsets
            `[S_n, 4]`, which mean nothing for background.

        Raises:
            ValueError: if there are no targets.
        """
        if targets is None:
            raise ValueError("targets are needed in training mode")
        boxes = [target["boxes"].to(regions.dtype) for target, regions in zip(targets, proposals, strict=True)]
        regions = self.add_gt_proposals(proposals, boxes)
        matched, labels = self.assign_targets_to_proposals(
            regions, boxes, [target["labels"] for target in targets], [target.get("ignore") for target in targets]
        )
        chosen = self.subsample(labels)
        regions, matched, labels = (
            [values[indices] for values, indices in zip(of_images, chosen, strict=True)]
            for of_images in (regions, matched, labels)
        )
        # Where there are no objects regions take the place of their boxes: their offsets are 0, and not looked at.
        aims = [o[m] if len(o) > 0 else r for o, m, r in zip(boxes, matched, regions, strict=True)]
        return regions, matched, labels, self.box_coder.encode(aims, regions)

    def assign_targets_to_proposals(
        self,
        proposals: list[Tensor],
        gt_boxes: list[Tensor],
        gt_labels: list[Tensor],
        ignore: list[Tensor | None] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each region of each image its object, `[K_n]`, 0 where it has none, and its label, `[K_n]`.

        The label is 0 for background and -1, which is never sampled, for background in an ignore region.
        """
        matched, labels = [], []
        no_regions = [None] * len(proposals)
        for regions, boxes, classes, ignored in zip(proposals, gt_boxes, gt_labels, ignore or no_regions, strict=True):
            owners = without_negatives_inside(self.assigner(boxes, regions), regions, ignored)
            matched.append(owners.clamp(min=0))
            of_objects = classes.new_zeros(len(regions)) if len(classes) == 0 else classes[matched[-1]]
            labels.append(of_objects.where(owners >= 0, (owners + 1).clamp(max=0)))
        return matched, labels
