"""The swarm set: generated pictures of small drones over sky, mountains and a city, with their boxes.

It needs no download, so it is the default of `python -m srtod.train`. An image is deterministic from `(seed, index)`,
in any order of access and on any machine: NumPy freezes the streams of `RandomState` (NEP 19), and everything is
computed by elementwise + - * /, square roots and comparisons, which IEEE 754 rounds in one way. (Long sums, and exp,
sin or pow, differ between processors in the last bit.) This file holds the data set and the drones;
`srtod.data.scenery` paints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from .detection import DetectionDataset, Sample, Target
from .scenery import Shape, background, camera, extent, paint, uniform

__all__ = ["KINDS", "MIN_SIDE", "SwarmDataset"]


class Kind(NamedTuple):
    """How hard the images of a swarm set are.

    Attributes:
        drone_size: smallest and largest drone: square root of the box area, in pixels.
        contrasts: least and most contrast of drones and birds with what is behind them, of a range of 1.
        birds: fewest and most birds in an image.
        bird_size: smallest and largest bird: half of its span, in pixels.
    """

    drone_size: tuple[float, float] = (3.0, 16.0)
    contrasts: tuple[float, float] = (0.15, 0.6)
    birds: tuple[int, int] = (0, 6)
    bird_size: tuple[float, float] = (2.0, 6.0)


KINDS = {
    "usual": Kind(),
    "hard": Kind(drone_size=(3.0, 8.0), contrasts=(0.08, 0.3), birds=(10, 30), bird_size=(1.5, 4.0)),
}
"""The kinds of swarm sets by name."""

NUM_DRONES = (10, 60)
"""Fewest and most drones in an image."""

MIN_SIDE = 128
"""Smallest side of an image, in pixels, that holds the largest swarm with little overlap."""

_MAX_OVERLAP = 0.1  # of the smaller box
_PLACEMENTS = 50  # tries before an overlap is put up with


class SwarmDataset(DetectionDataset):
    """Generated images of 10-60 drones of 3-16 px (square root of the box area), one class, made on the fly.

    Of kind "hard" the drones have 3-8 px and little contrast, among 10-30 birds of their size.

    Drones are anti-aliased multicopters and fixed-wing craft of random kind, attitude, contrast and sub-pixel
    position; the boxes are tight, with little overlap. Birds and lit windows are there to be told apart, and are not
    annotated. Image `index` depends on `seed` and `index` alone, so sets of other seeds share no image: train on one
    seed, test on another.

    Args:
        num_images: number of images.
        size: height and width of the images in pixels, each at least 128.
        seed: which set, a non-negative integer below 2**32.
        transforms: called as `transforms(image, target)` on every sample.
        kind: one of `KINDS`.

    Raises:
        ValueError: if there is no image, a side is too short for a swarm, or the seed or the kind is not as above.
    """

    def __init__(
        self,
        num_images: int = 500,
        size: tuple[int, int] = (256, 256),
        seed: int = 0,
        transforms: Callable[[Tensor, Target], Sample] | None = None,
        kind: str = "usual",
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if min(size) < MIN_SIDE:
            raise ValueError(f"size must be (height, width) of at least {MIN_SIDE} pixels each, got {tuple(size)}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1, got {seed}")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.num_images = num_images
        self.size = size
        self.seed = seed
        self.transforms = transforms
        self.kind = KINDS[kind]
        self.class_names = ["drone"]
        self.category_ids = [1]

    @cached_property
    def ground_truth(self) -> dict[str, Any]:
        height, width = self.size
        images = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            images.append({"id": index + 1, "file_name": self._file_name(index), "width": width, "height": height})
            _, boxes = _swarm(self._random(index, "swarm"), self.size, self.kind)
            for x1, y1, x2, y2 in boxes.tolist():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "drone"}]}

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a set of {len(self)} images")
        drones, boxes = _swarm(self._random(index, "swarm"), self.size, self.kind)
        pixels = _picture(self._random(index, "picture"), self.size, drones, self.kind)
        image = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        labels = np.ones(len(boxes), dtype=np.int64)
        return self._sample(image.div_(255), boxes, labels, index + 1, self._file_name(index), ignore=np.empty((0, 4)))

    def _file_name(self, index: int) -> str:
        return f"swarm_{self.seed}_{index:05d}.png"

    def _random(self, index: int, part: str) -> RandomState:
        """The stream of one part of an image; the swarm has its own, so that boxes can be had without pictures."""
        return RandomState([self.seed, index, ("swarm", "picture").index(part)])


def _swarm(random: RandomState, size: tuple[int, int], kind: Kind = KINDS["usual"]) -> tuple[list[Shape], np.ndarray]:
    """The drones of an image and their boxes [M, 4] (x1, y1, x2, y2) in pixels; some swarms gather in a part of it."""
    size_xy = np.array(size[::-1])
    count = random.randint(NUM_DRONES[0], NUM_DRONES[1] + 1)
    gathering = random.choice([0.0, 0.0, 0.3, 0.5])
    centre = random.random_sample(2)
    drones = []
    boxes = np.zeros((count, 4))
    for drone in range(count):
        shape = _multicopter(random) if random.random_sample() < 0.8 else _fixed_wing(random)
        x1, y1, x2, y2 = extent(shape)
        shape[:, :5] *= _side(random, kind.drone_size) / np.sqrt((x2 - x1) * (y2 - y1))
        x1, y1, x2, y2 = extent(shape)
        sides = np.array([x2 - x1, y2 - y1])
        for attempt in range(_PLACEMENTS):
            closeness = gathering * (1 - attempt / _PLACEMENTS)  # where it is crowded, a swarm spreads
            corner = (size_xy - sides) * (closeness * centre + (1 - closeness) * random.random_sample(2))
            boxes[drone] = np.concatenate([corner, corner + sides])
            if _overlap(boxes[drone], boxes[:drone]) <= _MAX_OVERLAP:
                break
        shape[:, :4] += np.tile(corner - (x1, y1), 2)
        drones.append(shape)
    return drones, boxes


def _side(random: RandomState, sizes: tuple[float, float]) -> float:
    """The square root of a box's area, in pixels; the small ones are the most."""
    share = random.random_sample()
    return sizes[0] + (sizes[1] - sizes[0]) * share * (0.5 + 0.5 * share)


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Largest intersection of a box [4] with any of the others [M, 4], as a share of the smaller of the two."""
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0)
    others_sides, box_sides = others[:, 2:] - others[:, :2], box[2:] - box[:2]
    smaller = np.minimum(others_sides[:, 0] * others_sides[:, 1], box_sides[0] * box_sides[1])
    return float((sides[:, 0] * sides[:, 1] / smaller).max(initial=0))


def _multicopter(random: RandomState) -> Shape:
    """A body, four or six arms with rotor discs and at times legs, seen from a low or a high angle."""
    arms, turn = (4, (0.0, 1.0)) if random.random_sample() < 0.75 else (6, (0.5, np.sqrt(0.75)))
    elevation = uniform(random, 0.15, 0.9)  # sine of the angle of view
    rotor = uniform(random, 0.3, 0.45)
    body = uniform(random, 0.18, 0.3)
    parts = [[-body, 0.0, body, 0.0, 0.7 * body, 1.0]]
    arm = _direction(uniform(random, 0.0, 0.4))
    for _ in range(arms):
        x, y = arm[0], arm[1] * elevation
        flat = rotor * elevation
        parts += [[0.0, 0.0, x, y, 0.08, 1.0], [x - rotor + flat, y - 0.1, x + rotor - flat, y - 0.1, flat, 0.6]]
        arm = _rotate(arm, turn)
    if random.random_sample() < 0.5:
        parts += [[side * body, 0.0, side * body * 1.5, 0.6, 0.08, 1.0] for side in (-1, 1)]
    return _tilt(random, parts)


def _fixed_wing(random: RandomState) -> Shape:
    """A fuselage with swept wings and a tail, seen from below or more from the side."""
    sweep = uniform(random, 0.1, 0.6)
    span = uniform(random, 0.4, 1.0)
    parts = [[-0.7, 0.0, 0.7, 0.0, 0.12, 1.0]]
    for side in (-span, span):
        parts += [[0.2, 0.0, 0.2 - sweep, side, 0.1, 1.0], [-0.62, 0.0, -0.75, 0.35 * side, 0.08, 1.0]]
    return _tilt(random, parts)


def _bird(random: RandomState) -> Shape:
    """A body and two wings, up or down."""
    flap = uniform(random, -0.6, 0.5)
    parts = [[-0.2, 0.0, 0.25, 0.0, 0.12, 1.0], [0.0, 0.0, -0.9, flap, 0.08, 1.0], [0.0, 0.0, 0.9, flap, 0.08, 1.0]]
    return _tilt(random, parts)


def _tilt(random: RandomState, parts: list[list[float]]) -> Shape:
    """The shape of these capsules, facing either way and rolled by up to 23 degrees."""
    shape = np.array(parts)
    cosine, sine = _direction(uniform(random, -0.2, 0.2))
    x, y = shape[:, 0:4:2] * random.choice([-1, 1]), shape[:, 1:4:2].copy()
    shape[:, 0:4:2], shape[:, 1:4:2] = x * cosine - y * sine, x * sine + y * cosine
    return shape


def _direction(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of an angle, from the tangent of its half."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _rotate(vector: tuple[float, float], turn: tuple[float, float]) -> tuple[float, float]:
    return vector[0] * turn[0] - vector[1] * turn[1], vector[0] * turn[1] + vector[1] * turn[0]


def _picture(random: RandomState, size: tuple[int, int], drones: list[Shape], kind: Kind) -> np.ndarray:
    """The picture, uint8 [H, W, 3], of the drones among birds."""
    picture = background(random, size)
    height, width = size
    for _ in range(random.randint(kind.birds[0], kind.birds[1] + 1)):
        bird = _bird(random)
        bird[:, :5] *= uniform(random, *kind.bird_size)
        bird[:, :4] += np.array([width, height, width, height]) * np.tile(random.random_sample(2), 2)
        paint(random, picture, bird, kind.contrasts)
    for drone in drones:
        paint(random, picture, drone, kind.contrasts)
    return camera(random, picture)
