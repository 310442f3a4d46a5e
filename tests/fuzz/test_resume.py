"""Whatever the checkpoint of a training holds, the run goes on to its end, or is refused as it is, in one sentence."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, train

FUZZ = settings(
    max_examples=4 + int(os.environ.get("SRTOD_FUZZ", "1")),  # each is a training
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16, self_reconstruction=False),
    DataConfig(swarm_images=2, swarm_size=128, batch_size=1),
    epochs=2,
    ema=0.9,
    early_stop=2,
    panels=0,
    accelerator="cpu",
    threads=1,
)
VALUES: list[Any] = [
    None, True, -1, 1, 2**40, 10**400, 0.5, float("nan"), float("inf"), "0", "\x00", [], [1, 2], (), {}, {"step": 1},
    torch.zeros(()), torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(1).expand(2**40),
]  # fmt: skip
NAMES = ["step", "reset", "optimizer", "current", 7]


@st.composite
def edited(draw: st.DrawFn, content: Any) -> Any:
    """The content with one value, at any depth, replaced, taken away, renamed or new."""
    content = deepcopy(content)
    place, keys = {"": content}, [""]
    while True:
        key = draw(st.sampled_from(keys))
        inside = place[key]
        # All of a level are equally likely, however much lies below them.
        if not isinstance(inside, dict | list) or not inside or (key != "" and draw(st.integers(0, 4)) == 0):
            break
        place, keys = inside, list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    kind = draw(st.sampled_from(["replace", "remove", "new"]))
    if kind == "replace":
        place[key] = draw(st.sampled_from(VALUES))
    elif kind == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[draw(st.sampled_from(NAMES))] = draw(st.sampled_from(VALUES))
    else:
        place.append(draw(st.sampled_from(VALUES)))
    return content


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("srtod.engine.report.plot_curves", lambda curves: Figure(figsize=(1, 1)))
    monkeypatch.setattr("srtod.engine.callbacks.pictures.plot_curves", lambda curves: Figure(figsize=(1, 1)))
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped in its second epoch."""
    step = DetectionModule.training_step

    def stopping(self: DetectionModule, *arguments: Any) -> Any:
        if self.trainer.current_epoch:
            raise InterruptedError
        return step(self, *arguments)

    config = replace(CONFIG, output=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", stopping)
        with pytest.raises(InterruptedError):
            train(config)
    return tmp_path / "stopped"


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@FUZZ
@given(data=st.data())
def test_resume(data: st.DataObject, stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(stopped, run)
    last = run / "checkpoints" / "last.ckpt"
    torch.save(data.draw(edited(torch.load(last, weights_only=True))), last)
    before = files(run)
    refusal = ""
    try:
        train(TrainConfig(resume=str(run)))
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert str(last) in refusal
        assert len(refusal) < 1000
        assert files(run) == before
    else:
        assert (run / "report" / "metrics.json").is_file()
