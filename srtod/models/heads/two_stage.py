"""The two-stage head of Faster R-CNN on torchvision's parts (Ren et al., "Faster R-CNN", 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ..assigners import IGNORED, MaxIoUAssigner, without_negatives_inside
from .anchor_generator import ASPECT_RATIOS, PyramidAnchors
from .padded import PaddedDetections, clipped, padded_topk, pick, suppress
from .pooling import PyramidRoIAlign
from .roi_heads import RoIHeads

__all__ = ["REPRESENTATION_SIZE", "ProposalNetwork", "TwoStageHead", "float32_outputs", "region_proposal_network"]

BETAS = {"smooth_l1": 1 / 9, "l1": 0.0}
"""Where each box loss turns from quadratic to linear (SmoothL1's beta); L1 is linear everywhere."""

REPRESENTATION_SIZE = 1024
"""The usual width of the layers behind the pooling (Lin et al., FPN, CVPR 2017)."""


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
        box_loss: of proposals and of regions: "smooth_l1" (beta 1/9, torchvision's) or "l1" (that of SR-TOD's authors).
        proposals: how many proposals an image, see `ProposalNetwork`.
        allowed_border: which anchors are trained, see `ProposalNetwork`.
        representation_size: width of the two layers that classify and regress a pooled proposal.
        rpn: a region proposal network in place of the default one. It leaves `anchor_scale`, `proposals` and
            `allowed_border` without effect.
        regions: options of `RoIHeads` that take the place of the values above.

    Raises:
        ValueError: if the box loss is unknown, or another option out of its range.
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
        box_loss: str = "smooth_l1",
        proposals: int | None = None,
        allowed_border: float | None = None,
        representation_size: int = REPRESENTATION_SIZE,
        rpn: ProposalNetwork | None = None,
        **regions: Any,
    ) -> None:
        super().__init__()
        if box_loss not in BETAS:
            raise ValueError(f"unknown box_loss {box_loss!r}; choose one of {', '.join(BETAS)}")
        if rpn is None:
            rpn = region_proposal_network(
                channels,
                strides,
                anchor_scale,
                detections_per_image=detections_per_image,
                proposals=proposals,
                allowed_border=allowed_border,
                beta=BETAS[box_loss],
            )
        self.rpn = rpn
        options: dict[str, Any] = {
            "fg_iou_thresh": 0.5,
            "beta": BETAS[box_loss],
            "batch_size_per_image": 512,
            "positive_fraction": 0.25,
            "bbox_reg_weights": None,  # torchvision's: standard deviations of .1, .1, .2, .2
        }
        self.roi_heads = RoIHeads(
            box_roi_pool=PyramidRoIAlign(strides[:-1], output_size=7),
            box_head=TwoMLPHead(channels * 7 * 7, representation_size),
            box_predictor=FastRCNNPredictor(representation_size, num_classes),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
            **options | regions,
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

    def padded(self, features: dict[str, Tensor], size: tuple[int, int]) -> PaddedDetections:
        """See `srtod.models.heads`."""
        proposals, valid = self.rpn.padded(features, size)
        logits, offsets = self.roi_heads.predict_padded(features, proposals)
        return self.roi_heads.padded(logits, offsets, proposals, valid, size)


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with the paper's sampling, 256 anchors an image, and any assigner.

    torchvision holds the IoU of every object with every anchor at once, which is gigabytes for thousands of objects;
    assigners go through the objects in chunks. All but the features is float32 under autocast.

    By default 2000 proposals an image are kept in training. In evaluation it is 1000, or as many as the detections
    asked for. Before NMS each level gives as many as are kept, but at least 2000 in training and 1000 in evaluation.

    Args:
        anchors: generates the anchors.
        head: predicts objectness and box offsets of each anchor.
        assigner: `assigner(boxes, anchors)`, see `srtod.models.assigners`.
        detections_per_image: the most detections an image that the head will be asked for.
        proposals: the most proposals an image, in training and in evaluation; None for the defaults above.
        allowed_border: how far an anchor may reach beyond its image and still be trained, in pixels. The assigner does
            not see the others. None trains all anchors.
        beta: where the box loss turns from quadratic to linear (SmoothL1); 0 for L1.

    Raises:
        ValueError: if `proposals` is not positive, or `allowed_border` is negative.
    """

    def __init__(
        self,
        anchors: PyramidAnchors,
        head: nn.Module,
        assigner: Callable[[Tensor, Tensor], Tensor],
        *,
        detections_per_image: int = 100,
        proposals: int | None = None,
        allowed_border: float | None = None,
        beta: float = 1 / 9,
    ) -> None:
        if proposals is not None and proposals < 1:
            raise ValueError(f"proposals must be at least 1, got {proposals}")
        if allowed_border is not None and not allowed_border >= 0:
            raise ValueError(f"allowed_border must not be negative, got {allowed_border}; None trains all anchors")
        kept = {"training": proposals or 2000, "testing": proposals or max(1000, detections_per_image)}
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=0.7,  # the assigner's matter, not these
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": max(2000, kept["training"]), "testing": max(1000, kept["testing"])},
            post_nms_top_n=kept,
            nms_thresh=0.7,
        )
        head.register_forward_hook(float32_outputs)
        self.assigner = assigner
        self.allowed_border = allowed_border
        self.beta = beta

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """torchvision's; the targets carry the sizes of their images to the assignment."""
        if targets is not None:
            targets = self.with_sizes(targets, images)
        outputs: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, features, targets)
        return outputs

    def padded(self, features: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The proposals of images that all are of `size` (h, w) without padding, see `srtod.models.heads.padded`.

        Returns:
            Proposals `[N, K, 4]`, best first, K being how many are kept, and which places hold one, bool `[N, K]`.
        """
        boxes, scores, levels, found = [], [], [], []
        for index, (level_boxes, objectness) in enumerate(self.level_boxes(features, size)):
            best, places, any_ = padded_topk(objectness, self.pre_nms_top_n())
            boxes.append(pick(level_boxes, places))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(places, index))
            found.append(any_)
        proposals, large = clipped(torch.cat(boxes, dim=1), size, self.min_size)
        places, valid = suppress(
            proposals,
            torch.cat(scores, dim=1),
            torch.cat(levels, dim=1),
            large & torch.cat(found, dim=1),
            iou=self.nms_thresh,
            most=self.post_nms_top_n(),
        )
        return pick(proposals, places).where(valid[..., None], 0), valid

    def level_boxes(self, features: dict[str, Tensor], size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[N, P, 4]` and the logits of their objectness `[N, P]`, of each level."""
        levels = list(features.values())
        found = []
        for objectness, deltas, anchors in zip(
            *self.head(levels), self.anchor_generator.of_levels(levels), strict=True
        ):
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # [N, P, 4]
            boxes = self.box_coder.decode_single(deltas.flatten(0, 1), anchors.repeat(deltas.shape[0], 1))
            found.append((boxes.unflatten(0, deltas.shape[:2]), objectness.permute(0, 2, 3, 1).flatten(1)))
        return found

    def with_sizes(self, targets: list[dict[str, Tensor]], images: ImageList) -> list[dict[str, Tensor]]:
        """The targets with `size` `[2]`, height and width of their image."""
        sizes = [torch.tensor(size) for size in images.image_sizes]
        return [target | {"size": size} for target, size in zip(targets, sizes, strict=True)]

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What each anchor has to find.

        Args:
            anchors: anchors of each image, `[A, 4]`.
            targets: `boxes` `[M, 4]` of each image, M may be 0, and perhaps `ignore` `[K, 4]`. Where a border is given,
                also `size` `[2]`, height and width of the image.

        Returns:
            For each image the anchors' labels `[A]`, 1 for an object, 0 for background and -1 for ignored anchors, and
            their objects' boxes `[A, 4]`, which mean nothing where the label is not 1.
        """
        labels, boxes = [], []
        for image_anchors, target in zip(anchors, targets, strict=True):
            owners = self._owners(image_anchors, target)
            owners = without_negatives_inside(owners, image_anchors, target.get("ignore"))
            labels.append((owners + 1).clamp(min=-1, max=1).to(image_anchors.dtype))
            none = len(target["boxes"]) == 0
            boxes.append(image_anchors if none else target["boxes"].to(image_anchors.dtype)[owners.clamp(min=0)])
        return labels, boxes

    def _owners(self, anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The object of each anchor `[A, 4]` of an image, `[A]`, see `srtod.models.assigners`.

        Anchors beyond the border are left out as mmdetection's `anchor_inside_flags` does: one that touches the right
        or lower border lies beyond it, one that touches the left or upper border does not.
        """
        if self.allowed_border is None:
            return self.assigner(target["boxes"], anchors)
        height, width = target["size"].tolist()
        x1, y1, x2, y2 = anchors.unbind(dim=1)
        border = self.allowed_border
        inside = (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)
        owners = torch.full_like(inside, IGNORED, dtype=torch.int64)
        owners[inside] = self.assigner(target["boxes"], anchors[inside])
        return owners

    def compute_loss(
        self,
        objectness: Tensor,  # [N * A, 1], logits
        pred_bbox_deltas: Tensor,  # [N * A, 4]
        labels: list[Tensor],  # [A] each
        regression_targets: list[Tensor],  # [A, 4] each
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, and `box_loss` of the positives; both divided by the number of samples; 0 for none.

        torchvision's losses, but for `beta`, and for 0 where all anchors are ignored, which to torchvision is 0 / 0.
        """
        positive, negative = (torch.where(torch.cat(of_images))[0] for of_images in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        samples = max(1, len(sampled))
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        box_loss = self.box_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive])
        return objectness_loss / samples, box_loss / samples

    def box_loss(self, predicted: Tensor, aims: Tensor) -> Tensor:
        """Of predicted offsets `[K, 4]` and those of the objects `[K, 4]`: SmoothL1, summed."""
        return F.smooth_l1_loss(predicted, aims, beta=self.beta, reduction="sum")


def region_proposal_network(
    channels: int, strides: Sequence[int], anchor_scale: float, **options: Any
) -> ProposalNetwork:
    """A `ProposalNetwork` with square, wide and high anchors that are assigned by IoU, 0.7 and 0.3.

    Args:
        channels: channels of the pyramid.
        strides: stride of each level, in pixels.
        anchor_scale: side of a square anchor, in strides.
        options: further options of `ProposalNetwork`.
    """
    anchors = PyramidAnchors(strides, [(anchor_scale * stride,) for stride in strides])
    head = RPNHead(channels, num_anchors=len(ASPECT_RATIOS))
    return ProposalNetwork(anchors, head, MaxIoUAssigner(0.7, 0.3), **options)


def float32_outputs(module: nn.Module, args: Any, outputs: Any) -> Any:
    """A forward hook: torchvision decodes boxes in the predictions' type, which autocast would make too coarse."""
    return tuple([x.float() for x in out] if isinstance(out, list) else out.float() for out in outputs)
