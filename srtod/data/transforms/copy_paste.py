"""Copy-paste of tiny objects within an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from srtod.data.detection import Sample, Target

__all__ = ["CopyPaste"]

MAX_SIDE = 32
"""Longer side of the largest object that is copied, in pixels."""

MARGIN = 3
"""Width of the surroundings that come along with an object and fade out, in pixels."""

MAX_COPIES = 100
"""Copies in an image, more of which would take seconds."""

TRIES = 30
"""Places that are looked at for a copy."""


class CopyPaste(v2.Transform):
    """Copies random tiny objects of an image to free places in it, half of them mirrored.

    After Kisantal et al., "Augmentation for small object detection" (2019): tiny objects cover so few pixels that few
    anchors ever meet one; copies give more of them, in more places. Without masks an object is copied as a rectangle:
    its box with a margin of 3 px, over which it fades into its new place, lest its edges give it away (Dwibedi et al.,
    "Cut, Paste and Learn", ICCV 2017). Of 30 random places it gets the one that differs least from its margin: a
    patch of sky on a mountain would be found by its background, and objects are where such objects are (Dvornik et
    al., "Modeling visual context is key to augmenting object detection datasets", ECCV 2018). Pixels in the box are
    copied as they are, shifted by whole pixels, so that the copy's box is as exact as the original's.

    Neither the rectangle that is copied nor the place that it goes to touches another object, an ignore region or
    the image's border. In a crowded image, where none of the 30 places is free, a copy is left out.

    Args:
        copies: the most copies in an image, up to 100; how many are tried is drawn from 0 to this.

    Raises:
        ValueError: if `copies` is negative or more than 100.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        if not 0 <= copies <= MAX_COPIES:
            raise ValueError(f"copy_paste must be from 0 to {MAX_COPIES}, got {copies}")
        self.copies = copies

    def forward(self, image: Tensor, target: Target) -> Sample:
        """Adds copies to an image `[3, H, W]`, which is left as it is, and to the boxes and labels of its target."""
        boxes = target["boxes"].as_subclass(Tensor)
        taken = torch.cat([boxes, target["ignore"].as_subclass(Tensor)]) if "ignore" in target else boxes
        size = (image.shape[-1], image.shape[-2])
        sources = _sources(boxes, taken, size)
        count = int(torch.randint(self.copies + 1, ()))
        if not len(sources) or not count:
            return image, target

        pixels = image.as_subclass(Tensor).clone()
        copied, copies = [], []
        for source in sources[torch.randint(len(sources), (count,))].tolist():
            x1, y1, x2, y2 = _rectangle(boxes[source]).tolist()
            patch = image.as_subclass(Tensor)[:, y1:y2, x1:x2]
            box = boxes[source] - torch.tensor([x1, y1, x1, y1])
            if torch.rand(()) < 0.5:
                patch, box = patch.flip(-1), torch.stack([x2 - x1 - box[2], box[1], x2 - x1 - box[0], box[3]])
            place = _best_place(pixels, patch, taken)
            if place is not None:
                _paste(pixels, patch, place)
                copied.append(source)
                copies.append(box + place.repeat(2))
                taken = torch.cat([taken, copies[-1][None]])
        if not copies:
            return image, target
        return tv_tensors.wrap(pixels, like=image), target | {
            "boxes": tv_tensors.wrap(torch.cat([boxes, torch.stack(copies)]), like=target["boxes"]),
            "labels": torch.cat([target["labels"], target["labels"][copied]]),
        }

    def extra_repr(self) -> str:
        return f"copies={self.copies}"


def _rectangle(boxes: Tensor) -> Tensor:
    """Whole pixels that boxes `[..., 4]` touch, with the margin around: int64 `[..., 4]`."""
    return torch.cat([boxes[..., :2].floor() - MARGIN, boxes[..., 2:].ceil() + MARGIN], dim=-1).long()


def _sources(boxes: Tensor, taken: Tensor, size: tuple[int, int]) -> Tensor:
    """Indices `[K]` of the boxes `[M, 4]` that can be copied: tiny, inside the image of this width and height, alone.

    `taken` starts with the boxes themselves.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny = ((sides > 0) & (sides <= MAX_SIDE)).all(dim=1).nonzero()[:, 0]
    rectangles = _rectangle(boxes[tiny])
    inside = (rectangles[:, :2] >= 0).all(dim=1) & (rectangles[:, 2:] <= torch.tensor(size)).all(dim=1)
    alone = _overlaps(rectangles, taken).sum(dim=1) == 1  # with itself
    return tiny[inside & alone]


def _best_place(pixels: Tensor, patch: Tensor, taken: Tensor) -> Tensor | None:
    """Left and top `[2]` of the random place in the pixels `[3, H, W]` where a patch `[3, h, w]` fits in best.

    None, if it would overlap one of the boxes that are taken `[M, 4]` at every place looked at.
    """
    height, width = patch.shape[-2:]
    room = torch.tensor([pixels.shape[-1] - width + 1, pixels.shape[-2] - height + 1])
    corners = (torch.rand(TRIES, 2, dtype=torch.float64) * room).long()
    free = corners[~_overlaps(torch.cat([corners, corners + torch.tensor([width, height])], dim=1), taken).any(dim=1)]
    if not len(free):
        return None
    rows = free[:, 1, None, None] + torch.arange(height)[:, None]
    columns = free[:, 0, None, None] + torch.arange(width)
    margin = _opacity(height, width) < 1
    difference = (pixels[:, rows, columns] - patch[:, None])[..., margin]  # [3, K, pixels of the margin]
    return free[difference.abs().mean(dim=(0, 2)).argmin()]


def _overlaps(rectangles: Tensor, boxes: Tensor) -> Tensor:
    """Which rectangles `[K, 4]` share an area with which boxes `[M, 4]`: bool `[K, M]`."""
    return ((rectangles[:, None, :2] < boxes[:, 2:]) & (boxes[:, :2] < rectangles[:, None, 2:])).all(dim=2)


def _paste(pixels: Tensor, patch: Tensor, place: Tensor) -> None:
    """Blends a patch `[3, h, w]` into the pixels `[3, H, W]` at a place (left, top)."""
    height, width = patch.shape[-2:]
    left, top = place.tolist()
    there = pixels[:, top : top + height, left : left + width]
    there.lerp_(patch, _opacity(height, width).to(patch.dtype))


def _opacity(height: int, width: int) -> Tensor:
    """Opacity `[h, w]` of a patch: 1, but for the margin, over which it falls to the edges."""
    ramps = []
    for length in (height, width):
        steps = torch.arange(length)
        ramps.append((torch.minimum(steps, steps.flip(0)) + 1).div(MARGIN + 1).clamp(max=1))
    return ramps[0][:, None] * ramps[1]
