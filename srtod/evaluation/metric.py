"""The AI-TOD metric: COCO's average precision and recall with area bins for tiny objects and up to 1500 detections.

Source: Wang et al., "Tiny Object Detection in Aerial Images" (ICPR 2020), and its evaluation code. Sums and averages
are pycocotools' own; `srtod.evaluation.matching` replaces its matching loop.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srtod.data.coco import read_coco

from .matching import match_detections
from .results import read_detections
from .threshold import BestF1, best_f1

__all__ = [
    "AREAS",
    "IGNORE_REGIONS",
    "IOU_THRESHOLDS",
    "MAX_DETECTIONS",
    "ClassResult",
    "Curve",
    "DetailedEvaluation",
    "detailed_evaluation",
    "evaluate_detections",
    "protocol",
]

AREAS = {"all": (0, 1e10), "verytiny": (0, 64), "tiny": (64, 256), "small": (256, 1024), "medium": (1024, 1e10)}
"""Area bins in square pixels, closed at both ends: ground truth by its `area`, detections by width times height."""

MAX_DETECTIONS = (1, 100, 1500)
"""Detections counted per image and category, the best scored first."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)

IGNORE_REGIONS = (
    "Ignore regions (iscrowd) are no objects; a detection of their category that finds no object, with at least the "
    "IoU's share of its area on one of them, is not counted."
)


class ClassResult(NamedTuple):
    """One class of an evaluation.

    Attributes:
        name: the category's name, or its id where it has none.
        objects: number of objects in each area bin, under the names of `AREAS`; one on an edge is in both bins.
        metrics: as those of all classes.
    """

    name: str
    objects: dict[str, int]
    metrics: dict[str, float]


class Curve(NamedTuple):
    """Precision over recall in one area bin, the mean of the classes that have objects there.

    Attributes:
        objects: number of objects; with none all precisions are -1.
        at_50: precision at IoU 0.50 at the recalls 0, 0.01, ..., 1, `[101]`; its mean is the AP50 of the bin.
        mean: the mean of the precisions at all IoUs, `[101]`; its mean is the AP of the bin.
    """

    objects: int
    at_50: np.ndarray
    mean: np.ndarray


class DetailedEvaluation(NamedTuple):
    """What one pass over the detections tells.

    Attributes:
        metrics: see `evaluate_detections`.
        classes: the same class by class, in the order of the category ids.
        curves: a curve for each bin of `AREAS`, under its name.
    """

    metrics: dict[str, float]
    classes: list[ClassResult]
    curves: dict[str, Curve]


def evaluate_detections(
    ground_truth: str | Path | Mapping[str, Any],
    detections: str | Path | Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Score detections by the AI-TOD metric.

    Crowd regions (`iscrowd`) are ignored: neither missed nor, when a detection lies on them, a false positive. A
    ground truth without `area` has that of its box. Annotation ids play no part.

    Args:
        ground_truth: COCO detection data, as a dict or a JSON file.
        detections: COCO results, as a list or a JSON file: dicts of `image_id`, `category_id`, `bbox` [x, y, width,
            height] in pixels, and `score`. The list may be empty.

    Returns:
        AP, AP50, AP75, APvt, APt, APs, APm, AR1, AR100, AR1500, ARvt, ARt, ARs and ARm, in this order, as fractions in
        [0, 1]; -1 where there is no ground truth. Then F1, precision, recall and F1_threshold: the best F1 at IoU 0.50
        of all classes together, what it consists of, and the score that detections must have for it, see `BestF1`.

    Raises:
        FileNotFoundError: if a file is missing.
        TypeError: if an argument is of another type.
        ValueError: if the ground truth is not COCO data (see `srtod.data.read_coco`), or a detection names an unknown
            image or category, lacks a key, or has a box or score that is malformed or not finite.
    """
    return detailed_evaluation(ground_truth, detections).metrics


def detailed_evaluation(
    ground_truth: str | Path | Mapping[str, Any],
    detections: str | Path | Sequence[Mapping[str, Any]],
) -> DetailedEvaluation:
    """Score detections by the AI-TOD metric, in all and class by class, with their precision-recall curves.

    Arguments and errors are those of `evaluate_detections`, and it takes no longer.
    """
    truth = read_coco(ground_truth)
    evaluator = match_detections(
        truth,
        read_detections(detections, truth),
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        areas=list(AREAS.values()),
        max_detections=MAX_DETECTIONS,
    )
    with redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    precision = evaluator.eval["precision"]  # [IoU, recall, category, area, maxDets]
    recall = evaluator.eval["recall"]  # [IoU, category, area, maxDets]
    category_ids = evaluator.params.catIds
    objects = np.array([0 if cell is None else np.count_nonzero(~cell["gtIgnore"]) for cell in evaluator.evalImgs])
    objects = objects.reshape(len(category_ids), len(AREAS), -1).sum(axis=-1)  # [category, area]
    overall, by_class = _best_f1(evaluator.evalImgs, objects[:, 0])
    names = {category["id"]: str(category.get("name", category["id"])) for category in truth["categories"]}
    return DetailedEvaluation(
        metrics=_metrics(precision, recall, overall),
        classes=[
            ClassResult(
                name=names[category],
                objects=dict(zip(AREAS, objects[index].tolist(), strict=True)),
                metrics=_metrics(precision[:, :, [index]], recall[:, [index]], by_class[index]),
            )
            for index, category in enumerate(category_ids)
        ],
        curves={area: _curve(precision[:, :, :, index, -1], objects[:, index]) for index, area in enumerate(AREAS)},
    )


def protocol() -> dict[str, Any]:
    """How the metrics are computed, in plain values, to stand beside every number."""
    return {
        "metric": "AI-TOD",
        "iou_thresholds": [round(float(threshold), 2) for threshold in IOU_THRESHOLDS],
        "areas_px2": {name: list(area) for name, area in AREAS.items()},
        "max_detections": list(MAX_DETECTIONS),
        "ignore_regions": IGNORE_REGIONS,
    }


def _best_f1(cells: Sequence[dict[str, Any] | None], objects: np.ndarray) -> tuple[BestF1, list[BestF1]]:
    """The best F1 of all classes together, under one threshold, and of each class by itself.

    Args:
        cells: the matches, see `match_detections`.
        objects: number of objects of each category.
    """
    images = len(cells) // (len(objects) * len(AREAS)) if len(objects) else 0
    scores, hits = [], []
    for category in range(len(objects)):
        first = category * len(AREAS) * images  # "all" is the first area
        own = [cell for cell in cells[first : first + images] if cell is not None]
        counted = [~cell["dtIgnore"][0] for cell in own]  # at the first IoU, 0.50
        scores.append(np.concatenate([[], *(cell["dtScores"][kept] for cell, kept in zip(own, counted, strict=True))]))
        matched = [cell["dtMatches"][0][kept] for cell, kept in zip(own, counted, strict=True)]
        hits.append(np.concatenate([np.zeros(0, dtype=bool), *matched]))
    by_class = [best_f1(*values) for values in zip(scores, hits, objects.tolist(), strict=True)]
    # Classes without objects count as in the metric: not at all.
    present = np.flatnonzero(objects)
    if not present.size:
        return best_f1(np.zeros(0), np.zeros(0, dtype=bool), 0), by_class
    all_scores, all_hits = (np.concatenate([values[index] for index in present]) for values in (scores, hits))
    return best_f1(all_scores, all_hits, int(objects.sum())), by_class


def _metrics(precision: np.ndarray, recall: np.ndarray, best: BestF1) -> dict[str, float]:
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        "APvt": _mean(precision[:, :, :, 1, -1]),
        "APt": _mean(precision[:, :, :, 2, -1]),
        "APs": _mean(precision[:, :, :, 3, -1]),
        "APm": _mean(precision[:, :, :, 4, -1]),
        "AR1": _mean(recall[:, :, 0, 0]),
        "AR100": _mean(recall[:, :, 0, 1]),
        "AR1500": _mean(recall[:, :, 0, 2]),
        "ARvt": _mean(recall[:, :, 1, -1]),
        "ARt": _mean(recall[:, :, 2, -1]),
        "ARs": _mean(recall[:, :, 3, -1]),
        "ARm": _mean(recall[:, :, 4, -1]),
        "F1": best.f1,
        "precision": best.precision,
        "recall": best.recall,
        "F1_threshold": best.threshold,
    }


def _curve(
    precision: np.ndarray,  # [IoU, recall, category]
    objects: np.ndarray,  # [category]
) -> Curve:
    present = precision[:, :, objects > 0]
    if not present.size:
        nothing = np.full(precision.shape[1], -1.0)
        return Curve(0, nothing, nothing)
    return Curve(int(objects.sum()), at_50=present[0].mean(axis=-1), mean=present.mean(axis=(0, -1)))


def _mean(values: np.ndarray) -> float:
    """The mean of the values that exist, or -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
