"""What the one-stage heads share: predictions at every location of the pyramid, their losses and post-processing.

A *prior* is a box `[4]`, (x1, y1, x2, y2) in pixels of the batch, that a prediction starts from: an anchor, or where a
head has none, the square of side `stride` around a location. Each level has `h * w * A` of them, in the order of its
rows, then its columns, then the A priors of a location.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, sigmoid_focal_loss
from torchvision.ops.misc import Conv2dNormActivation

from ..assigners import IGNORED, without_negatives_inside
from .anchor_generator import PyramidAnchors
from .padded import SMALLEST_SIDE, PaddedDetections, clipped, padded_topk, pick, select_by_class

__all__ = ["DenseHead", "LevelPredictions", "centerness_targets", "conv_tower", "make_group_norm"]

PRIOR_PROBABILITY = 0.01  # of an object at a location before training (Lin et al. 2017, section 4.1)


class LevelPredictions(NamedTuple):
    """What a head says about the P priors of one level, for N images and K classes; always float32.

    Attributes:
        logits: `[N, P, K]`, of class 1 first.
        regression: the encoded boxes, `[N, P, 4]`.
        centerness: its logits, `[N, P]`, or None where the head has none.
    """

    logits: Tensor
    regression: Tensor
    centerness: Tensor | None


class DenseHead(nn.Module, ABC):
    """Base of the one-stage heads: classifies every prior and regresses its box, each after a tower of four
    convolutions that all levels share (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4).

    A head adds `assign`, `decode` and `box_loss`. The classification loss is the focal loss with alpha 0.25 and
    gamma 2, summed and divided by the number of positive priors in the batch, which is that of all processes where
    several train together: their averaged gradients are those of one process with all the images. Boxes and losses are
    float32 whatever type autocast gives the features.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        anchors: the sizes and aspect ratios of the priors around a location; their number may not differ by level.
        strides: stride of each level, in pixels.
        offset: where the priors of a cell have their centre, in strides from its upper left corner.
        centerness: whether the box tower also predicts centerness; detections then score
            `sqrt(probability * centerness)`.
        scale_levels: whether every level has a learnt factor on its regression, 1 at the start.
        group_norm: whether the towers normalise in groups; they have biases otherwise.
        tower_depth: convolutions of a tower; may be 0.
        detections_per_image: the most detections an image.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors: PyramidAnchors,
        *,
        strides: Sequence[int],
        offset: float = 0.5,
        centerness: bool = False,
        scale_levels: bool = False,
        group_norm: bool = False,
        tower_depth: int = 4,
        detections_per_image: int = 100,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.anchors = anchors
        self.offset = offset
        self.num_logits = num_classes - 1
        self.detections_per_image = detections_per_image
        self.candidates_per_level = max(1000, detections_per_image)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        priors_per_location = anchors.num_anchors_per_location()[0]
        self.class_tower = conv_tower(channels, tower_depth, group_norm=group_norm)
        self.box_tower = conv_tower(channels, tower_depth, group_norm=group_norm)
        self.classifier = nn.Conv2d(channels, priors_per_location * self.num_logits, 3, padding=1)
        self.regressor = nn.Conv2d(channels, priors_per_location * 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, priors_per_location, 3, padding=1) if centerness else None
        self.level_scales = nn.Parameter(torch.ones(len(self.strides))) if scale_levels else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.classifier.bias is not None:
            nn.init.constant_(self.classifier.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    @abstractmethod
    def assign(self, boxes: Tensor, priors: list[Tensor]) -> Tensor:
        """Gives priors to objects.

        Args:
            boxes: the objects of an image, `[M, 4]` in pixels; M may be 0.
            priors: the priors of each level, `[P_l, 4]`.

        Returns:
            `[P]`, int64, all levels in one: the index of the prior's object, -1 background, -2 ignored.
        """

    @abstractmethod
    def decode(self, regression: Tensor, priors: Tensor) -> Tensor:
        """The boxes `[K, 4]` in pixels that regression `[K, 4]` makes of priors `[K, 4]`."""

    @abstractmethod
    def box_loss(self, regression: Tensor, priors: Tensor, boxes: Tensor) -> Tensor:
        """The loss `[K]` of regression `[K, 4]` from positive priors `[K, 4]` to their objects' boxes `[K, 4]`."""

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads`.

        Losses: `loss_classifier`, `loss_box_reg` and, where the head predicts it, `loss_centerness`.

        Raises:
            ValueError: if the number of levels is not that of the strides, or targets are missing in training.
        """
        levels = list(features.values())
        if len(levels) != len(self.strides):
            raise ValueError(f"the head has {len(self.strides)} strides, got features with {len(levels)} levels")
        priors = self.priors(levels)
        predictions = [self.predict(level, index) for index, level in enumerate(levels)]
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training mode")
            return [], self.losses(predictions, priors, targets)
        return self.detections(predictions, priors, batch.image_sizes), {}

    def predict(self, features: Tensor, level: int) -> LevelPredictions:
        """The predictions from the features `[N, C, h, w]` of a level, given by its index from the finest."""
        box_features = self.box_tower(features)
        regression = _flatten(self.regressor(box_features), 4)
        return LevelPredictions(
            _flatten(self.classifier(self.class_tower(features)), self.num_logits),
            regression if self.level_scales is None else regression * self.level_scales[level],
            None if self.centerness is None else _flatten(self.centerness(box_features), 1).squeeze(2),
        )

    def priors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The priors of each level, `[h * w * A, 4]`, float32, for features `[N, C, h, w]`.

        The cells are `stride` apart, also where the batch is no multiple of it. (torchvision's detectors divide the
        batch's size by the level's, which there puts the cells of the coarsest levels too close together.)
        """
        priors = self.anchors.of_levels(levels)
        return [boxes + self.offset * stride for boxes, stride in zip(priors, self.strides, strict=True)]

    def losses(
        self, predictions: Sequence[LevelPredictions], priors: list[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The losses `[]`, as `forward`.

        Args:
            predictions: the predictions of each level.
            priors: the priors of each level, `[P_l, 4]`.
            targets: `boxes` `[M, 4]` in pixels of the batch and `labels` `[M]` of each image, and perhaps `ignore`.
        """
        logits = torch.cat([level.logits for level in predictions], dim=1)  # [N, P, K]
        regression = torch.cat([level.regression for level in predictions], dim=1)  # [N, P, 4]
        with torch.no_grad():
            all_priors = torch.cat(priors)
            owners = torch.stack(
                [
                    without_negatives_inside(
                        self.assign(target["boxes"].float(), priors), all_priors, target.get("ignore")
                    )
                    for target in targets
                ]
            )  # [N, P]
            positive = owners >= 0
            positive_priors = all_priors[positive.nonzero()[:, 1]]
            positive_boxes = torch.cat(
                [target["boxes"].float()[owner[owner >= 0]] for target, owner in zip(targets, owners, strict=True)]
            )
            # Index -1 takes the 0 appended for the background, which thereby exists in images without objects too.
            labels = torch.stack(
                [
                    F.pad(target["labels"], (0, 1))[owner.clamp(min=-1)]
                    for target, owner in zip(targets, owners, strict=True)
                ]
            )  # [N, P]
            classes = torch.arange(1, self.num_logits + 1, device=labels.device)
            one_hot = (labels[..., None] == classes).to(logits.dtype)
            counted = (owners != IGNORED)[..., None]
        focal = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2) * counted
        box_loss = self.box_loss(regression[positive], positive_priors, positive_boxes)
        count = _over_processes(positive.sum(), least=1)
        losses = {"loss_classifier": focal.sum() / count}
        if self.centerness is None:
            return losses | {"loss_box_reg": box_loss.sum() / count}
        # A location far from its object's centre has a low score in evaluation, so its box counts as little here.
        centerness = torch.cat([level.centerness for level in predictions if level.centerness is not None], dim=1)
        weights = centerness_targets(positive_boxes, positive_priors)
        cross_entropy = F.binary_cross_entropy_with_logits(centerness[positive], weights, reduction="sum")
        return losses | {
            "loss_box_reg": (box_loss * weights).sum() / _over_processes(weights.sum(), least=1e-6),
            "loss_centerness": cross_entropy / count,
        }

    def detections(
        self,
        predictions: Sequence[LevelPredictions],
        priors: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """The detections of each image, best first.

        Of each level the best `max(1000, detections_per_image)` pairs of prior and class above the score threshold are
        decoded, clipped to the image and suppressed by class; boxes that lie outside of the image are dropped.

        Args:
            predictions: the predictions of each level.
            priors: the priors of each level, `[P_l, 4]`.
            image_sizes: height and width of each image without padding, in pixels.
        """
        results: list[dict[str, Tensor]] = []
        for image, size in enumerate(image_sizes):
            candidates = [
                self._candidates(level, level_priors, image)
                for level, level_priors in zip(predictions, priors, strict=True)
            ]
            boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
            boxes = clip_boxes_to_image(boxes, size)
            visible = remove_small_boxes(boxes, min_size=SMALLEST_SIDE)
            boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
            keep = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
            results.append({"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]})
        return results

    def padded(self, features: dict[str, Tensor], size: tuple[int, int]) -> PaddedDetections:
        """See `srtod.models.heads`."""
        levels = list(features.values())
        priors = self.priors(levels)
        candidates = [
            self._padded_candidates(self.predict(level, index), priors[index]) for index, level in enumerate(levels)
        ]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        boxes, visible = clipped(boxes, size, SMALLEST_SIDE)
        return select_by_class(
            boxes,
            scores,
            labels,
            visible & (scores > self.score_threshold),
            iou=self.nms_threshold,
            most=self.detections_per_image,
        )

    def _padded_candidates(self, level: LevelPredictions, priors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_candidates`, of all images and whatever the score: `[N, K, 4]`, `[N, K]` and `[N, K]`."""
        scores = level.logits.sigmoid()  # [N, P, classes]
        if level.centerness is not None:
            scores = (scores * level.centerness.sigmoid()[..., None]).sqrt()
        scores, index, _ = padded_topk(scores.flatten(1), self.candidates_per_level)  # none: -inf, below any threshold
        rows = index.div(self.num_logits, rounding_mode="floor")
        boxes = self.decode(pick(level.regression, rows).flatten(0, 1), priors[rows.flatten()])
        return boxes.unflatten(0, scores.shape), scores, index % self.num_logits + 1

    def _candidates(self, level: LevelPredictions, priors: Tensor, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `[K, 4]`, scores `[K]` and labels `[K]` of the best predictions on a level of an image."""
        scores = level.logits[image].sigmoid()  # [P, classes]
        if level.centerness is not None:
            scores = (scores * level.centerness[image].sigmoid()[:, None]).sqrt()
        scores = scores.flatten()
        (above,) = torch.where(scores > self.score_threshold)
        scores, order = scores[above].topk(min(self.candidates_per_level, len(above)))
        above = above[order]
        rows = above.div(self.num_logits, rounding_mode="floor")
        return self.decode(level.regression[image, rows], priors[rows]), scores, above % self.num_logits + 1


def conv_tower(channels: int, depth: int = 4, *, group_norm: bool = False) -> nn.Sequential:
    """`depth` times a 3x3 convolution and ReLU, `[N, C, h, w]` to the same; 32 groups where C allows it."""
    norm_layer = make_group_norm if group_norm else None
    return nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=norm_layer) for _ in range(depth)))


def make_group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group norm with so many groups where the channels allow it.

    A group has two channels at least: one channel of a map of one pixel has no variance.
    """
    return nn.GroupNorm(math.gcd(groups, channels // 2), channels)


def centerness_targets(boxes: Tensor, priors: Tensor) -> Tensor:
    """How central the priors' centres lie in boxes (Tian et al. 2019, equation 3).

    `sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))` of the distances to the left, top, right and bottom side.

    Args:
        boxes: `[K, 4]` in pixels.
        priors: `[K, 4]` in pixels.

    Returns:
        `[K]` in [0, 1]: 1 at the centre, 0 on the sides and outside.
    """
    distances = BoxLinearCoder(normalize_by_size=False).encode(priors, boxes).clamp(min=0)
    horizontal, vertical = distances[:, 0::2], distances[:, 1::2]
    ratios = [side.amin(1) / side.amax(1).clamp(min=1e-6) for side in (horizontal, vertical)]
    return (ratios[0] * ratios[1]).sqrt()


def _over_processes(total: Tensor, least: float) -> Tensor:
    """What a sum over this process's images is divided by: the total `[]` over all processes, at least `least`, each.

    Each of W processes has its share, the W-th part of the total: DDP averages the gradients of the processes, where
    one process with all the images would add them up. In a single process it is the total itself.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=least) / processes


def _flatten(maps: Tensor, values: int) -> Tensor:
    """From `[N, A * values, h, w]` to `[N, h * w * A, values]` in float32."""
    batch, _, height, width = maps.shape
    maps = maps.view(batch, -1, values, height, width).permute(0, 3, 4, 1, 2)
    return maps.reshape(batch, -1, values).float()
