"""Which objects a detector missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srtod.data.coco import read_coco

from .matching import match_detections
from .metric import AREAS, MAX_DETECTIONS
from .results import read_detections

__all__ = ["missed_objects"]


def missed_objects(
    ground_truth: str | Path | Mapping[str, Any],
    detections: str | Path | Sequence[Mapping[str, Any]],
    *,
    score: float,
    iou: float = 0.5,
) -> dict[int, list[dict[str, Any]]]:
    """The objects that no detection of their class found, under the metric's matching rule.

    Ignore regions (`iscrowd`) are no objects and cannot be missed.

    Args:
        ground_truth: see `evaluate_detections`.
        detections: see `evaluate_detections`.
        score: a detection must score at least this.
        iou: and overlap the object by at least this.

    Returns:
        The missed annotations of every image, by its id: first the image with the most of them, of equals the first in
        the ground truth; last the images where all was found.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `evaluate_detections`.
    """
    truth = read_coco(ground_truth)
    evaluator = match_detections(
        truth,
        read_detections(detections, truth),
        iou_thresholds=[iou],
        areas=[AREAS["all"]],
        max_detections=MAX_DETECTIONS[-1:],
    )
    missed: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for cell in evaluator.evalImgs:
        if cell is None:
            continue
        for number in cell["gtIds"][~cell["gtIgnore"] & (cell["gtScores"][0] < score)]:
            annotation = truth["annotations"][number - 1]
            missed[annotation["image_id"]].append(annotation)
    return dict(sorted(missed.items(), key=lambda entry: -len(entry[1])))
