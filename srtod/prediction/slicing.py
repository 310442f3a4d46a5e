"""Sliced prediction: a large picture as overlapping tiles, whose detections are merged into one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .merging import Overlap, suppress

__all__ = ["Slicing", "Tile", "detect_sliced", "tiles"]

Detections = dict[str, Tensor]

BORDER = 2.0
"""A box that ends within so many pixels of where its tile was cut may be a part of an object."""


@dataclass(frozen=True)
class Slicing:
    """How pictures are cut into tiles.

    Args:
        size: height and width of a tile in pixels; "auto": the longer side of the training images, which `Predictor`
            knows from the checkpoint.
        overlap: how much of a tile its neighbours see too, as a share of the size. An object as large as the overlap
            lies whole in one tile.
        merge: boxes of a class from different tiles that overlap by more than the threshold are one object: by the
            intersection over the union, "iou", or over the smaller box, "ios". A box that ends where its tile was cut,
            and so may be a part of an object, is always measured over the smaller box.
        threshold: of the merging.

    Raises:
        ValueError: if a value is out of its range.
    """

    size: int | Literal["auto"]
    overlap: float = 0.2
    merge: Overlap = "iou"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.size != "auto" and self.size < 32:
            raise ValueError(f"tiles must have at least 32 pixels a side, got {self.size}")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"the overlap of tiles must be from 0 to 0.9 of their size, got {self.overlap}")
        if self.merge not in ("iou", "ios") or not 0 < self.threshold < 1:
            raise ValueError(
                f"tiles are merged by iou or ios, with a threshold between 0 and 1, got {self.merge!r} and "
                f"{self.threshold}"
            )

    @property
    def pixels(self) -> int:
        """The size, where it is a number."""
        if self.size == "auto":
            raise ValueError("the size of tiles is auto, which Predictor alone can replace; pass a number")
        return self.size


class Tile(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Tensor) -> Tensor:
        """The part of an image `[3, H, W]`, a view."""
        return image[:, self.top : self.top + self.height, self.left : self.left + self.width]


def tiles(height: int, width: int, slicing: Slicing) -> list[Tile]:
    """The tiles that cover a picture, row by row; all of one size, the last ones moved inwards to end where it ends."""
    size = slicing.pixels
    rows, columns = (_starts(side, size, slicing.overlap) for side in (height, width))
    return [Tile(top, left, min(size, height), min(size, width)) for top in rows for left in columns]


def _starts(side: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: evenly, as far apart as the overlap allows."""
    room = side - size
    if room <= 0:
        return [0]
    count = -(-room // max(1, int(size * (1 - overlap))))
    return [room * index // count for index in range(count + 1)]


def detect_sliced(
    image: Tensor,
    detect: Callable[[Sequence[Tensor]], list[Detections]],
    slicing: Slicing,
    *,
    batch_size: int = 1,
    detections: int | None = None,
) -> Detections:
    """Finds the objects of a picture tile by tile; one that several tiles see comes once.

    Args:
        image: `[3, H, W]` in [0, 1].
        detect: finds the objects of a batch of images of one size.
        slicing: how to cut and merge.
        batch_size: the most tiles at once.
        detections: the most objects, the best; None for no limit.

    Returns:
        `boxes` `[K, 4]` in pixels of the picture, `labels` `[K]` and `scores` `[K]`, best first.
    """
    height, width = image.shape[-2:]
    places = tiles(height, width, slicing)
    found: list[Detections] = []
    for begin in range(0, len(places), batch_size):
        batch = places[begin : begin + batch_size]
        results = detect([tile.cut(image) for tile in batch])
        found += [_placed(result, tile, height, width) for result, tile in zip(results, batch, strict=True)]
    tile_of = torch.arange(len(found)).repeat_interleave(torch.tensor([len(result["scores"]) for result in found]))
    merged = {name: torch.cat([result[name] for result in found]) for name in found[0]}
    is_cut = merged.pop("is_cut")
    # A part of an object may score higher than the whole one that another tile sees.
    kept = suppress(
        merged["boxes"],
        merged["scores"],
        merged["labels"],
        overlap=slicing.merge,
        threshold=slicing.threshold,
        parts=is_cut,
        groups=tile_of.to(is_cut.device),  # the detector has settled what overlaps within a tile
    )[:detections]
    return {name: values[kept] for name, values in merged.items()}


def _placed(result: Mapping[str, Tensor], tile: Tile, height: int, width: int) -> Detections:
    """A tile's detections in pixels of the picture; `is_cut` says which may go on beyond the tile."""
    boxes = result["boxes"]
    ends = boxes.new_tensor([tile.width, tile.height])
    inside = boxes.new_tensor(
        [tile.left > 0, tile.top > 0, tile.left + tile.width < width, tile.top + tile.height < height],
        dtype=torch.bool,
    )
    margins = torch.cat([boxes[:, :2], ends - boxes[:, 2:]], dim=1)
    moved = boxes + boxes.new_tensor([tile.left, tile.top] * 2)
    return {**result, "boxes": moved, "is_cut": ((margins < BORDER) & inside).any(dim=1)}
