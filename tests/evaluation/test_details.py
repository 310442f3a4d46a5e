"""Class by class, curves, missed objects and tables: against the metric itself and small cases by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from srtod.evaluation import (
    coco_results,
    detailed_evaluation,
    detections_by_image,
    evaluate_detections,
    format_classes,
    outcomes,
    plot_curves,
    protocol,
)
from srtod.evaluation.metric import AREAS


def scene(*boxes: tuple[list[float], int, int], images: int = 2, categories: int = 2, crowd: int = 0) -> dict[str, Any]:
    """Ground truth of (box, image id, category id); the last `crowd` of them are ignore regions."""
    regular = len(boxes) - crowd
    return {
        "images": [{"id": 1 + i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": 1 + k, "name": f"class {k}"} for k in range(categories)],
        "annotations": [
            {"id": 1 + i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(i >= regular)}
            for i, (box, image, category) in enumerate(boxes)
        ],
    }


def found(box: list[float], image: int = 1, category: int = 1, score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def random_scene(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes in three classes, some of them crowds, each found by none to three loose boxes."""
    random = np.random.default_rng(seed)
    boxes, results = [], []
    for _ in range(150):
        side = 2 ** random.uniform(1, 6)
        box, image, category = [*random.uniform(0, 130, 2), side, side], int(random.integers(1, 9)), random.integers(3)
        boxes.append(([float(value) for value in box], image, 1 + int(category)))
        for _ in range(random.integers(4)):
            near = (np.array(box) + random.normal(0, 0.1 * side, 4)).clip(0.5).tolist()
            results.append(found(near, image, 1 + int(category), float(random.random())))
    return scene(*boxes, images=8, categories=3, crowd=10), results


A, B, C, D = [10.0, 10, 6, 6], [50.0, 50, 12, 12], [90.0, 90, 20, 20], [20.0, 80, 40, 40]  # one in each size bin


@pytest.mark.parametrize("seed", range(3))
def test_the_details_agree_with_the_metric_and_each_other(seed: int) -> None:
    truth, results = random_scene(seed)
    metrics, classes, curves = detailed_evaluation(truth, results)
    assert metrics == evaluate_detections(truth, results)
    for name, area in (("AP", "all"), ("APvt", "verytiny"), ("APt", "tiny"), ("APs", "small"), ("APm", "medium")):
        assert metrics[name] == pytest.approx(np.mean([result.metrics[name] for result in classes]), abs=1e-12)
        assert curves[area].mean.mean() == pytest.approx(metrics[name], abs=1e-12)
        assert curves[area].objects == sum(result.objects[area] for result in classes)
    assert curves["all"].at_50.mean() == pytest.approx(metrics["AP50"], abs=1e-12)
    assert metrics["AR1500"] == pytest.approx(np.mean([result.metrics["AR1500"] for result in classes]), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_class_has_the_metrics_of_a_set_with_this_class_alone(seed: int) -> None:
    truth, results = random_scene(seed)
    for category, result in zip(truth["categories"], detailed_evaluation(truth, results).classes, strict=True):
        alone = truth | {
            "categories": [category],
            "annotations": [entry for entry in truth["annotations"] if entry["category_id"] == category["id"]],
        }
        own = [entry for entry in results if entry["category_id"] == category["id"]]
        assert result.name == category["name"]
        assert result.metrics == evaluate_detections(alone, own)
        assert result.objects["all"] == sum(not entry["iscrowd"] for entry in alone["annotations"])


def test_counts_and_curves_by_hand() -> None:
    """Of the class's three objects the first is found exactly, the second at IoU 0.6, after a false detection."""
    truth = scene((A, 1, 1), (B, 1, 1), (C, 2, 1))
    results = [found(A, score=0.9), found([150, 150, 9, 9], score=0.8), found([50, 50, 12, 7.2], score=0.7)]
    _, [first, second], curves = detailed_evaluation(truth, results)
    assert first.objects == {"all": 3, "verytiny": 1, "tiny": 1, "small": 1, "medium": 0}
    assert set(second.objects.values()) == {0}
    assert set(second.metrics.values()) == {-1.0}
    recall = np.linspace(0, 1, 101)
    at_50 = np.where(recall <= 1 / 3, 1, np.where(recall <= 2 / 3, 2 / 3, 0))
    from_65 = np.where(recall <= 1 / 3, 1.0, 0)
    assert curves["all"].at_50 == pytest.approx(at_50)
    assert curves["all"].mean == pytest.approx(0.3 * at_50 + 0.7 * from_65)  # 0.50, 0.55 and 0.60 of ten
    assert curves["medium"].objects == 0
    assert set(curves["medium"].mean) == set(curves["medium"].at_50) == {-1.0}


def test_an_object_on_the_edge_of_two_bins_is_in_both() -> None:
    [result, _] = detailed_evaluation(scene(([0, 0, 8, 8], 1, 1)), []).classes
    assert result.objects == {"all": 1, "verytiny": 1, "tiny": 1, "small": 0, "medium": 0}


def test_worst_misses_come_first() -> None:
    truth = scene((A, 1, 1), (B, 1, 1), (A, 2, 1), (B, 2, 1), (C, 2, 2), (A, 4, 1), images=4)
    results = [found(A, image=2), found(A, image=1), found(A, image=4)]
    missed = {image: each.missed for image, each in outcomes(truth, results, score=0.5).items()}
    assert list(missed) == [2, 1, 3, 4]
    assert [[entry["bbox"] for entry in entries] for entries in missed.values()] == [[B, C], [B], [], []]
    assert missed[1][0] is truth["annotations"][1]


@pytest.mark.parametrize(
    ("result", "count"),
    [
        (found(A, score=0.5), 0),
        (found(A, score=0.49), 1),  # not sure enough
        (found([10, 10, 6, 3]), 0),  # IoU 0.5
        (found([10, 10, 6, 2.9]), 1),
        (found(A, category=2), 1),  # another class
        (found(A, image=2), 1),  # another image
    ],
)
def test_what_counts_as_found(result: dict[str, Any], count: int) -> None:
    assert len(outcomes(scene((A, 1, 1)), [result], score=0.5)[1].missed) == count


def test_one_detection_finds_one_object() -> None:
    truth = scene((A, 1, 1), ([10.0, 11, 6, 6], 1, 1))
    assert outcomes(truth, [found(A)], score=0.5)[1].missed == [truth["annotations"][1]]
    assert outcomes(truth, [found(A), found(A, score=0.6)], score=0.5)[1].missed == []


def test_an_unsure_detection_takes_no_object_from_a_sure_one() -> None:
    truth = scene((A, 1, 1))
    assert outcomes(truth, [found(A, score=0.1), found([10, 10, 6, 4], score=0.8)], score=0.5)[1].missed == []


def test_ignore_regions_cannot_be_missed_and_find_nothing() -> None:
    truth = scene((A, 1, 1), (D, 1, 1), crowd=1)
    assert outcomes(truth, [], score=0.5)[1].missed == [truth["annotations"][0]]
    over_both = scene((A, 1, 1), ([0.0, 0, 60, 60], 1, 1), crowd=1)
    assert outcomes(over_both, [found([30, 30, 6, 6])], score=0.5)[1].missed == [over_both["annotations"][0]]
    assert outcomes(over_both, [found(A)], score=0.5)[1].missed == []


def test_detections_are_hits_false_alarms_or_not_counted() -> None:
    """They are numbered within their image; one below the score is none of these."""
    truth = scene((A, 1, 1), (A, 2, 1), (B, 2, 2), (D, 2, 1), crowd=1)
    results = [
        found(C, image=2, score=0.9),  # nothing there
        found(A, image=1),
        found(A, image=2, score=0.5),
        found(A, image=2, score=0.8),  # takes the object from the one before
        found(B, image=2, category=1),  # another class
        found(B, image=2, category=2, score=0.4),
        found([25, 85, 8, 8], image=2),  # on the ignore region
    ]
    second, first = outcomes(truth, results, score=0.5).items()
    assert (second[0], second[1].missed) == (2, [truth["annotations"][2]])
    assert first == (1, ([], [0], [], []))
    assert [sorted(part) for part in second[1][1:]] == [[2], [0, 1, 3], [5]]


@pytest.mark.parametrize("seed", range(3))
def test_recall_at_50_is_the_share_that_was_not_missed(seed: int) -> None:
    truth, results = random_scene(seed)
    missed = {image: each.missed for image, each in outcomes(truth, results, score=0.0).items()}
    curves = detailed_evaluation(truth, results).curves
    objects = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    for category in truth["categories"]:
        alone = truth | {"categories": [category]}
        alone["annotations"] = [e for e in truth["annotations"] if e["category_id"] == category["id"]]
        own = [entry for entry in results if entry["category_id"] == category["id"]]
        share = 1 - sum(e["category_id"] == category["id"] for group in missed.values() for e in group) / sum(
            e["category_id"] == category["id"] for e in objects
        )
        reached = np.flatnonzero(detailed_evaluation(alone, own).curves["all"].at_50)[-1] / 100
        assert reached <= share + 1e-9 < reached + 0.01 + 1e-9
    assert curves["all"].objects == len(objects)


def test_a_table_of_classes() -> None:
    truth = scene((A, 1, 1), (B, 1, 1), categories=3)
    truth["categories"][1]["name"] = "a|b"
    lines = format_classes(detailed_evaluation(truth, [found(A)])).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert rows[0][:9] == ["class", "objects", "AP", "AP50", "APvt", "APt", "APs", "APm", "AR1500"]
    assert rows[0][9:] == ["F1", "precision", "recall", "F1_threshold"]
    assert rows[2] == [
        "class 0",
        "2",
        "50.5",
        "50.5",
        "100.0",
        "0.0",
        "-",
        "-",
        "50.0",
        "66.7",
        "100.0",
        "50.0",
        "0.900",
    ]
    assert rows[3] == [r"a\|b", "0", *"-----------"]
    assert rows[-1] == ["all", *rows[2][1:]]
    assert len({len(line) for line in lines}) == 1


def test_the_figure_has_a_panel_for_each_bin_with_its_numbers() -> None:
    truth, results = random_scene(0)
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["bbox"][2] < 30]  # no medium ones
    evaluation = detailed_evaluation(truth, results)
    figure = plot_curves(evaluation.curves)
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title() for axes in figure.axes] == ["all sizes", "very tiny", "tiny", "small", "medium"]
    for axes, name in zip(figure.axes[:-1], ("AP", "APvt", "APt", "APs"), strict=True):
        words = [text.get_text() for text in axes.texts]
        assert f"AP {100 * evaluation.metrics[name]:.1f}" in words
        assert len(axes.lines) == 2
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), np.linspace(0, 1, 101))
    assert [text.get_text() for text in figure.axes[-1].texts] == ["from 1024 px², no objects"]
    frame = figure.bbox.padded(1)
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert frame.contains(box.x0, box.y0)
        assert frame.contains(box.x1, box.y1)


def test_detections_go_to_results_and_back() -> None:
    detections = {
        "boxes": torch.tensor([[1.0, 2, 5, 9], [3, 3, 8, 4]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    results = coco_results(detections, 7, [10, 20])
    assert results[0] == {"image_id": 7, "category_id": 20, "bbox": [1.0, 2.0, 4.0, 7.0], "score": 0.75}
    assert list(detections_by_image(results, [10, 20])) == [7]
    for name, value in detections_by_image(results, [10, 20])[7].items():
        torch.testing.assert_close(value, detections[name])


def test_the_protocol_is_plain_values() -> None:
    values = protocol()
    assert values["iou_thresholds"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert list(values["areas_px2"]) == list(AREAS)
    assert values["max_detections"] == [1, 100, 1500]
    assert "iscrowd" in values["ignore_regions"]
