"""Measures sliced prediction: AP and time against whole images and SAHI, memory, and merging.

    python scripts/sliced_prediction.py runs/swarm/checkpoints/best.ckpt
    python scripts/sliced_prediction.py runs/swarm/checkpoints/best.ckpt --parts compare --size 2048 --images 4

- compare: AP of the generated swarm in `--size`, found in whole images, by this library's slicing, and by SAHI, with
  the time of the last two. The detector must have been trained on the swarm. SAHI gets the same detector, tiles,
  batches and threshold; once with its merging alone, and once as it comes, with a pass over the whole image too. Below
  a threshold of 0.1 its merging is the suppression by IoU. An image goes through all ways, one after the other, and the
  ratio of times is of this image. Needs `pip install sahi`.
- memory: what a PNG of 8192x8192 pixels takes in a process of its own, beyond what that takes with the detector loaded.
- merging: the time to merge 10,000 and 25,000 boxes in 2048x2048 pixels, each anywhere, or ten on every place.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import srtod
from srtod.data import SwarmDataset
from srtod.evaluation import coco_results, evaluate_detections
from srtod.prediction import Slicing, suppress

OVERLAP = 0.2
PARTS = ("compare", "memory", "merging")

Found = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure [all]")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side of the images to compare [2048]")
    parser.add_argument("--tile", type=int, default=640, help="pixels a side of the tiles [640]")
    parser.add_argument("--images", type=int, default=4, help="images to compare [4]")
    parser.add_argument("--score", type=float, default=0.05, help="detections must score above this [0.05]")
    parser.add_argument("--most", type=int, default=1500, help="detections an image, and a tile [1500, the metric's]")
    parser.add_argument("--batch-size", type=int, default=1, help="tiles at once [1]")
    parser.add_argument("--large", type=int, default=8192, help="pixels a side of the image for the memory [8192]")
    parser.add_argument("--image", help=argparse.SUPPRESS)  # of the process whose memory is measured
    options = parser.parse_args()
    if options.image:
        print(memory(options))
        return
    for part in options.parts:
        {"compare": compare, "memory": measure_memory, "merging": measure_merging}[part](options)


def compare(options: argparse.Namespace) -> None:
    data = SwarmDataset(options.images, (options.size, options.size), seed=1)
    many = {"score_threshold": options.score, "detections_per_image": options.most, "batch_size": options.batch_size}
    whole = srtod.Predictor(options.checkpoint, **many)
    ways: dict[str, Callable[[Tensor], Found]] = {
        "whole": whole,
        "sliced": srtod.Predictor(options.checkpoint, **many, slicing=Slicing(options.tile, OVERLAP)),
        "SAHI, tiles alone": by_sahi(whole, options, perform_standard_pred=False),
        "SAHI, as it comes": by_sahi(whole, options),
    }
    results: dict[str, list[dict[str, object]]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    truth = data.ground_truth
    for index, entry in enumerate(truth["images"]):
        image = data[index][0]
        for way, find in ways.items():
            begin = time.perf_counter()
            found = find(image)
            seconds[way].append(time.perf_counter() - begin)
            results[way] += coco_results(found, entry["id"], data.category_ids)
    print(f"{len(truth['annotations'])} objects in {options.images} images of {options.size}x{options.size} pixels")
    for way in ways:
        metrics = evaluate_detections(truth, results[way])
        ratio = statistics.median(a / b for a, b in zip(seconds[way], seconds["sliced"], strict=True))
        print(
            f"{way:17}  AP {100 * metrics['AP']:5.1f}  AP50 {100 * metrics['AP50']:5.1f}  {len(results[way]):7} "
            f"detections  {statistics.median(seconds[way]):7.2f} s an image, {ratio:.2f} times the sliced one's"
        )


def by_sahi(whole: srtod.Predictor, options: argparse.Namespace, **more: bool) -> Callable[[Tensor], Found]:
    """SAHI's slicing with this detector."""
    from sahi.predict import get_sliced_prediction

    from srtod.prediction.sahi import SahiModel

    model = SahiModel(model=whole, confidence_threshold=options.score, device=str(whole.device))

    def find(image: Tensor) -> Found:
        found = get_sliced_prediction(
            (image * 255).round().byte().permute(1, 2, 0).numpy(),
            model,
            slice_height=options.tile,
            slice_width=options.tile,
            overlap_height_ratio=OVERLAP,
            overlap_width_ratio=OVERLAP,
            batch_size=options.batch_size,
            verbose=0,
            **more,
        ).object_prediction_list
        return {
            "boxes": torch.tensor([p.bbox.to_xyxy() for p in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([p.category.id + 1 for p in found], dtype=torch.int64),
            "scores": torch.tensor([p.score.value for p in found]),
        }

    return find


def measure_memory(options: argparse.Namespace) -> None:
    """Runs `memory` in a process of its own, on a swarm that is repeated."""
    side = min(1024, options.large)
    pixels = (SwarmDataset(1, (side, side), seed=1)[0][0] * 255).byte().permute(1, 2, 0)
    copies = -(-options.large // side)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "large.png")
        whole = pixels.repeat(copies, copies, 1)[: options.large, : options.large]
        Image.fromarray(whole.numpy()).save(picture)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--image", str(picture)], check=True)


def memory(options: argparse.Namespace) -> str:
    predictor = srtod.Predictor(
        options.checkpoint,
        score_threshold=options.score,
        batch_size=options.batch_size,
        slicing=Slicing(options.tile, OVERLAP),
    )
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    found = predictor(options.image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        f"{options.large}x{options.large} pixels: {found.count} detections, {(peak - before) / 1e9:.2f} GB beyond the "
        f"{before / 1e9:.2f} GB with the detector loaded"
    )


def measure_merging(_: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (10_000, 25_000):
        for where, copies in (("anywhere", 1), ("ten on every place", 10)):
            corner = (torch.rand(count // copies, 2, generator=generator) * 2048).repeat(copies, 1)
            boxes = torch.cat([corner, corner + 8 + 8 * torch.rand(count, 2, generator=generator)], dim=1)
            scores, seconds = torch.rand(count, generator=generator), []
            for _ in range(5):
                begin = time.perf_counter()
                kept = suppress(boxes, scores)
                seconds.append(time.perf_counter() - begin)
            print(f"merging {count} boxes {where}: {statistics.median(seconds):.3f} s, {len(kept)} stay")


if __name__ == "__main__":
    main()
