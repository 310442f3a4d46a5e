"""The numbers of a set, counted by hand on a small one, and their table and figure."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srtod.data.plots import plot_statistics
from srtod.data.statistics import format_statistics, set_statistics

BINS = {"tiny": (0, 256), "small": (256, 1024), "medium": (1024, 1e10)}


def annotation(identity: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": image, "category_id": category, "bbox": box} | more


@pytest.fixture
def content() -> dict[str, Any]:
    """Three images; five objects of two of three classes, an ignore region twice, two boxes that are no objects."""
    return {
        "images": [
            {"id": 4, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 50, "height": 40},
            {"id": 9, "file_name": "c.png", "width": 100, "height": 80},
        ],
        "annotations": [
            annotation(1, 4, 7, [0, 0, 4, 9]),  # 6 px
            annotation(2, 4, 7, [10, 10, 16, 16]),  # 16 px: on the boundary, so in the lower bin
            annotation(3, 4, 3, [20, 20, 20, 20]),  # 20 px
            annotation(4, 9, 7, [30, 30, 50, 50]),  # 50 px
            annotation(5, 9, 7, [-4, 0, 8, 2]),  # 4 px, half of it outside
            annotation(6, 4, 3, [0, 0, 50, 50], iscrowd=1),
            annotation(7, 4, 7, [0, 0, 50, 50], iscrowd=1),
            annotation(8, 9, 3, [5, 5, 0, 4]),
            annotation(9, 2, 3, [50, 0, 10, 10]),
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "bus"}, {"id": 8, "name": "boat"}],
    }


@pytest.fixture
def empty() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
        "annotations": [],
        "categories": [{"id": 1, "name": "van"}],
    }


def test_counts(content: dict[str, Any]) -> None:
    statistics = set_statistics(content)
    assert statistics.image_sizes.tolist() == [[100, 80], [50, 40], [100, 80]]
    assert statistics.objects_per_image.tolist() == [3, 0, 2]
    assert statistics.class_counts == {"bus": 1, "car": 4, "boat": 0}
    assert statistics.ignore_regions == 1
    assert statistics.absolute_sizes.tolist() == [6, 16, 20, 50, 4]
    assert statistics.size_counts(BINS) == {"tiny": 3, "small": 1, "medium": 1}


def test_table(content: dict[str, Any], empty: dict[str, Any]) -> None:
    table = format_statistics({"train": set_statistics(content), "test": set_statistics(empty)}, BINS)
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert rows == [
        "train test",
        "images 3 1",
        "without objects 1 (33 %) 1 (100 %)",
        "smallest, largest 50x40, 100x80 10x10, 10x10",
        "most common size 100x80 (67 %) 10x10 (100 %)",
        "objects 5 0",
        "in an image: min, median, max 0, 2, 3 0, 0, 0",
        "in an image: mean 1.67 0.00",
        "ignore regions 1 0",
        "size, square root of the area",
        "tiny, 0-16 px 3 (60 %) 0 (0 %)",
        "small, 16-32 px 1 (20 %) 0 (0 %)",
        "medium, above 32 px 1 (20 %) 0 (0 %)",
        f"mean, standard deviation 19.2, {np.std([6, 16, 20, 50, 4]):.1f} px -",
        "smallest, largest 4.0, 50.0 px -",
        "width / height, 5th, 50th, 95th percentile 0.56, 1.00, 3.40 -",
        "objects of each class",
        "bus 1 (20 %) -",
        "car 4 (80 %) -",
        "boat 0 (0 %) -",
        "van - 0 (0 %)",
    ]
    assert len({len(line) for line in table.splitlines()[:6]}) == 1  # columns are aligned


def pixels(figure: Any) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_figure_shows_the_numbers(content: dict[str, Any], empty: dict[str, Any]) -> None:
    statistics = set_statistics(content)
    figure = plot_statistics({"train": statistics}, BINS, title="cars")
    sizes, counts, classes = figure.axes
    edges, heights = sizes.patches[0].get_data().edges, sizes.patches[0].get_data().values
    assert edges[0] <= 4 < 50 <= edges[-1]
    assert heights.sum() == pytest.approx(1)
    assert heights[np.searchsorted(edges, 20) - 1] == pytest.approx(0.2)
    assert counts.patches[0].get_data().values.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert [bar.get_width() for bar in classes.patches] == [1, 4, 0]
    assert [label.get_text() for label in classes.get_yticklabels()] == ["bus", "car", "boat"]
    assert len(np.unique(pixels(figure).reshape(-1, 3), axis=0)) > 50


def test_figure_of_a_set_without_objects(empty: dict[str, Any]) -> None:
    figure = plot_statistics({"train": set_statistics(empty)}, BINS)
    assert "no objects" in [text.get_text() for text in figure.axes[0].texts]
    assert pixels(figure).std() > 1


def test_figure_of_many_classes_keeps_the_largest(content: dict[str, Any]) -> None:
    content["categories"] += [{"id": 10 + index, "name": f"$x_{index}$"} for index in range(40)]
    figure = plot_statistics(dict.fromkeys(["train", "val", "test"], set_statistics(content)), BINS)
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert len(labels) == 25
    assert labels[:2] == ["car", "bus"]
    assert pixels(figure).std() > 1
