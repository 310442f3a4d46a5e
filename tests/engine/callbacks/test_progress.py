"""The progress bar, also of a run that is resumed within an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, train

pytestmark = pytest.mark.usefixtures("blank_plots")

CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16, self_reconstruction=False),
    DataConfig(swarm_images=4, swarm_size=128, batch_size=1),
    epochs=1,
    save_every=1,
    panels=0,
    accelerator="cpu",
    threads=1,
)


class StoppedError(Exception):
    """Stands for a kill."""


def test_a_resumed_run_shows_its_epoch_and_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = DetectionModule.training_step, 0

    def stopping(self: DetectionModule, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoppedError
        return step(self, *arguments)

    monkeypatch.setattr(DetectionModule, "training_step", stopping)
    with pytest.raises(StoppedError):
        train(replace(CONFIG, output=str(tmp_path / "run")))
    capsys.readouterr()
    train(TrainConfig(resume=str(tmp_path / "run")))
    shown = [bar for bar in capsys.readouterr().out.split("\r") if "train/loss" in bar]
    assert shown
    assert all(bar.startswith("Epoch 0: ") for bar in shown)
    assert "| 3/4 [" in shown[0]
    assert "| 4/4 [" in shown[-1]
    assert not any("v_num" in bar for bar in shown)
