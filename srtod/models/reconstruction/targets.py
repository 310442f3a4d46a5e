"""What a reconstruction learns beside the image: masks of the objects' boxes, and losses made with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["error_inside", "mask_loss", "object_mask"]


def object_mask(boxes: Sequence[Tensor], size: tuple[int, int], stride: int = 1) -> Tensor:
    """Which pixels of a map the objects of each image touch.

    Args:
        boxes: the boxes of each image, `[M, 4]`, (x1, y1, x2, y2) in pixels of the image; M may be 0.
        size: (h, w) of the map.
        stride: pixels of the image that a pixel of the map covers along each axis.

    Returns:
        bool `[N, 1, h, w]`.
    """
    h, w = size
    masks = []
    for objects in boxes:
        low = (objects[:, :2] / stride).floor().long()
        high = (objects[:, 2:] / stride).ceil().long()
        (x1, y1), (x2, y2) = (
            (corner[:, 0].clamp(0, w), corner[:, 1].clamp(0, h)) for corner in (low, torch.maximum(high, low + 1))
        )
        # A box adds 1 from its first row and column on and takes it back behind its last: two sums fill all of them.
        corners = objects.new_zeros(h + 1, w + 1, dtype=torch.int32)
        for rows, columns, sign in ((y1, x1, 1), (y1, x2, -1), (y2, x1, -1), (y2, x2, 1)):
            corners.index_put_((rows, columns), torch.full_like(rows, sign, dtype=torch.int32), accumulate=True)
        masks.append(corners.cumsum(0).cumsum(1)[None, :h, :w] > 0)
    return torch.stack(masks)


def error_inside(prediction: Tensor, image: Tensor, mask: Tensor, *, from_logits: bool) -> Tensor:
    """The mean squared error of the pixels in a mask, `[]`; 0 where the mask is empty.

    Args:
        prediction: the reconstruction in [0, 1] or its logits, `[N, 3, H, W]`.
        image: `[N, 3, H, W]` in [0, 1].
        mask: bool `[N, 1, H, W]`.
        from_logits: whether `prediction` is logits.
    """
    rebuilt = prediction.sigmoid() if from_logits else prediction
    error = (rebuilt - image).square().mean(dim=1, keepdim=True)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def mask_loss(logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean binary cross-entropy of a predicted mask, `[]` (ORFENet, TGRS 2024).

    Args:
        logits: `[N, 1, h, w]`.
        mask: bool `[N, 1, h, w]`.
        valid: which pixels count, bool `[N, 1, h, w]`; None: all.
    """
    loss = F.binary_cross_entropy_with_logits(logits, mask.to(logits.dtype), reduction="none")
    return loss.mean() if valid is None else (loss * valid).sum() / valid.sum()
