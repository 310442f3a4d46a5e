"""Tables of boxes give back what was read, as dicts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srtod.data import read_coco
from srtod.data.box_tables import Annotation, AnnotationTable
from srtod.evaluation import evaluate_detections


@pytest.fixture
def content() -> dict[str, Any]:
    """More boxes than a table makes dicts of at once; of odd ones every form."""
    annotations = [
        {"id": number, "image_id": 1, "category_id": 2, "bbox": [number, 0.5, 2.0, 3], "area": 6.0, "iscrowd": 0}
        for number in range(5000)
    ]
    annotations += [
        {"id": "a", "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": True, "segmentation": [[1, 2]]},
        {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 7},
    ]
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 6000, "height": 60}],
        "annotations": annotations,
        "categories": [{"id": 2}],
    }


def test_a_file_gives_the_dicts_of_its_annotations(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = read_coco(tmp_path / "a.json")["annotations"]
    common = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}
    expected = [
        *content["annotations"][:5000],
        {"id": "a", **common, "area": 12.0, "iscrowd": 1},
        {"id": "#5001", **common, "area": 7.0, "iscrowd": 0},
    ]
    assert isinstance(table, AnnotationTable)
    assert list(table) == table[:] == list(pickle.loads(pickle.dumps(table))) == expected
    assert json.dumps(table[0]["bbox"]) == "[0, 0.5, 2.0, 3]"  # whole numbers stay: a run is resumed by their hash
    assert (table[-1], table[4999]) == (expected[-1], expected[4999])
    with pytest.raises(IndexError):
        table[5002]


def test_content_from_python_stays_as_it_is(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = np.array([1.0, 2, 3, 4], dtype=np.float32)
    content["annotations"][1]["image_id"] = np.int64(1)
    assert read_coco(content)["annotations"] is content["annotations"]


def test_a_table_is_checked_against_other_images_too(content: dict[str, Any]) -> None:
    table = AnnotationTable([Annotation(1, 2, (1, 2, 3, 4)), Annotation(9, 2, (1, 2, 3, 4))])
    with pytest.raises(ValueError, match=r"annotations\[1\]: 'image_id' 9 is not among the ids"):
        read_coco(content | {"annotations": table})


@pytest.mark.parametrize("text", ['""', '"ab"', "7", "null"])
def test_detections_that_are_no_list(content: dict[str, Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ValueError, match=r"found.json must be a list of COCO results"):
        evaluate_detections(content, tmp_path / "found.json")
