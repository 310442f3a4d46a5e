"""Averaged weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, train
from srtod.models import SelfReconstructionOptions
from srtod.models.checkpoint import load_detector, read_checkpoint

pytestmark = pytest.mark.usefixtures("blank_plots")

CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16),
    DataConfig(swarm_images=8, swarm_size=128, horizontal_flip=0.0),
    epochs=1,
    panels=0,
    seed=3,
    accelerator="cpu",
    threads=1,
)


def test_averaged_weights_are_those_computed_by_hand_and_what_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[dict[str, Tensor]] = []
    evaluated: list[dict[str, Tensor]] = []
    step, start = DetectionModule.optimizer_step, DetectionModule.validation_step

    def recording(self: DetectionModule, *arguments: Any, **options: Any) -> None:
        step(self, *arguments, **options)
        history.append({name: value.detach().clone() for name, value in self.state_dict().items()})

    def looking(self: DetectionModule, *arguments: Any) -> Any:
        evaluated.append({name: value.detach().clone() for name, value in self.state_dict().items()})
        return start(self, *arguments)

    monkeypatch.setattr(DetectionModule, "optimizer_step", recording)
    monkeypatch.setattr(DetectionModule, "validation_step", looking)
    options = SelfReconstructionOptions(enhancement="dgfe", threshold=0.0, surrogate="ste")
    model = replace(CONFIG.model, self_reconstruction_options=options)
    train(replace(CONFIG, model=model, threshold_lr=100.0, ema=0.75, accumulate=2, output=str(tmp_path / "run")))
    assert len(history) == 2
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    detector = load_detector(tmp_path / "run" / "checkpoints" / "best.ckpt").detector.state_dict()
    for name, first in history[0].items():
        average = 0.75 * first + 0.25 * history[1][name]
        torch.testing.assert_close(checkpoint["state_dict"][name], average, rtol=1e-6, atol=1e-8)
        assert torch.equal(checkpoint["current_model_state"][name], history[1][name])
        assert torch.equal(evaluated[0][name], checkpoint["state_dict"][name])
        assert torch.equal(detector[name.removeprefix("detector.")], checkpoint["state_dict"][name])
    [threshold] = [name for name in history[0] if name.endswith("threshold")]
    thresholds = [state[threshold] for state in (*history, checkpoint["state_dict"])]
    assert all(0 <= threshold <= 1 for threshold in thresholds)
