"""Assignment by the highest IoU, of Faster R-CNN and RetinaNet."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import make_blocks, overlapping
from .owners import IGNORED, all_background, check

__all__ = ["MaxIoUAssigner"]


class MaxIoUAssigner:
    """Priors by their highest IoU (Ren et al., "Faster R-CNN", 2015, section 3.1.2); equals torchvision's `Matcher`.

    A prior belongs to the object with which its IoU is highest if that is at least `foreground`, is background below
    `background`, and ignored between. With `low_quality`, the priors that overlap an object most, all that tie, belong
    to the object that they themselves overlap most, however little that is.

    An object that no prior overlaps at all takes none: to torchvision it ties with every prior at IoU 0, and so makes
    the whole image an object.

    Args:
        foreground: IoU from which a prior belongs to an object.
        background: IoU below which it is background.
        low_quality: whether an object takes its best priors in any case.

    Raises:
        ValueError: if not 0 <= background <= foreground <= 1.
    """

    def __init__(self, foreground: float = 0.7, background: float = 0.3, *, low_quality: bool = True) -> None:
        if not 0 <= background <= foreground <= 1:
            raise ValueError(
                f"the IoUs must obey 0 <= background <= foreground <= 1, got background={background} and "
                f"foreground={foreground}"
            )
        self.foreground = foreground
        self.background = background
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(
        self,
        gt_boxes: Tensor,  # [M, 4], in pixels
        priors: Tensor,  # [P, 4], in pixels; sides may be 0, as of proposals clipped to the image
    ) -> Tensor:
        """The object of each prior, `[P]`, see `srtod.models.assigners`.

        Raises:
            ValueError: if boxes have the wrong shape, are not finite or have negative sides.
        """
        gt_boxes, priors = check(gt_boxes, priors, allow_empty_priors=True)
        assigned = all_background(priors)
        if len(gt_boxes) == 0 or len(priors) == 0:
            return assigned
        blocks = make_blocks(priors)
        highest = priors.new_zeros(len(priors))
        highest_of_object = gt_boxes.new_zeros(len(gt_boxes))
        for objects, indices, iou in overlapping(gt_boxes, priors, blocks):
            highest.scatter_reduce_(0, indices.flatten(), iou.flatten(), "amax")
            highest_of_object.scatter_reduce_(0, objects, iou.amax(dim=1), "amax")
        owner = torch.full_like(assigned, len(gt_boxes))
        owner[highest == 0] = 0  # the first of equally bad objects, as in torchvision; counts if foreground = 0
        wanted = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
        for objects, indices, iou in overlapping(gt_boxes, priors, blocks):
            rows, slots = ((iou == highest[indices]) & (iou > 0)).nonzero().unbind(dim=1)
            owner.scatter_reduce_(0, indices[rows, slots], objects[rows], "amin")
            wanted[indices[(iou == highest_of_object[objects, None]) & (iou > 0)]] = True
        assigned[highest >= self.background] = IGNORED
        positive = highest >= self.foreground
        return torch.where(positive | wanted if self.low_quality else positive, owner, assigned)
