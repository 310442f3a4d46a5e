"""The report of a run: what is in it, that its numbers say how they came about, and that it is whole or not there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import srtod
from srtod.data import SwarmDataset
from srtod.engine import ModelConfig, TrainConfig, report
from srtod.engine.report import source_commit, write_report
from srtod.evaluation import DetailedEvaluation, detailed_evaluation, outcomes
from srtod.models import build_detector
from srtod.models.checkpoint import TrainedDetector
from srtod.visualization.marks import MISSED

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def test_set() -> SwarmDataset:
    return SwarmDataset(5, (128, 128), 1)


@pytest.fixture(scope="module")
def trained(test_set: SwarmDataset) -> TrainedDetector:
    torch.manual_seed(0)
    model = ModelConfig(channels=16).arguments | {"num_classes": 2}
    return TrainedDetector(build_detector(**model).eval(), test_set.class_names, test_set.category_ids, {})


@pytest.fixture(scope="module")
def detections(test_set: SwarmDataset) -> Results:
    """Every object is found but for half of those in the fourth image and one in the second."""
    annotations = test_set.ground_truth["annotations"]
    by_image = [[entry for entry in annotations if entry["image_id"] == 1 + index] for index in range(5)]
    assert len(by_image[3]) > 3
    lost = [entry["id"] for entry in [*by_image[3][: len(by_image[3]) // 2], by_image[1][0]]]
    keys = ("image_id", "category_id", "bbox")
    return [{key: entry[key] for key in keys} | {"score": 0.9} for entry in annotations if entry["id"] not in lost]


def write(
    folder: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results, panels: int = 3
) -> DetailedEvaluation:
    return write_report(
        folder,
        trained,
        test_set,
        test_set.ground_truth,
        detections,
        config=TrainConfig(panels=panels, seed=7, precision="bf16-mixed", accelerator="cpu"),
        checkpoint="checkpoints/best.ckpt",
        epoch=4,
        commit="abc",
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_all_of_it_is_there(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results
) -> None:
    evaluation = write(tmp_path, trained, test_set, detections)
    assert evaluation.metrics == detailed_evaluation(test_set.ground_truth, detections).metrics
    report = tmp_path / "report"
    assert files(tmp_path) == [
        "report/metrics.json",
        "report/panels/01_swarm_1_00003.png",
        "report/panels/02_swarm_1_00001.png",
        "report/panels/03_swarm_1_00000.png",
        "report/per_class.md",
        "report/pr_curves.png",
        "report/report.html",
    ]
    for picture in report.rglob("*.png"):
        Image.open(picture).verify()
    classes = (report / "per_class.md").read_text()
    assert f"| drone |{len(test_set.ground_truth['annotations']):>8} |" in classes
    assert "AI-TOD metric" in classes


def test_the_numbers_say_how_they_came_about(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results
) -> None:
    evaluation = write(tmp_path, trained, test_set, detections)
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert set(summary) == {
        "metrics",
        "protocol",
        "test_set",
        "checkpoint",
        "epoch",
        "seed",
        "device",
        "precision",
        "commit",
        "versions",
        "config",
    }
    assert summary["metrics"] == evaluation.metrics
    assert set(summary["protocol"]) == {"metric", "iou_thresholds", "areas_px2", "max_detections", "ignore_regions"}
    objects = len(test_set.ground_truth["annotations"])
    assert summary["test_set"] == {"images": 5, "objects": objects, "ignore_regions": 0}
    assert [summary[key] for key in ("checkpoint", "epoch", "seed", "precision", "commit")] == [
        "checkpoints/best.ckpt",
        4,
        7,
        "bf16-mixed",
        "abc",
    ]
    assert set(summary["versions"]) == {"srtod", "torch", "torchvision", "lightning", "python"}
    assert summary["versions"]["srtod"] == srtod.__version__
    assert summary["device"]
    assert summary["config"]["seed"] == 7


def test_an_ignore_region_of_all_categories_counts_once(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results
) -> None:
    truth = test_set.ground_truth
    crowds = [
        {"id": 9000 + number, "image_id": 1 + number % 2, "category_id": category, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        for number, category in enumerate([1, 1, 7, 7, 8, 8])
    ]
    truth = truth | {
        "annotations": [*truth["annotations"], *(crowd | {"area": 81} for crowd in crowds)],
        "categories": [*truth["categories"], {"id": 7, "name": "bird"}, {"id": 8, "name": "kite"}],
    }
    config = TrainConfig(panels=0)
    write_report(
        tmp_path, trained, test_set, truth, detections, config=config, checkpoint="best.ckpt", epoch=1, commit=None
    )
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert summary["test_set"]["ignore_regions"] == 2


def test_missed_objects_are_marked_in_the_panel(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results
) -> None:
    write(tmp_path, trained, test_set, detections, panels=2)
    [missed] = list(outcomes(test_set.ground_truth, detections, score=0.5).values())[1].missed
    picture = Image.open(tmp_path / "report" / "panels" / "02_swarm_1_00001.png").convert("RGB")
    side, gap = 512, 8
    left, top = picture.width - side - gap, picture.height - side - gap  # of the last picture
    x, y, width, _ = (side / 128 * value for value in missed["bbox"])
    around = picture.crop((round(left + x - 9), round(top + y - 9), round(left + x + width + 9), picture.height))
    colours = {colour for _, colour in around.getcolors(around.width * around.height) or []}
    assert tuple(bytes.fromhex(MISSED.colour[1:])) in colours


def test_a_sequence_has_two_panels_while_there_are_other_images() -> None:
    names = ["a/1_7.png", "a/2_8.png", "a/10_9.png", "b/1_7.png", "a/other.png", "a/3_9.png"]
    for count, chosen in (
        (2, [0, 1]),
        (3, [0, 1, 3]),
        (4, [0, 1, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (9, [0, 1, 2, 3, 4, 5]),
    ):
        assert report._varied(range(6), names, count) == chosen


def test_a_report_is_replaced_as_a_whole(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset, detections: Results
) -> None:
    write(tmp_path, trained, test_set, detections, panels=2)
    write(tmp_path, trained, test_set, detections, panels=0)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert files(tmp_path / "report") == ["metrics.json", "per_class.md", "pr_curves.png", "report.html"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_report_leaves_the_one_before(
    tmp_path: Path,
    trained: TrainedDetector,
    test_set: SwarmDataset,
    detections: Results,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def failing(figure: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise error

    message = r"report could not be written \(No space left on device\); the run's checkpoints are complete"
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", failing)
        with pytest.raises(type(error), match=message if isinstance(error, OSError) else None):
            write(tmp_path, trained, test_set, detections)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, trained, test_set, detections, panels=1)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    monkeypatch.setattr(Figure, "savefig", failing)
    with pytest.raises(type(error)):
        write(tmp_path, trained, test_set, [])
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_images_that_were_not_evaluated_are_left_out(
    tmp_path: Path, trained: TrainedDetector, test_set: SwarmDataset
) -> None:
    truth = test_set.ground_truth
    seen = truth | {
        "images": truth["images"][2:4],
        "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in (3, 4)],
    }
    write_report(
        tmp_path, trained, test_set, seen, [], config=TrainConfig(), checkpoint="best.ckpt", epoch=1, commit=None
    )
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert summary["test_set"]["images"] == 2
    names = {path.name[3:] for path in (tmp_path / "report" / "panels").iterdir()}
    assert names == {"swarm_1_00002.png", "swarm_1_00003.png"}


def test_the_commit_is_that_of_the_checkout_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "srtod" / "engine" / "report.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    monkeypatch.setattr(report, "__file__", str(module))
    assert source_commit() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert source_commit() == commit
    module.write_text("a = 2\n")
    assert source_commit() == f"{commit}+changes"
    installed = tmp_path / "venv" / "site-packages" / "srtod" / "engine" / "report.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(report, "__file__", str(installed))
    assert source_commit() is None
    monkeypatch.setattr(report, "__file__", str(module))
    monkeypatch.setenv("PATH", "")
    assert source_commit() is None
