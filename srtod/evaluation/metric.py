"""The AI-TOD metric: COCO's average precision and recall with area bins for tiny objects and up to 1500 detections.

Source: Wang et al., "Tiny Object Detection in Aerial Images" (ICPR 2020), and its evaluation code. Sums and averages
are pycocotools' own; only its matching loop is replaced, by one that visits just the pairs which overlap enough to
match. That gives the same matches many times sooner, for most detections touch no object.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from srtod.data.coco import check_box, field, read_coco, read_json

__all__ = ["AREAS", "IOU_THRESHOLDS", "MAX_DETECTIONS", "evaluate_detections", "format_table"]

AREAS = {"all": (0, 1e10), "verytiny": (0, 64), "tiny": (64, 256), "small": (256, 1024), "medium": (1024, 1e10)}
"""Area bins in square pixels, closed at both ends: ground truth by its `area`, detections by width times height."""

MAX_DETECTIONS = (1, 100, 1500)
"""Detections counted per image and category, the best scored first."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


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
        [0, 1]; -1 where there is no ground truth.

    Raises:
        FileNotFoundError: if a file is missing.
        TypeError: if an argument is of another type.
        ValueError: if the ground truth is not COCO data (see `srtod.data.read_coco`), or a detection names an unknown
            image or category, lacks a key, or has a box or score that is malformed or not finite.
    """
    truth = read_coco(ground_truth)
    results = _read_detections(detections, truth)
    with redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        evaluator = _TinyObjectEval(_index(truth, truth["annotations"]), _index(truth, results), "bbox")
        evaluator.params.iouThrs = IOU_THRESHOLDS
        evaluator.params.areaRng = list(AREAS.values())
        evaluator.params.maxDets = list(MAX_DETECTIONS)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"]  # [IoU, recall, category, area, maxDets]
    recall = evaluator.eval["recall"]  # [IoU, category, area, maxDets]
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
    }


def format_table(metrics: Mapping[str, float]) -> str:
    """The metrics x 100 as a table, above the protocol they were computed by; a dash where there is no ground truth."""
    cells = {name: "-" if value < 0 else f"{100 * value:.1f}" for name, value in metrics.items()}
    lines = []
    for kind in ("AP", "AR"):
        names = [name for name in cells if name.startswith(kind)]
        lines += ["  ".join(f"{name:>6}" for name in names), "  ".join(f"{cells[name]:>6}" for name in names), ""]
    most = MAX_DETECTIONS[-1]
    bins = ", ".join(f"{name} {low}-{high:.0f}" for name, (low, high) in list(AREAS.items())[1:-1])
    lines += [
        "AI-TOD metric, x 100. IoU 0.50:0.95 in steps of 0.05; AP50, AP75: at that IoU alone.",
        f"Areas in px^2, ends included: {bins}, medium from {AREAS['medium'][0]}.",
        f"Detections per image and category: at most {most}; AR1, AR100: at most 1, 100.",
        "Crowd regions are ignored: neither missed, nor a false positive for detections on them.",
    ]
    return "\n".join(lines)


class _TinyObjectEval(COCOeval):
    """COCOeval with a matching loop over overlapping pairs."""

    def evaluateImg(  # noqa: N802 (pycocotools' name)
        self, image_id: int, category_id: int, area_range: tuple[float, float], max_detections: int
    ) -> dict[str, Any] | None:
        """Matches of one image, category and area bin, as `COCOeval.accumulate` takes them."""
        truths, detections = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not truths and not detections:
            return None
        scores = np.array([detection["score"] for detection in detections])
        order = np.argsort(-scores, kind="stable")[:max_detections]  # as the rows of self.ious
        crowd = np.array([truth["iscrowd"] for truth in truths], dtype=bool)
        ignored = crowd | _outside(truths, area_range)
        ious = np.reshape(self.ious[image_id, category_id], (len(order), len(truths)))
        matched, matched_ignored = _match(ious, self.params.iouThrs, ignored, crowd)
        return {
            "dtScores": scores[order],
            "dtMatches": matched,
            "dtIgnore": matched_ignored | (~matched & _outside(detections, area_range)[order]),
            "gtIgnore": ignored,
        }


def _match(
    ious: np.ndarray,  # [D, G], detections in descending order of score
    thresholds: np.ndarray,  # [T], ascending
    ignored: np.ndarray,  # bool [G]
    crowd: np.ndarray,  # bool [G]
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching.

    At each threshold a detection takes, of the ground truths still free (crowd regions always are), one that counts
    before one that is ignored, then the best overlapping, then the last of equals.

    Returns:
        Whether each detection is matched, and whether to an ignored ground truth, each bool [T, D].
    """
    matched = np.zeros((len(thresholds), len(ious)), dtype=bool)
    matched_ignored = np.zeros_like(matched)
    taken = np.zeros((len(thresholds), len(ignored)), dtype=bool)
    overlapping = ious >= thresholds[0]
    for detection in np.flatnonzero(overlapping.any(axis=1)):
        overlaps = ious[detection]
        candidates = sorted(
            np.flatnonzero(overlapping[detection]), key=lambda truth: (ignored[truth], -overlaps[truth], -truth)
        )
        for level, threshold in enumerate(thresholds):
            for truth in candidates:
                if overlaps[truth] >= threshold and (crowd[truth] or not taken[level, truth]):
                    taken[level, truth] = True
                    matched[level, detection] = True
                    matched_ignored[level, detection] = ignored[truth]
                    break
    return matched, matched_ignored


def _outside(boxes: list[dict[str, Any]], area_range: tuple[float, float]) -> np.ndarray:
    """Whether each box's area is outside the range, bool [M]."""
    areas = np.array([box["area"] for box in boxes])
    return (areas < area_range[0]) | (areas > area_range[1])


def _mean(values: np.ndarray) -> float:
    """The mean of the values that exist, or -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _index(truth: dict[str, Any], boxes: Sequence[Mapping[str, Any]]) -> COCO:
    """Boxes as a pycocotools index: copies, numbered from 1, for ids in files may be missing, 0 or twice the same."""
    coco = COCO()
    coco.dataset = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [
            {
                "id": number,
                "image_id": box["image_id"],
                "category_id": box["category_id"],
                "bbox": list(box["bbox"]),
                "area": box.get("area", box["bbox"][2] * box["bbox"][3]),
                "iscrowd": int(bool(box.get("iscrowd"))),
                "score": box.get("score"),
            }
            for number, box in enumerate(boxes, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _read_detections(source: str | Path | Sequence[Mapping[str, Any]], truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Checked detections, reduced to what is scored."""
    from_file = isinstance(source, (str, Path))
    name = str(source) if from_file else "detections"
    content = read_json(source) if isinstance(source, (str, Path)) else source
    if not isinstance(content, Sequence):
        raise (ValueError if from_file else TypeError)(
            f"{name} must be a list of COCO results, got {type(content).__name__}"
        )
    image_ids = {image["id"] for image in truth["images"]}
    category_ids = {category["id"] for category in truth["categories"]}
    for index, detection in enumerate(content):
        where = f"{name}[{index}]" if not from_file else f"{name}: detection {index}"
        check_box(detection, image_ids, category_ids, where)
        if not np.isfinite(field(detection, "score", Real, where)):
            raise ValueError(f"{where}: 'score' must be finite, got {detection['score']}")
    return [{key: detection[key] for key in ("image_id", "category_id", "bbox", "score")} for detection in content]
