"""The examples train other libraries' detectors with `srtod.attach`, and predict."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """The example of that file's name."""
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def check(history: list[float]) -> None:
    """The reconstruction learns."""
    assert len(history) == 20
    assert all(math.isfinite(loss) for loss in history)
    assert history[-1] < 0.9 * history[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["faster_rcnn", "retinanet"])
@pytest.mark.filterwarnings("ignore:the automatic threshold was set")
def test_torchvision(model: str) -> None:
    example = load("torchvision_detectors")
    detector, history = example.train(model, min_size=64)
    check(history)
    assert detector.self_reconstruction.threshold < 1  # it was set
    assert set(example.predict(detector)[0]) == {"boxes", "labels", "scores"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the automatic threshold was set")
def test_transformers() -> None:
    pytest.importorskip("transformers", reason="needs srtod[detr]")
    example = load("transformers_detector")
    detector, history = example.train()
    check(history)
    assert len(example.predict(detector)[0]["boxes"]) == 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the automatic threshold was set")
def test_ultralytics() -> None:
    pytest.importorskip("ultralytics", reason="Ultralytics is not installed; its licence is AGPL-3.0")
    example = load("ultralytics_yolo")
    detector, history = example.train()
    check(history)
    assert example.predict(detector)[0].shape[1] == 6


@pytest.mark.parametrize(
    ("name", "library", "arguments"),
    [
        ("torchvision_detectors", "torchvision", ["--model", "retinanet", "--min-size", "64"]),
        ("transformers_detector", "transformers", []),
        ("ultralytics_yolo", "ultralytics", []),
    ],
)
def test_the_command_line_trains_and_predicts(
    name: str, library: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    load(name).main(["--steps", "1", *arguments])
    *_, step, detections = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 0 .* loss_reconstruction 0\.\d+", step)
    assert re.fullmatch(r"\d+ detections", detections)
