"""Which objects a detector found, which it missed, and what it took for an object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srtod.data.coco import read_coco

from .matching import match_detections
from .metric import AREAS, MAX_DETECTIONS
from .results import read_detections

__all__ = ["Outcomes", "outcomes"]


class Outcomes(NamedTuple):
    """What became of an image's objects and detections.

    Detections are given by their position among those of the image, from 0. Those below the score are in no list.

    Attributes:
        missed: the annotations of objects that no detection of their class found.
        hits: detections that found an object.
        false_alarms: detections that found none.
        ignored: detections on ignore regions, which are not counted.
    """

    missed: list[dict[str, Any]]
    hits: list[int]
    false_alarms: list[int]
    ignored: list[int]


def outcomes(
    ground_truth: str | Path | Mapping[str, Any],
    detections: str | Path | Sequence[Mapping[str, Any]],
    *,
    score: float,
    iou: float = 0.5,
) -> dict[int, Outcomes]:
    """What became of the objects and detections of every image, under the metric's matching rule.

    Ignore regions (`iscrowd`) are no objects and cannot be missed.

    Args:
        ground_truth: see `evaluate_detections`.
        detections: see `evaluate_detections`.
        score: a detection must score at least this.
        iou: and overlap the object by at least this.

    Returns:
        The outcomes of every image, by its id: first the image where most was missed, of equals the first in the ground
        truth; last the images where all was found.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `evaluate_detections`.
    """
    truth = read_coco(ground_truth)
    results = read_detections(detections, truth)
    evaluator = match_detections(
        truth,
        results,
        iou_thresholds=[iou],
        areas=[AREAS["all"]],
        max_detections=MAX_DETECTIONS[-1:],
    )
    found = {image["id"]: Outcomes([], [], [], []) for image in truth["images"]}
    counts: Counter[int] = Counter()
    positions = []  # of each detection, among those of its image
    for result in results:
        positions.append((result["image_id"], counts[result["image_id"]]))
        counts[result["image_id"]] += 1
    for cell in evaluator.evalImgs:
        if cell is None:
            continue
        for number in cell["gtIds"][~cell["gtIgnore"] & (cell["gtScores"][0] < score)]:
            annotation = truth["annotations"][number - 1]
            found[annotation["image_id"]].missed.append(annotation)
        ignored, matched = cell["dtIgnore"][0], cell["dtMatches"][0]
        for index in np.flatnonzero(cell["dtScores"] >= score):
            image_id, position = positions[cell["dtIds"][index] - 1]
            _, hits, false_alarms, uncounted = found[image_id]
            (uncounted if ignored[index] else hits if matched[index] else false_alarms).append(position)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1].missed)))
