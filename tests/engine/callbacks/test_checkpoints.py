"""What checkpoints hold, and what is left if they cannot be written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srtod.engine import DataConfig, ModelConfig, TrainConfig, train
from srtod.engine.callbacks import Checkpoints, RandomState
from srtod.engine.callbacks.checkpoints import best_detections, read_best_detections
from srtod.models.checkpoint import load_detector, read_checkpoint

pytestmark = pytest.mark.usefixtures("blank_plots")

CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16, self_reconstruction=False),
    DataConfig(swarm_images=8, swarm_size=128),
    limit_batches=1,
    panels=0,
    accelerator="cpu",
    threads=1,
)


def test_the_states_of_all_processes_are_gathered_for_the_runs_own_saves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[Any] = []
    monkeypatch.setattr(
        "srtod.engine.callbacks.checkpoints.gather", lambda value: gathered.append(value) or [value, value]
    )
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    states, content, anywhere = RandomState(), {}, {}
    with states.gathered(trainer):
        states.on_save_checkpoint(trainer, None, content)  # type: ignore[arg-type]
    states.on_save_checkpoint(trainer, None, anywhere)  # type: ignore[arg-type]  # as SLURM's signal has it
    assert [len(saved["random_state"]) for saved in (content, anywhere)] == [2, 1]
    assert len(gathered) == 1


def test_the_best_checkpoint_keeps_its_detections_where_the_next_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation: Any = SimpleNamespace(detections={})
    checkpoints = Checkpoints(tmp_path, evaluation, None, RandomState(), {})

    def full(*_: Any) -> None:
        raise OSError

    def kept(step: int, score: float) -> list[str]:
        trainer: Any = SimpleNamespace(global_step=step, callback_metrics={"AP": score})
        with suppress(OSError):
            checkpoints.on_validation_end(trainer, None)  # type: ignore[arg-type]
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    monkeypatch.setattr(checkpoints, "_save", lambda *_: None)
    assert kept(2, 0.1) == ["best_detections_2.pt"]
    monkeypatch.setattr(checkpoints, "_save", full)
    assert kept(4, 0.2) == ["best_detections_2.pt", "best_detections_4.pt"]
    monkeypatch.setattr(checkpoints, "_save", lambda *_: None)
    assert kept(6, 0.3) == ["best_detections_6.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: SimpleNamespace()}, "is damaged or holds something else than detections"),  # of a class, which is not made
        (
            {1: {"boxes": torch.zeros(2, 4), "labels": torch.ones(1), "scores": torch.ones(1)}},
            "holds something else than det",
        ),
        ([1, 2], "holds something else than detections"),
    ],
)
def test_saved_detections_that_are_none_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    best = tmp_path / "best.ckpt"
    torch.save(content, best_detections(best, 5))
    with pytest.raises(
        ValueError, match=rf"best_detections_5\.pt {message}.*; find .* anew by srtod predict .*best\.ckpt$"
    ):
        read_best_detections(best, 5)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = torch.save, 0

    def filling(content: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:  # the detections, best.ckpt and last.ckpt of the first epoch
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", filling)
    with pytest.raises(
        OSError, match=r"could not be written \(.*No space left on device.*\); the one before it is kept"
    ):
        train(replace(CONFIG, epochs=2, output=str(tmp_path / "run")))
    checkpoints = tmp_path / "run" / "checkpoints"
    best = checkpoints / "best.ckpt"
    detections = best_detections(best, read_checkpoint(best)["global_step"])
    assert sorted(checkpoints.iterdir()) == [best, detections, checkpoints / "last.ckpt"]
    load_detector(checkpoints / "last.ckpt")
