"""The score from which on a detector's output is worth using: the one with the best F1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["BestF1", "best_f1"]


class BestF1(NamedTuple):
    """What the detections with at least some score are worth, at the score with the best F1.

    Attributes:
        f1: the harmonic mean of precision and recall; -1 without objects.
        precision: the share of these detections that find an object; -1 without objects.
        recall: the share of the objects that they find; -1 without objects.
        threshold: the score; -1 where no detection finds an object.
    """

    f1: float
    precision: float
    recall: float
    threshold: float


def best_f1(
    scores: np.ndarray,  # [D], of the detections that count, in any order
    hits: np.ndarray,  # bool [D], whether each finds an object
    objects: int,
) -> BestF1:
    """The best F1 over all thresholds; of equals the highest threshold. Detections of one score go together."""
    if not objects:
        return BestF1(-1.0, -1.0, -1.0, -1.0)
    if not hits.any():
        return BestF1(0.0, 0.0, 0.0, -1.0)
    order = np.argsort(-scores)
    scores, found = scores[order], np.cumsum(hits[order])
    last = np.append(scores[1:] != scores[:-1], True)  # of the detections with its score
    counted = np.arange(1, len(scores) + 1)
    f1 = np.where(last, 2 * found / (counted + objects), -1)
    best = int(f1.argmax())
    values = f1[best], found[best] / counted[best], found[best] / objects, scores[best]
    return BestF1(*map(float, values))
