"""What a reconstruction learns beside the image: masks of the objects' boxes, and losses made with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srtod.ops import reconstruction_difference

__all__ = ["ImageError", "mask_loss", "object_mask"]


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


class ImageError:
    """How far the reconstruction of some images is off: the difference map and the loss, of all rows or of a strip.

    The loss is the mean squared error (SR-TOD, Sec. 3.2). The losses of strips add up to that of all rows.

    Args:
        image: `[N, 3, H, W]` in [0, 1].
        from_logits: whether predictions are logits, or in [0, 1].
        sizes: (height, width) of each image without its padding, which counts in no loss; None: all pixels count.
        mask: the pixels whose mean squared error is added to the loss, bool `[N, 1, H, W]`; None: none.
    """

    def __init__(
        self,
        image: Tensor,
        *,
        from_logits: bool,
        sizes: Sequence[tuple[int, int]] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.image = image
        self.from_logits = from_logits
        self.sizes = sizes
        self.mask = mask

    def __call__(self, prediction: Tensor, top: int = 0) -> tuple[Tensor, Tensor]:
        """The difference map `[N, 1, rows, W]`, and the loss `[]`, of a prediction `[N, 3, rows, W]`.

        Args:
            prediction: of the rows from `top` on.
            top: the first row.
        """
        height, width = self.image.shape[2:]
        rows = prediction.shape[2]
        image = self.image[:, :, top : top + rows]
        sizes = [(height, width)] * len(image) if self.sizes is None else self.sizes
        inside = [(min(max(h - top, 0), rows), w) for h, w in sizes]
        share = sum(h * w for h, w in inside) / sum(h * w for h, w in sizes)
        valid_size = None
        if self.sizes is not None:
            valid_size = torch.tensor(inside, dtype=torch.int64).to(image.device, non_blocking=True)
        difference, loss = reconstruction_difference(
            prediction, image, from_logits=self.from_logits, valid_size=valid_size
        )
        loss = share * loss if share else torch.zeros_like(loss)  # a strip of padding has no mean
        if self.mask is not None:
            loss = loss + self._error_inside(prediction, image, self.mask[:, :, top : top + rows])
        return difference, loss

    def _error_inside(self, prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """These rows' part of the mean squared error of the pixels in the mask, `[]`."""
        assert self.mask is not None
        rebuilt = prediction.sigmoid() if self.from_logits else prediction
        error = (rebuilt - image).square().mean(dim=1, keepdim=True)
        return (error * mask).sum() / self.mask.sum().clamp(min=1)


def mask_loss(logits: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean binary cross-entropy of a predicted mask, `[]` (ORFENet, TGRS 2024).

    Args:
        logits: `[N, 1, h, w]`.
        mask: bool `[N, 1, h, w]`.
        valid: which pixels count, bool `[N, 1, h, w]`; None: all.
    """
    loss = F.binary_cross_entropy_with_logits(logits, mask.to(logits.dtype), reduction="none")
    return loss.mean() if valid is None else (loss * valid).sum() / valid.sum()
