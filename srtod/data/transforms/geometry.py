"""Scale and crop: what changes the size of an image, its boxes and its ignore regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from srtod.data.detection import Sample, Target

__all__ = ["ObjectCrop", "RandomScale"]

AROUND_OBJECT = 0.8
"""Probability that a crop is placed around an object; the rest lie anywhere, so that plain background is seen too."""

MIN_VISIBLE = 0.5
"""Share of an object's area from which it is still an object where an edge of the crop cuts it."""


class RandomScale(v2.Transform):
    """Resizes image and boxes by a random factor, uniform in a range; the aspect ratio is kept.

    Sides are rounded to whole pixels, and boxes follow the rounded sides, each axis by its own true factor.

    Args:
        scale: lowest and highest factor.

    Raises:
        ValueError: if these are not two positive numbers, the lowest first.
    """

    def __init__(self, scale: Sequence[float]) -> None:
        super().__init__()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale_jitter must be two positive factors, the lowest first, got {tuple(scale)}")
        self.low, self.high = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        return {"size": [max(1, round(side * factor)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        output = F.resize(inpt, params["size"], antialias=True)
        # Rounding may carry an edge at the border beyond it, and a white pixel above 1.
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return F.clamp_bounding_boxes(output)
        return tv_tensors.wrap(output.clamp(0, 1), like=inpt)

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


class ObjectCrop(v2.Transform):
    """Cuts a random square window out of an image, mostly around an object, preferably a tiny one.

    Objects are drawn with a probability inverse to their size (the square root of the area): one of 4 px is eight times
    as likely as one of 32 px. Every place of the window that holds the object whole is equally likely, and of an object
    larger than the window every place within it. An axis that is no longer than the window stays whole.

    Boxes are clipped to the window, however thin that makes them. An object of which less than half the area is left
    becomes an ignore region: it is too little to be found and too much to be background.

    Args:
        side: side of the window, in pixels.
        around_object: probability that the window is placed around an object; otherwise it may lie anywhere.

    Raises:
        ValueError: if the side is not positive.
    """

    def __init__(self, side: int, around_object: float = AROUND_OBJECT) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"crop must be at least 1 pixel, got {side}")
        self.side = side
        self.around_object = around_object

    def forward(self, image: Tensor, target: Target) -> Sample:
        """Crops an image `[3, H, W]`, and what its target says of it."""
        height, width = image.shape[-2:]
        if max(height, width) <= self.side:
            return image, target
        left, top = self._corner(height, width, target["boxes"])
        window = {"top": top, "left": left, "height": min(self.side, height), "width": min(self.side, width)}
        boxes = F.crop(target["boxes"], **window)
        inside = _areas(boxes)
        seen = (inside > 0) & (inside >= MIN_VISIBLE * _areas(target["boxes"]))
        cut = (inside > 0) & ~seen
        regions = [boxes[cut]]
        if "ignore" in target:
            ignore = F.crop(target["ignore"], **window)
            regions.insert(0, ignore[_areas(ignore) > 0])
        return F.crop(image, **window), target | {
            "boxes": tv_tensors.wrap(boxes[seen], like=boxes),
            "labels": target["labels"][seen],
            "ignore": tv_tensors.wrap(torch.cat(regions), like=boxes),
        }

    def _corner(self, height: int, width: int, boxes: Tensor) -> tuple[int, int]:
        """Left and top of the window."""
        box = [0.0, 0.0, float(width), float(height)]
        if len(boxes) and float(torch.rand(())) < self.around_object:
            likelihood = _areas(boxes).clamp(min=1e-6).rsqrt()
            box = boxes[torch.multinomial(likelihood, 1)[0]].tolist()
        return self._start(box[0], box[2], width), self._start(box[1], box[3], height)

    def _start(self, begin: float, end: float, length: int) -> int:
        """Where the window starts along one axis, so that it holds [begin, end], or lies within if that is longer."""
        bounds = sorted((math.ceil(end) - self.side, math.floor(begin)))
        low, high = (max(0, min(bound, length - self.side)) for bound in bounds)
        return int(torch.randint(low, high + 1, ()))

    def extra_repr(self) -> str:
        return f"side={self.side}, around_object={self.around_object}"


def _areas(boxes: Tensor) -> Tensor:
    """Areas `[M]` of boxes `[M, 4]`, in square pixels."""
    boxes = boxes.as_subclass(Tensor)
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
