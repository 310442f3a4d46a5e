"""The AI-TOD metric against the reference implementation, its corner cases, and its bad input."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval_aitod import COCO, COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st

from srtod.evaluation import evaluate_detections, format_table

NAMES = ["AP", "AP50", "AP75", "APvt", "APt", "APs", "APm", "AR1", "AR100", "AR1500", "ARvt", "ARt", "ARs", "ARm"]

BEST_F1 = ["F1", "precision", "recall", "F1_threshold"]

Truth = dict[str, Any]
Results = list[dict[str, Any]]


def reference(ground_truth: Truth, detections: Results) -> dict[str, float]:
    """The metrics of the AI-TOD authors' evaluation code, as packaged in faster-coco-eval-aitod."""
    results = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": [
            {**detection, "id": number, "area": detection["bbox"][2] * detection["bbox"][3], "iscrowd": 0}
            for number, detection in enumerate(detections, start=1)
        ],
    }
    quiet = logging.getLogger("reference").debug
    evaluator = COCOeval_faster(
        COCO(copy.deepcopy(ground_truth)), COCO(results), "bbox", print_function=quiet, separate_eval=True
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    ap25 = 1  # which AI-TOD lists second, and we do not
    return dict(zip(NAMES, np.delete(evaluator.all_stats, ap25)[: len(NAMES)].tolist(), strict=True))


def scene(images: int = 1, categories: int = 1) -> Truth:
    return {
        "images": [{"id": 7 + 3 * i, "file_name": f"{i}.png", "width": 400, "height": 300} for i in range(images)],
        "annotations": [],
        "categories": [{"id": 2 + 5 * k, "name": f"class {k}"} for k in range(categories)],
    }


def add(truth: Truth, box: list[float], image: int = 0, category: int = 0, **more: Any) -> None:
    truth["annotations"].append(
        {
            "id": len(truth["annotations"]) + 1,
            "image_id": truth["images"][image]["id"],
            "category_id": truth["categories"][category]["id"],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            **more,
        }
    )


def found(truth: Truth, box: list[float], score: float = 0.5, image: int = 0, category: int = 0) -> dict[str, Any]:
    return {
        "image_id": truth["images"][image]["id"],
        "category_id": truth["categories"][category]["id"],
        "bbox": box,
        "score": score,
    }


def random_scene(
    seed: int,
    images: int = 6,
    categories: int = 3,
    objects: int = 12,
    extra: int = 20,
    scores: int | None = None,
    crowd: float = 0.0,
    whole: bool = False,
) -> tuple[Truth, Results]:
    """Random objects of all area bins, with jittered and stray detections.

    Args:
        seed: of the random numbers.
        images, categories: how many of each.
        objects: objects per image.
        extra: stray detections per image.
        scores: number of different scores, few for many ties; none: all different.
        crowd: share of crowd regions.
        whole: round boxes to whole pixels, for ties of overlaps and areas on the edges of bins.
    """
    random = np.random.default_rng(seed)
    truth = scene(images, categories)
    results = []

    def score() -> float:
        return random.random() if scores is None else random.integers(scores) / scores

    def rounded(box: np.ndarray) -> list[float]:
        return [float(value) for value in (np.maximum(np.round(box), [0, 0, 1, 1]) if whole else box)]

    for image in range(images):
        for _ in range(objects):
            sides = 2 ** random.uniform(1, 6, 2)
            box = np.array([*random.uniform(0, 250, 2), *sides])
            category = int(random.integers(categories))
            add(truth, rounded(box), image, category, iscrowd=int(random.random() < crowd))
            for _ in range(random.integers(4)):
                near = box + random.normal(0, 0.1, 4) * [*sides, *sides]
                near[2:] = np.maximum(near[2:], 0.5)
                results.append(found(truth, rounded(near), score(), image, category))
        for _ in range(extra):
            stray = np.array([*random.uniform(0, 300, 2), *2 ** random.uniform(1, 6, 2)])
            results.append(found(truth, rounded(stray), score(), image, int(random.integers(categories))))
    return truth, results


def assert_equals_reference(truth: Truth, results: Results) -> dict[str, float]:
    metrics = evaluate_detections(truth, results)
    assert list(metrics) == NAMES + BEST_F1
    assert {name: metrics[name] for name in NAMES} == pytest.approx(reference(truth, results), rel=0, abs=1e-9)
    return metrics


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scores": 3},
        {"scores": 1},
        {"crowd": 0.3},
        {"crowd": 0.3, "scores": 4, "whole": True},
        {"whole": True},
        {"categories": 40},
        {"categories": 1, "images": 2, "objects": 60, "extra": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_reference(seed: int, options: dict[str, Any]) -> None:
    metrics = assert_equals_reference(*random_scene(seed, **options))
    assert 0 < metrics["AP"] < 1


side = st.integers(1, 34).map(float)
place = st.integers(0, 12).map(float)
box = st.tuples(place, place, side, side).map(list)


@given(
    objects=st.lists(st.tuples(box, st.integers(0, 1), st.booleans()), max_size=8),
    detections=st.lists(st.tuples(box, st.integers(0, 1), st.integers(1, 3)), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_equals_reference_on_crowded_small_grids(objects: list[Any], detections: list[Any]) -> None:
    """Ties of scores and overlaps, areas on the edges of bins, objects and crowd regions on top of each other."""
    truth = scene(2)
    for place_and_size, image, crowd in objects:
        add(truth, place_and_size, image, iscrowd=int(crowd))
    results = [found(truth, place_and_size, score / 3, image) for place_and_size, image, score in detections]
    assert_equals_reference(truth, results)


def test_no_detections_score_zero() -> None:
    truth, _ = random_scene(0)
    assert set(assert_equals_reference(truth, []).values()) == {0.0, -1.0}  # and no threshold gives anything


def test_no_ground_truth_gives_minus_one() -> None:
    truth = scene()
    assert set(assert_equals_reference(truth, [found(truth, [0, 0, 9, 9])]).values()) == {-1.0}


def test_empty_area_bin_gives_minus_one() -> None:
    truth = scene()
    add(truth, [10, 10, 12, 12])
    metrics = assert_equals_reference(truth, [found(truth, [10, 10, 12, 12])])
    assert {name for name, value in metrics.items() if value == -1} == {"APvt", "APs", "APm", "ARvt", "ARs", "ARm"}
    assert metrics["AP"] == metrics["APt"] == pytest.approx(1.0)


@pytest.mark.parametrize(("side", "bins"), [(8, {"APvt", "APt"}), (16, {"APt", "APs"}), (32, {"APs", "APm"})])
def test_areas_are_closed_at_both_ends(side: int, bins: set[str]) -> None:
    truth = scene()
    add(truth, [10, 10, side, side])
    metrics = assert_equals_reference(truth, [found(truth, [10, 10, side, side])])
    assert {name for name in ("APvt", "APt", "APs", "APm") if metrics[name] != -1} == bins


def test_ground_truth_counts_by_its_area_not_its_box() -> None:
    truth = scene()
    add(truth, [10, 10, 40, 40], area=50.0)
    metrics = assert_equals_reference(truth, [found(truth, [10, 10, 40, 40])])
    assert metrics["APvt"] == pytest.approx(1.0)
    assert metrics["APm"] == -1


def test_missing_area_and_iscrowd_default_to_the_box_and_no_crowd() -> None:
    truth, results = random_scene(1)
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert evaluate_detections(bare, results) == evaluate_detections(truth, results)


def test_detections_on_a_crowd_region_are_not_counted() -> None:
    truth = scene()
    add(truth, [10, 10, 12, 12])
    add(truth, [100, 100, 80, 80], iscrowd=1)
    stray = [found(truth, [100 + 10 * i, 110, 9, 9], 0.9) for i in range(5)]
    metrics = assert_equals_reference(truth, [*stray, found(truth, [10, 10, 12, 12], 0.1)])
    assert metrics["AP"] == pytest.approx(1.0)


def test_at_most_1500_detections_per_image_and_category() -> None:
    truth = scene(2, 2)
    for image in range(2):
        for category in range(2):
            add(truth, [10, 10, 12, 12], image, category)
    results = [
        found(truth, [200, 200, 10, 10], 0.9 - i * 1e-5, image, category)
        for image in range(2)
        for category in range(2)
        for i in range(1499 + image)
    ]
    results += [found(truth, [10, 10, 12, 12], 0.1, image, category) for image in range(2) for category in range(2)]
    metrics = assert_equals_reference(truth, results)
    assert metrics["AR1500"] == pytest.approx(0.5)  # the last of 1500 counts, the last of 1501 does not
    assert metrics["AR100"] == 0


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_overlaps_the_last_ground_truth_is_taken(order: int) -> None:
    """The first detection overlaps both objects alike; which one it takes decides what is left for the second."""
    truth = scene()
    for x in (10, 12)[::order]:
        add(truth, [x, 10, 10, 10])
    results = [found(truth, [11, 10, 10, 10], 0.9), found(truth, [12, 10, 10, 10], 0.8)]
    metrics = assert_equals_reference(truth, results)
    assert (metrics["AR1500"] > 0.75) == (order == -1)


def test_many_detections_at_one_object() -> None:
    truth, _ = random_scene(0, images=1, categories=1, objects=20)
    random = np.random.default_rng(0)
    results = [
        found(truth, (np.array(entry["bbox"]) * random.uniform(0.9, 1.1, 4)).tolist(), random.random())
        for entry in truth["annotations"]
        for _ in range(100)
    ]
    assert_equals_reference(truth, results)


@pytest.mark.parametrize("ids", [[0, 1], [5, 5], [None, None], [None, 1]])
def test_annotation_ids_play_no_part(ids: list[int | None]) -> None:
    """The reference never matches an annotation with id 0, and loses one of two with the same id."""
    truth = scene()
    for x, identity in zip((10, 50), ids, strict=True):
        add(truth, [x, 10, 12, 12])
        if identity is None:
            del truth["annotations"][-1]["id"]
        else:
            truth["annotations"][-1]["id"] = identity
    metrics = evaluate_detections(truth, [found(truth, [x, 10, 12, 12]) for x in (10, 50)])
    assert metrics["AP"] == pytest.approx(1.0)


def test_arguments_are_left_alone_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    truth, results = random_scene(0)
    before = copy.deepcopy((truth, results))
    evaluate_detections(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_files_and_numpy_values_give_the_same(tmp_path: Path) -> None:
    truth, results = random_scene(0)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    arrays = [
        {
            "image_id": np.int64(entry["image_id"]),
            "category_id": entry["category_id"],
            "bbox": np.array(entry["bbox"]),
            "score": np.float64(entry["score"]),
        }
        for entry in results
    ]
    expected = evaluate_detections(truth, results)
    assert evaluate_detections(tmp_path / "truth.json", str(tmp_path / "results.json")) == expected
    assert evaluate_detections(truth, arrays) == expected


def test_many_detections_take_seconds() -> None:
    """500 images of 1500 detections take about 20 s on one core; 20 of them well under 5 s."""
    truth, results = random_scene(0, images=20, categories=1, objects=27, extra=1450)
    start = time.process_time()  # of the processor, whatever else runs on it
    evaluate_detections(truth, results)
    assert time.process_time() - start < 5


def broken(**values: Any) -> Callable[[Truth, Results], Any]:
    """Detections whose second entry has these values; an ellipsis removes the key."""

    def change(_: Truth, results: Results) -> Results:
        entry = {key: value for key, value in {**results[1], **values}.items() if value is not ...}
        return [results[0], entry, *results[2:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken(image_id=999), r"detections\[1\]: 'image_id' 999 is not among"),
        (broken(category_id=999), r"detections\[1\]: 'category_id' 999 is not among"),
        (broken(image_id="7"), r"detections\[1\]: 'image_id' must be an integer, got '7'"),
        (broken(bbox=...), r"detections\[1\] has no 'bbox'"),
        (broken(score=...), r"detections\[1\] has no 'score'"),
        (broken(bbox=[0, 0, float("nan"), 1]), r"detections\[1\]: 'bbox' must be four finite numbers"),
        (broken(bbox=[0, 0, float("inf"), 1]), r"detections\[1\]: 'bbox' must be four finite numbers"),
        (broken(bbox=[0, 0, 1]), r"detections\[1\]: 'bbox' must be four finite numbers"),
        (broken(bbox=[0, 0, "1", 1]), r"detections\[1\]: 'bbox' must be four finite numbers"),
        (broken(bbox="0011"), r"detections\[1\]: 'bbox' must be four finite numbers"),
        (broken(bbox=[5, 5, -1, 4]), r"detections\[1\]: 'bbox' .* negative size"),
        (broken(score=float("nan")), r"detections\[1\]: 'score' must be a finite number"),
        (broken(score=True), r"detections\[1\]: 'score' must be a finite number"),
        (lambda _, results: [results[0], 3], r"detections\[1\] must be a JSON object, got int"),
    ],
)
def test_bad_detections(change: Callable[[Truth, Results], Any], message: str) -> None:
    truth, results = random_scene(0)
    with pytest.raises(ValueError, match=message):
        evaluate_detections(truth, change(truth, results))


@pytest.mark.parametrize("detections", [{"image_id": 1}, None, 3])
def test_detections_of_another_type(detections: Any) -> None:
    with pytest.raises(TypeError, match="detections must be a list of COCO results"):
        evaluate_detections(scene(), detections)


def test_ground_truth_of_another_type() -> None:
    with pytest.raises(TypeError, match="must be a path or a dict, got list"):
        evaluate_detections([], [])  # type: ignore[arg-type]


def test_table_has_every_metric_and_the_protocol() -> None:
    metrics = dict.fromkeys(NAMES, 0.1234) | {"APm": -1.0}
    table = format_table(metrics)
    assert all(name in table.split() for name in NAMES)
    assert table.split().count("12.3") == len(NAMES) - 1
    assert table.split().count("-") == 1
    table = format_table(metrics | {"F1": 0.5678, "precision": 0.5, "recall": 0.25, "F1_threshold": 0.3456})
    assert " ".join([*BEST_F1, "56.8", "50.0", "25.0", "0.346"]) in " ".join(table.split())
    for fact in ("0.50:0.95", "verytiny 0-64", "tiny 64-256", "small 256-1024", "1024", "1500", "iscrowd"):
        assert fact in table
    assert max(map(len, table.splitlines())) <= 100
