"""Sliced prediction: tiles cover the picture, and each object comes once, whole, at its place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import srtod
from srtod.prediction import Slicing
from srtod.prediction.slicing import detect_sliced, tiles


@pytest.mark.parametrize(("height", "width"), [(640, 640), (641, 640), (100, 2000), (1500, 1300), (32, 33)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_overlap(height: int, width: int, overlap: float) -> None:
    slicing = Slicing(640, overlap)
    places = tiles(height, width, slicing)
    seen = torch.zeros(height, width, dtype=torch.int64)
    for tile in places:
        assert (tile.height, tile.width) == (min(640, height), min(640, width))
        tile.cut(seen[None])[:] += 1
    assert seen.min() >= 1
    for starts in (sorted({tile.top for tile in places}), sorted({tile.left for tile in places})):
        assert all(later - sooner <= 640 - 640 * overlap for sooner, later in itertools.pairwise(starts))
    if height <= 640 >= width:
        assert len(places) == 1


class Bright:
    """A detector of bright rectangles in the dark: a box around each, the smaller the surer, as parts may be."""

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        boxes = []
        for value in image.unique():
            if value > 0:
                rows, columns = torch.nonzero(image[0] == value, as_tuple=True)
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        area = (found[:, 2:] - found[:, :2]).prod(dim=1)
        return {"boxes": found, "labels": torch.ones(len(found), dtype=torch.int64), "scores": 1 / (1 + area)}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_objects_at_the_borders_of_tiles_come_once_and_whole(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image, boxes = torch.zeros(3, 300, 420), []
    for row in range(10):
        for column in range(14):
            x, y = (30 * place + int(torch.randint(0, 12, (), generator=generator)) for place in (column, row))
            w, h = torch.randint(4, 18, (2,), generator=generator).tolist()
            image[:, y : y + h, x : x + w] = (len(boxes) + 1) / 255
            boxes.append([x, y, x + w, y + h])
            if w > 8 < h:  # another one on it, as in a swarm
                image[:, y + 2 : y + 5, x + 1 : x + 4] = (len(boxes) + 1) / 255
                boxes.append([x + 1, y + 2, x + 4, y + 5])
    found = detect_sliced(image, Bright(), Slicing(100, 0.2), batch_size=batch_size)
    assert sorted(found["boxes"].int().tolist()) == sorted(boxes)
    [whole] = Bright()([image])
    assert sorted(found["boxes"].tolist()) == sorted(whole["boxes"].tolist())
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    assert len(detect_sliced(image, Bright(), Slicing(100, 0.2), detections=7)["scores"]) == 7


def test_an_object_larger_than_the_overlap_keeps_its_parts() -> None:
    """No tile sees it whole; its parts overlap too little to be one, and none is lost."""
    image = torch.zeros(3, 64, 200)
    image[:, 10:20, 20:180] = 1
    found = detect_sliced(image, Bright(), Slicing(100, 0.2))
    assert found["boxes"][:, 0].min() == 20
    assert found["boxes"][:, 2].max() == 180


def test_a_picture_of_one_tile_is_found_as_without_slicing(checkpoint: Path) -> None:
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    whole = srtod.Predictor(checkpoint, "cpu")(image)
    sliced = srtod.Predictor(checkpoint, "cpu", slicing=64)(image)
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


def test_slicing_by_the_training_size_needs_a_checkpoint_that_knows_it(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="was written before checkpoints knew the size of their training images; pass"):
        srtod.Predictor(checkpoint, "cpu", slicing="auto")


def test_an_object_of_several_classes_is_reported_once(checkpoint: Path) -> None:
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    every = srtod.Predictor(checkpoint, "cpu")(image)
    once = srtod.Predictor(checkpoint, "cpu", class_agnostic_nms=True)(image)
    assert 0 < once.count < every.count
    assert float(once["scores"][0]) == float(every["scores"][0])
    assert set(once["scores"].tolist()) <= set(every["scores"].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "tiles must have at least 32 pixels a side, got 8"),
        ({"overlap": 0.95}, "the overlap of tiles must be from 0 to 0.9 of their size, got 0.95"),
        ({"overlap": float("nan")}, "the overlap of tiles must be from 0 to 0.9"),
        ({"merge": "max"}, "tiles are merged by iou or ios"),
        ({"threshold": 1.0}, "tiles are merged by iou or ios, with a threshold between 0 and 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slicing(**{"size": 640} | options)  # type: ignore[arg-type]
