"""Fixtures of the engine's tests: a watched run, a stand-in for Weights & Biases, and blank plots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers import wandb as lightning_wandb
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srtod._support.fields import build
from srtod.engine import DataConfig, DetectionData, DetectionModule, Evaluation, ModelConfig, TrainConfig
from srtod.engine.callbacks import FilterShare, Pictures
from srtod.engine.logs import wandb_logger
from srtod.models import Detector


@pytest.fixture(scope="module")
def blank_plots() -> Iterator[None]:
    """Runs draw an empty figure in place of the precision-recall curves, which take half the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("callbacks.pictures", "report"):
            patch.setattr(f"srtod.engine.{module}.plot_curves", lambda curves: Figure(figsize=(1, 1)))
        yield


class WandbRun:
    """A stand-in for a run of wandb that keeps what it is told."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[dict[str, Any]] = []
        self.config = SimpleNamespace(update=lambda *arguments, **options: None)
        self.metrics: list[str] = []

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics.append(name)

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


def stand_in(patch: pytest.MonkeyPatch) -> list[WandbRun]:
    """Puts a stand-in in the place of wandb; the runs that it begins."""
    runs: list[WandbRun] = []

    def init(**options: Any) -> WandbRun:
        runs.append(WandbRun(**options))
        return runs[-1]

    def module(name: str, **content: Any) -> None:
        stub = ModuleType(name)
        vars(stub).update(content)
        patch.setitem(sys.modules, name, stub)

    module("wandb", init=init, run=None, Image=lambda picture, **options: picture)
    module("wandb.sdk")
    module("wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module("wandb.wandb_run", Run=WandbRun)
    patch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return runs


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[WandbRun]:
    """The runs that begin at the stand-in for Weights & Biases."""
    return stand_in(monkeypatch)


class Watched(NamedTuple):
    """A run of two epochs of a batch, with an evaluation after each, and what the callbacks under test left of it."""

    folder: Path
    events: EventAccumulator
    wandb: WandbRun
    forwards: int
    reconstructions: int


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    config = TrainConfig(
        build(ModelConfig, {"channels": 16, "enhancement": "dgfe", "threshold": 0.1}),
        DataConfig(swarm_images=25, swarm_size=128, batch_size=3),  # 5 test images: a whole batch and one that is not
        epochs=2,
        accelerator="cpu",
    )
    folder = tmp_path_factory.mktemp("runs") / "swarm-2"
    folder.mkdir()
    data = DetectionData(config.data, config.seed)
    L.seed_everything(config.seed, verbose=False)
    module = DetectionModule(config, data.test_set.class_names, data.test_set.category_ids)
    evaluation = Evaluation(data.test_set.ground_truth, data.test_set.category_ids)
    calls = {"forward": 0, "reconstruct": 0}
    with pytest.MonkeyPatch.context() as patch:
        runs = stand_in(patch)
        for name in calls:
            original = getattr(Detector, name)

            def counted(self: Detector, *arguments: Any, name: str = name, original: Any = original) -> Any:
                calls[name] += not self.training
                return original(self, *arguments)

            patch.setattr(Detector, name, counted)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=config.epochs,
            limit_train_batches=1,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            logger=[TensorBoardLogger(folder, name="", version="logs"), wandb_logger(folder, "drones")],
            callbacks=[evaluation, FilterShare(), Pictures(evaluation, data.test_set, data.test_set.class_names, 2)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        events = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0}).Reload()
        yield Watched(folder, events, runs[0], calls["forward"], calls["reconstruct"])
