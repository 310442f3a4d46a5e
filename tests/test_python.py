"""What the package offers Python beside its commands: `srtod.train(...)` and `srtod.evaluate(...)`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srtod
from srtod.data import SwarmDataset
from srtod.engine.presets import make_config
from srtod.evaluation import evaluate_detections


def test_training(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    trained = srtod.train(
        output=tmp_path / "run", accelerator="cpu", channels=16, epochs=1, panels=0, swarm_images=2, swarm_test_images=2
    )
    assert trained.folder == tmp_path / "run"
    assert trained.best.is_file()
    assert trained.metrics == json.loads((trained.folder / "report" / "metrics.json").read_text())["metrics"]
    assert torch.get_num_threads() == threads


def test_options_come_over_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 4\nthreshold: 3/255\n")
    config = make_config(tmp_path / "mine.yaml", epochs=2, anchor_scale="auto", min_size=[100, 200], data=tmp_path)
    assert (config.epochs, config.model.anchor_scale, config.model.min_size) == (2, "auto", (100, 200))
    assert config.model.self_reconstruction_options.threshold == 3 / 255
    assert config.data.data == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epocs": 3}, "options: unknown option 'epocs'; did you mean epochs?"),
        ({"epochs": "many"}, "options: epochs must be a whole number, got 'many'"),
        ({"config": "smal"}, "there is no preset 'smal', .*; did you mean small?"),
        ({"epochs": 3, "eval_every": 2}, "eval_every must divide epochs"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        srtod.train(**options)  # type: ignore[arg-type]


def test_evaluation() -> None:
    ground_truth = SwarmDataset(2, (128, 128), 0).ground_truth
    entry = ground_truth["annotations"][0]
    found = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}]
    assert srtod.evaluate(ground_truth, found) == evaluate_detections(ground_truth, found)


def test_importing_the_command_takes_no_function_away() -> None:
    code = "import srtod, srtod.train, sys; assert 'torch' not in sys.modules; srtod.train(epocs=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ValueError: options: unknown option 'epocs'; did you mean epochs?\n")
