"""The painter of the swarm set: skies, mountains and cities, small shapes with smooth edges, and a camera.

Pictures are float32 arrays [H, W, 3], RGB in [0, 1], painted in place. For why there is no `sin`, `exp` or `sum`, see
`srtod.data.swarm`.
"""

from __future__ import annotations

from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState

__all__ = ["Shape", "background", "camera", "extent", "paint", "uniform"]

Shape: TypeAlias = np.ndarray
"""Capsules, float64 [P, 6]: the segment's ends x1, y1, x2, y2 and the radius in pixels, and the opacity in [0, 1]."""

_SKIES = (  # zenith, horizon, clouds, light
    ((0.23, 0.45, 0.75), (0.72, 0.83, 0.92), (0.97, 0.97, 0.98), 1.0),  # clear
    ((0.55, 0.58, 0.63), (0.78, 0.79, 0.80), (0.46, 0.48, 0.52), 0.8),  # overcast
    ((0.24, 0.27, 0.48), (0.95, 0.62, 0.38), (0.62, 0.38, 0.40), 0.55),  # dusk
    ((0.04, 0.06, 0.13), (0.17, 0.19, 0.28), (0.13, 0.14, 0.19), 0.2),  # night
)
_ROCKS = (
    (0.24, 0.33, 0.18),
    (0.42, 0.36, 0.29),
    (0.40, 0.42, 0.45),
    (0.16, 0.25, 0.17),
)  # meadow, earth, stone, forest
_FACADES = ((0.55, 0.53, 0.50), (0.62, 0.48, 0.38), (0.45, 0.50, 0.56), (0.74, 0.72, 0.68))
_LAMP = (1.0, 0.85, 0.55)


def uniform(random: RandomState, low: float, high: float) -> float:
    """A number in [low, high); unlike `random.uniform`, never a fused multiply-add, which rounds otherwise."""
    return low + (high - low) * random.random_sample()


def background(random: RandomState, size: tuple[int, int]) -> np.ndarray:
    """A sky; in two of three pictures with mountains or a city under it."""
    *colours, light = _SKIES[random.randint(len(_SKIES))]
    zenith, horizon, clouds = (np.array(colour, dtype=np.float32) for colour in colours)
    height, width = size
    descent = _down(height) / height
    picture = np.broadcast_to(zenith + (horizon - zenith) * descent, (height, width, 3)).copy()
    cover = (_noise(random, size, (5, 3)) - uniform(random, 0.35, 0.6)) * uniform(random, 2, 6)
    _mix(picture, clouds, cover[..., None].clip(0, uniform(random, 0.3, 0.9)))
    scene = random.randint(3)
    if scene == 1:
        _mountains(random, picture, horizon, light)
    elif scene == 2:
        _city(random, picture, horizon, light)
    return picture


def _mountains(random: RandomState, picture: np.ndarray, haze: np.ndarray, light: float) -> None:
    """Two to four ridges, the farther the paler."""
    height, width = picture.shape[:2]
    layers = random.randint(2, 5)
    for layer in range(layers):
        nearness = (layer + 1) / layers
        crest = (0.25 + 0.5 * nearness) * height - _noise(random, (1, width), (1, 3))[0] * uniform(
            random, 0.15, 0.45
        ) * height
        texture = 0.5 + _noise(random, (height, width), (12, 10))
        rock = np.array(_ROCKS[random.randint(len(_ROCKS))], dtype=np.float32) * light
        colour = haze + (rock * texture[..., None] - haze) * (0.35 + 0.6 * nearness)
        _mix(picture, colour, (_down(height) - crest[:, None] + 0.5).clip(0, 1))


def _city(random: RandomState, picture: np.ndarray, haze: np.ndarray, light: float) -> None:
    """Two rows of buildings with windows, of which more are lit the darker it is."""
    height, width = picture.shape[:2]
    for nearness in (0.5, 1.0):
        left = 0
        while left < width:
            right = left + random.randint(12, 36)
            top = int(height * (uniform(random, 0.3, 0.75) + 0.15 * nearness))
            facade = (
                np.array(_FACADES[random.randint(len(_FACADES))], dtype=np.float32) * light * uniform(random, 0.6, 1.1)
            )
            facade = haze + (facade - haze) * (0.3 + 0.6 * nearness)
            building = picture[top:, left:right]
            building[:] = facade
            _windows(random, building, light)
            left = right + random.randint(0, 6)


def _windows(random: RandomState, building: np.ndarray, light: float) -> None:
    """Windows of 2 pixels, in rows 4 to 6 pixels apart: lamps, or panes darker than the wall."""
    height, width = building.shape[:2]
    pitch = random.randint(4, 7)
    y, x = np.arange(height), np.arange(width)
    rooms = random.random_sample((height // pitch + 1, width // pitch + 1))[(y // pitch)[:, None], x // pitch][
        ..., None
    ]
    window = ((y % pitch >= pitch - 2)[:, None] & (x % pitch >= pitch - 2))[..., None]
    lamp = np.array(_LAMP, dtype=np.float32)
    _mix(building, lamp, window * (rooms < 0.45 - 0.4 * light) * np.float32(0.85))
    _mix(building, building * np.float32(0.6), window * (rooms > 0.6))


def extent(shape: Shape) -> tuple[float, float, float, float]:
    """The tight box (x1, y1, x2, y2) of a shape: a capsule ends one radius beyond its segment."""
    x, y, radius = shape[:, 0:4:2], shape[:, 1:4:2], shape[:, 4:5]
    return (x - radius).min(), (y - radius).min(), (x + radius).max(), (y + radius).max()


def paint(random: RandomState, picture: np.ndarray, shape: Shape, contrasts: tuple[float, float] = (0.15, 0.6)) -> None:
    """Paint a shape in one colour that stands out from the picture at its centre, mostly as a dark silhouette.

    Args:
        random: where contrast and colour come from.
        picture: what it is painted in.
        shape: the shape, in pixels of the picture.
        contrasts: least and most contrast with the picture, of a range of 1.
    """
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = extent(shape)
    left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
    patch = picture[top : int(y2) + 2, left : int(x2) + 2]
    behind = float(picture[min(int((y1 + y2) / 2), height - 1), min(int((x1 + x2) / 2), width - 1), 1])
    contrast = uniform(random, *contrasts)
    darker = behind > contrast and (behind + contrast > 1 or random.random_sample() < 0.7)
    grey = behind - contrast if darker else behind + contrast
    colour = (grey + 0.1 * (random.random_sample(3) - 0.5)).clip(0, 1)
    _mix(patch, colour.astype(np.float32), _coverage(shape, top, left, patch.shape[:2])[..., None])


def _coverage(shape: Shape, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """How much of each pixel [h, w] a shape covers: a smooth step of the distance from its centre to the edge."""
    y = top + 0.5 + np.arange(size[0])[:, None]
    x = left + 0.5 + np.arange(size[1])
    x1, y1, x2, y2, radius, opacity = shape.T[:, :, None, None]
    dx, dy = x2 - x1, y2 - y1
    along = (((x - x1) * dx + (y - y1) * dy) / np.maximum(dx * dx + dy * dy, 1e-9)).clip(0, 1)
    ox, oy = x - x1 - along * dx, y - y1 - along * dy
    # A part thinner than a pixel covers at most its own width of it.
    covered = (radius + 0.5 - np.sqrt(ox * ox + oy * oy)).clip(0, np.minimum(1, 2 * radius))
    return (1 - reduce(np.multiply, 1 - opacity * covered)).astype(np.float32)


def camera(random: RandomState, picture: np.ndarray) -> np.ndarray:
    """What a camera makes of a picture: exposure, blur and noise, uint8 [H, W, 3]."""
    picture *= np.float32(uniform(random, 0.8, 1.1))
    spread = np.float32(uniform(random, 0.0, 0.2))
    for axis in (0, 1):
        pixels = np.moveaxis(picture, axis, 0)
        pixels[1:-1] += spread * (pixels[2:] + pixels[:-2] - 2 * pixels[1:-1])
    # Four uniform bytes make a nearly normal number of deviation 148.
    height, width = picture.shape[:2]
    grain = np.frombuffer(random.bytes(4 * height * width), dtype=np.uint8).reshape(4, height, width).astype(np.float32)
    deviation = np.float32(uniform(random, 0.0, 0.03) / 148)
    picture += ((grain[0] + grain[1] + grain[2] + grain[3] - 510) * deviation)[..., None]
    return (picture.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _mix(picture: np.ndarray, colour: np.ndarray, share: np.ndarray) -> None:
    """Blend a colour [3] or picture [H, W, 3] into the picture, by a share [H, W, 1] in [0, 1]."""
    picture += (colour - picture) * share


def _noise(random: RandomState, size: tuple[int, int], cells: tuple[int, int], octaves: int = 5) -> np.ndarray:
    """Value noise, float32 [H, W] in [0, 1]: random lattices, each twice as fine and half as strong as the one before.

    Args:
        random: where the lattices come from.
        size: height and width.
        cells: rows and columns of the coarsest lattice.
        octaves: number of lattices.
    """
    noise = np.zeros(size, dtype=np.float32)
    for octave in range(octaves):
        rows, columns = cells[0] << octave, cells[1] << octave
        lattice = random.random_sample((rows + 1, columns + 1)).astype(np.float32)
        across = _interpolate(lattice.T, size[1]).T
        noise += _interpolate(across, size[0]) * np.float32(1 / (2 << octave))
    return noise / np.float32(1 - 1 / (1 << octaves))


def _interpolate(lattice: np.ndarray, length: int) -> np.ndarray:
    """The rows of a lattice [n, m] spread over `length` rows, with smooth steps between."""
    position = np.arange(length, dtype=np.float32) * np.float32((len(lattice) - 1) / length)
    cell = position.astype(np.int64)
    step = position - cell.astype(np.float32)
    step = (step * step * (3 - 2 * step))[:, None]
    return lattice[cell] + (lattice[cell + 1] - lattice[cell]) * step


def _down(height: int) -> np.ndarray:
    """Row numbers, float32 [H, 1, 1]."""
    return np.arange(height, dtype=np.float32)[:, None, None]
