"""The best F1 and its score: small cases by hand, and against a search over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from srtod.evaluation import best_f1, detailed_evaluation, evaluate_detections

FIRST, SECOND, STRAY = [10.0, 10, 6, 6], [50.0, 50, 12, 12], [90.0, 90, 8, 8]


def scene(*boxes: tuple[list[float], int], crowd: int = 0) -> dict[str, Any]:
    """An image with objects (box, category) of two categories; the last `crowd` of them are ignore regions."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "drone"}, {"id": 2, "name": "bird"}],
        "annotations": [
            {"id": 1 + i, "image_id": 1, "category_id": category, "bbox": box, "iscrowd": int(i >= len(boxes) - crowd)}
            for i, (box, category) in enumerate(boxes)
        ],
    }


def found(box: list[float], score: float, category: int = 1) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


def best(truth: dict[str, Any], *results: dict[str, Any]) -> list[float]:
    metrics = evaluate_detections(truth, results)
    return [metrics[name] for name in ("F1", "precision", "recall", "F1_threshold")]


def test_by_hand() -> None:
    """At 0.9 F1 is 2/3, at 0.7 one of two is false and it is 1/2, at 0.4 it is 4/5, and at 0.2 it is 2/3."""
    results = [found(FIRST, 0.9), found(STRAY, 0.7), found(SECOND, 0.4), found(STRAY, 0.2)]
    assert best(scene((FIRST, 1), (SECOND, 1)), *results) == pytest.approx([4 / 5, 2 / 3, 1, 0.4])


def test_of_equal_f1_the_highest_score_is_taken() -> None:
    """At 0.9 one of one is right and one of two is found; with all four detections it is 2 of 4 and 2 of 2."""
    results = [found(FIRST, 0.9), found(STRAY, 0.5), found(STRAY, 0.5), found(SECOND, 0.3)]
    assert best(scene((FIRST, 1), (SECOND, 1)), *results) == pytest.approx([2 / 3, 1, 1 / 2, 0.9])


def test_detections_of_one_score_go_together() -> None:
    """The object is found at 0.5, but nobody can have it without the two false alarms there."""
    results = [found(FIRST, 0.5), found(STRAY, 0.5), found([150, 150, 8, 8], 0.5)]
    assert best(scene((FIRST, 1)), *results) == pytest.approx([1 / 2, 1 / 3, 1, 0.5])


@pytest.mark.parametrize("results", [[], [found(STRAY, 0.9)], [found(FIRST, 0.9, category=2)]])
def test_where_nothing_is_found_there_is_no_threshold(results: list[dict[str, Any]]) -> None:
    assert best(scene((FIRST, 1)), *results) == [0, 0, 0, -1]


@pytest.mark.parametrize("truth", [scene(), scene((FIRST, 1), crowd=1)])
def test_where_no_objects_are_there_is_nothing(truth: dict[str, Any]) -> None:
    assert best(truth, found(FIRST, 0.9), found(STRAY, 0.8)) == [-1, -1, -1, -1]


def test_ignore_regions_are_neither_found_nor_false() -> None:
    truth = scene((FIRST, 1), ([80.0, 80, 40, 40], 1), crowd=1)
    assert best(truth, found(STRAY, 0.9), found(FIRST, 0.5)) == [1, 1, 1, 0.5]


def test_classes_have_their_own_threshold_and_share_one() -> None:
    """The best common score is 0.4: there three of four detections are right, and all objects are found."""
    truth = scene((FIRST, 1), (SECOND, 1), (FIRST, 2))
    results = [found(FIRST, 0.9), found(SECOND, 0.8), found(FIRST, 0.4, 2), found(STRAY, 0.5), found(STRAY, 0.3, 2)]
    evaluation = detailed_evaluation(truth, results)
    assert [each.metrics["F1_threshold"] for each in evaluation.classes] == [0.8, 0.4]
    assert [each.metrics["F1"] for each in evaluation.classes] == [1, 1]
    assert best(truth, *results) == pytest.approx([6 / 7, 3 / 4, 1, 0.4])


def test_false_alarms_of_a_class_without_objects_do_not_count_as_in_the_metric() -> None:
    assert best(scene((FIRST, 1)), found(FIRST, 0.5), found(STRAY, 0.9, 2)) == [1, 1, 1, 0.5]


def test_it_is_the_best_of_all_thresholds() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        scores, hits = random.integers(1, 20, 40) / 20, random.random(40) < 0.4
        objects = int(hits.sum()) + int(random.integers(1, 20))
        every = {score: 2 * hits[scores >= score].sum() / (objects + (scores >= score).sum()) for score in set(scores)}
        f1, precision, recall, threshold = best_f1(scores, hits, objects)
        assert f1 == pytest.approx(max(every.values()))
        assert f1 == pytest.approx(every[threshold])
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
