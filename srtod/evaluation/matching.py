"""Which detection finds which object: COCO's matching, in a loop over just the pairs that overlap enough to match.

Everything around it is pycocotools' own. The matches are the same, many times sooner, for most detections touch no
object.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["match_detections"]


def match_detections(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_thresholds: Sequence[float],
    areas: Sequence[tuple[float, float]],
    max_detections: Sequence[int],
) -> COCOeval:
    """Matches detections and ground truths in every image, category and area bin.

    Args:
        truth: a COCO dict. Annotations are numbered from 1 in their order here: their own ids play no part.
        results: checked COCO results.
        iou_thresholds: overlaps from which a detection may match, ascending.
        areas: bins in square pixels, closed at both ends.
        max_detections: detections that count per image and category, ascending; the last is how many are matched.

    Returns:
        pycocotools' evaluator before its `accumulate`. Its `evalImgs` are one dict, or None where there is nothing, per
        category, area bin and image (the last varies fastest); see `_TinyObjectEval.evaluateImg`.
    """
    with redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        evaluator = _TinyObjectEval(_index(truth, truth["annotations"]), _index(truth, results), "bbox")
        evaluator.params.iouThrs = np.asarray(iou_thresholds)
        evaluator.params.areaRng = list(areas)
        evaluator.params.maxDets = list(max_detections)
        evaluator.evaluate()
    return evaluator


class _TinyObjectEval(COCOeval):
    """COCOeval with a matching loop over overlapping pairs."""

    def evaluateImg(  # noqa: N802 (pycocotools' name)
        self, image_id: int, category_id: int, area_range: tuple[float, float], max_detections: int
    ) -> dict[str, Any] | None:
        """Matches of one image, category and area bin, under pycocotools' names.

        Of detections `dtIds` [D], `dtScores` [D], `dtMatches` (bool) and `dtIgnore` [T, D]; of ground truths `gtIds`
        [G], `gtIgnore` [G], and `gtScores` [T, G]: the score of the detection that found each, -inf if none did.
        """
        truths, detections = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not truths and not detections:
            return None
        scores = np.array([detection["score"] for detection in detections], dtype=float)
        order = np.argsort(-scores, kind="stable")[:max_detections]  # as the rows of self.ious
        crowd = np.array([truth["iscrowd"] for truth in truths], dtype=bool)
        ignored = crowd | _outside(truths, area_range)
        ious = np.reshape(self.ious[image_id, category_id], (len(order), len(truths)))
        matches = _match(ious, self.params.iouThrs, ignored, crowd)
        matched_ignored = np.append(ignored, False)[matches]  # a match of -1 reads what is appended
        found_scores = np.full((len(matches), len(truths) + 1), -np.inf)
        np.put_along_axis(found_scores, matches, scores[order][None], axis=1)
        return {
            "dtIds": [detections[index]["id"] for index in order],
            "dtScores": scores[order],
            "dtMatches": matches >= 0,
            "dtIgnore": matched_ignored | ((matches < 0) & _outside(detections, area_range)[order]),
            "gtIds": np.array([truth["id"] for truth in truths], dtype=int),
            "gtIgnore": ignored,
            "gtScores": found_scores[:, :-1],
        }


def _match(
    ious: np.ndarray,  # [D, G], detections in descending order of score
    thresholds: np.ndarray,  # [T], ascending
    ignored: np.ndarray,  # bool [G]
    crowd: np.ndarray,  # bool [G]
) -> np.ndarray:
    """COCO's greedy matching.

    At each threshold a detection takes, of the ground truths still free (crowd regions always are), one that counts
    before one that is ignored, then the best overlapping, then the last of equals.

    Returns:
        The ground truth that each detection takes, int [T, D]; -1 for none.
    """
    matches = np.full((len(thresholds), len(ious)), -1)
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
                    matches[level, detection] = truth
                    break
    return matches


def _outside(boxes: list[dict[str, Any]], area_range: tuple[float, float]) -> np.ndarray:
    """Whether each box's area is outside the range, bool [M]."""
    areas = np.array([box["area"] for box in boxes])
    return (areas < area_range[0]) | (areas > area_range[1])


def _index(truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> COCO:
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
