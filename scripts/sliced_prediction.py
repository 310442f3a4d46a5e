"""Compares sliced prediction with whole images and with SAHI's slicing: AP of all, and time of the two slicings.

    python scripts/sliced_prediction.py runs/swarm/checkpoints/best.ckpt --size 2048 --tile 640 --images 4

The images are the swarm's, generated in that size; the detector must have been trained on the swarm. SAHI gets the
same detector, tiles and threshold, without its extra pass over the whole image, and its default merging. An image goes
through both, one after the other, and the ratio of their times is of this image. Needs `pip install sahi`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from sahi.predict import get_sliced_prediction
from torch import Tensor

import srtod
from srtod.data import SwarmDataset
from srtod.evaluation import coco_results, evaluate_detections
from srtod.prediction import Slicing
from srtod.prediction.sahi import SahiModel

OVERLAP = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side of the images [2048]")
    parser.add_argument("--tile", type=int, default=640, help="pixels a side of the tiles [640]")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--score", type=float, default=0.05, help="detections must score above this [0.05]")
    options = parser.parse_args()

    data = SwarmDataset(options.images, (options.size, options.size), seed=1)
    many = {"score_threshold": options.score, "detections_per_image": 10_000}
    whole = srtod.Predictor(options.checkpoint, **many)
    sliced = srtod.Predictor(options.checkpoint, **many, slicing=Slicing(options.tile, OVERLAP))
    model = SahiModel(model=whole, confidence_threshold=options.score, device=str(whole.device))

    def by_sahi(image: Tensor) -> dict[str, Tensor]:
        found = get_sliced_prediction(
            (image * 255).round().byte().permute(1, 2, 0).numpy(),
            model,
            slice_height=options.tile,
            slice_width=options.tile,
            overlap_height_ratio=OVERLAP,
            overlap_width_ratio=OVERLAP,
            perform_standard_pred=False,
            verbose=0,
        ).object_prediction_list
        return {
            "boxes": torch.tensor([p.bbox.to_xyxy() for p in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([p.category.id + 1 for p in found], dtype=torch.int64),
            "scores": torch.tensor([p.score.value for p in found]),
        }

    ways: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {"whole": whole, "sliced": sliced, "SAHI": by_sahi}
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
    for way in ways:
        metrics = evaluate_detections(truth, results[way])
        print(
            f"{way:7} AP {100 * metrics['AP']:5.1f}  AP50 {100 * metrics['AP50']:5.1f}  {len(results[way])} detections"
        )
    ratio = statistics.median(a / b for a, b in zip(seconds["SAHI"], seconds["sliced"], strict=True))
    print(f"SAHI takes {ratio:.2f} times as long as this library's slicing")


if __name__ == "__main__":
    main()
