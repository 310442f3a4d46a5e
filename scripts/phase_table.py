"""Prints whether a trained detector's reconstruction is worse where the filter looks, as Markdown.

    python scripts/phase_table.py runs/sirst_v2/checkpoints/best.ckpt sirst_v2/images --every 5
    python scripts/phase_table.py runs/swarm/checkpoints/best.ckpt --swarm hard

A nearest resize to P2 reads one pixel of the difference map in 16, the first of each block of 4x4 (phase 0, 0). A
network can lower its loss by being wrong at these alone. The table has the mean difference at each phase in grey levels
(1/255). The line above it has that of the first phase divided by that of all others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from srtod.data import SwarmDataset, read_image
from srtod.data.swarm import KINDS
from srtod.models import Detector
from srtod.models.checkpoint import load_detector
from srtod.prediction import find_images

SWARM_SIZE, SWARM_SEED = 192, 1  # those of the images that a default run is evaluated on


def mean_by_phase(detector: Detector, images: Iterator[Tensor]) -> Tensor:
    """The mean difference at each place in the blocks that a pixel of the enhanced level covers, `[scale, scale]`.

    Args:
        detector: in evaluation mode, with self-reconstruction; it must not resize images.
        images: `[3, H, W]` in [0, 1]; rows and columns beyond whole blocks do not count.
    """
    assert detector.self_reconstruction is not None
    scale = detector.self_reconstruction.scale
    total, count = torch.zeros(scale, scale, dtype=torch.float64), 0
    for image in images:
        difference = detector.reconstruct([image])[0].difference[0].double()
        h, w = difference.shape[0] // scale, difference.shape[1] // scale
        blocks = difference[: h * scale, : w * scale].unflatten(1, (w, scale)).unflatten(0, (h, scale))
        total += blocks.sum(dim=(0, 2))
        count += h * w
    return total / count


def swarm_images(kind: str, count: int) -> Iterator[Tensor]:
    dataset = SwarmDataset(count, (SWARM_SIZE, SWARM_SIZE), SWARM_SEED, kind=kind)
    return (dataset[index][0] for index in range(count))


def folder_images(folder: str, every: int) -> Iterator[Tensor]:
    found = find_images(folder)
    return (read_image(found.folder / entry["file_name"]) for entry in found.entries[::every])


def table(means: Tensor) -> list[str]:
    """Lines of Markdown, in grey levels."""
    others = means.flatten()[1:].mean()
    levels = 255 * means
    heads = ["y % 4 \\ x % 4", *map(str, range(len(means)))]
    rows = [[str(y), *(f"{value:.2f}" for value in row)] for y, row in enumerate(levels.tolist())]
    return [
        f"first phase {levels[0, 0]:.2f}, others {255 * others:.2f}: ratio {means[0, 0] / others:.2f}",
        "",
        *("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("images", nargs="?", help="a folder of images")
    source.add_argument("--swarm", choices=list(KINDS), help="generated images of this kind in place of a folder")
    parser.add_argument("--count", type=int, default=48, help="generated images [48]")
    parser.add_argument("--every", type=int, default=1, help="of a folder take every N-th image [1]")
    options = parser.parse_args()
    detector = load_detector(options.checkpoint).detector.eval()
    images = (
        swarm_images(options.swarm, options.count) if options.swarm else folder_images(options.images, options.every)
    )
    with torch.no_grad():
        print("\n".join(table(mean_by_phase(detector, images))))


if __name__ == "__main__":
    main()
