"""What a prediction can be turned into, and saved as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from srtod.evaluation import coco_results
from srtod.prediction import Detections


@pytest.fixture
def detections() -> Detections:
    return Detections(
        {
            "boxes": torch.tensor([[10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 100.0, 50.0]]),
            "labels": torch.tensor([2, 1, 2]),
            "scores": torch.tensor([0.75, 0.5, 0.25]),
        },
        size=(50, 100),
        class_names=["drone", "bird"],
        category_ids=[3, 7],
        name="a.png",
        read=lambda: torch.zeros(3, 50, 100),
    )


def test_it_says_what_it_holds(detections: Detections) -> None:
    assert repr(detections) == "Detections(a.png of 100x50: 2 bird, 1 drone, best score 0.75)"
    assert detections.names == ["bird", "drone", "bird"]
    assert repr(detections.above(0.9)) == "Detections(a.png of 100x50: nothing)"
    assert detections.above(0.5)["labels"].tolist() == [2, 1]


def test_it_is_saved_by_its_suffix(detections: Detections, tmp_path: Path) -> None:
    for suffix in ("json", "txt", "csv", "png"):
        detections.save(tmp_path / f"a.{suffix}")
    assert json.loads((tmp_path / "a.json").read_text()) == coco_results(detections, 1, [3, 7])
    assert (tmp_path / "a.txt").read_text() == (
        "1 0.200000 0.600000 0.200000 0.400000 0.7500\n"
        "0 0.025000 0.100000 0.030000 0.120000 0.5000\n"
        "1 0.500000 0.500000 1.000000 1.000000 0.2500\n"
    )
    assert (tmp_path / "a.csv").read_text().splitlines()[:2] == [
        "image,class,score,x1,y1,x2,y2",
        "a.png,bird,0.75,10.0,20.0,30.0,40.0",
    ]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width >= 512
    detections.save(tmp_path / "a.csv", score=0.6)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"a.mp4 must end in .json, .csv, .txt or the suffix of a picture"):
        detections.save(tmp_path / "a.mp4")


def test_supervision_takes_it(detections: Detections) -> None:
    pytest.importorskip("supervision", reason="needs the package supervision")
    theirs = detections.to_supervision()
    assert theirs.class_id.tolist() == [1, 0, 1]
    assert theirs.data["class_name"].tolist() == ["bird", "drone", "bird"]
    assert theirs.xyxy.tolist() == detections["boxes"].tolist()
