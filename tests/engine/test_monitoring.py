"""What the logs of a run show: scalars and pictures, read back from TensorBoard and from a stand-in for wandb."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers import wandb as lightning_wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srtod.engine import DataConfig, DetectionData, DetectionModule, Evaluation, ModelConfig, TrainConfig
from srtod.engine.monitoring import FilterShare, Pictures, check_wandb, wandb_logger
from srtod.engine.panels import NO_DETECTIONS
from srtod.evaluation import Curve
from srtod.models import Detector

BINS = ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm")
CONFIG = TrainConfig(
    ModelConfig(channels=16, threshold=0.1),
    DataConfig(swarm_images=25, swarm_size=128, batch_size=3),  # 5 test images: a whole batch and one that is not
    epochs=2,
    accelerator="cpu",
)


class Run:
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


def stand_in(patch: pytest.MonkeyPatch) -> list[Run]:
    """Puts a stand-in in the place of wandb; the runs that it begins."""
    runs: list[Run] = []

    def init(**options: Any) -> Run:
        runs.append(Run(**options))
        return runs[-1]

    def module(name: str, **content: Any) -> None:
        stub = ModuleType(name)
        vars(stub).update(content)
        patch.setitem(sys.modules, name, stub)

    module("wandb", init=init, run=None, Image=lambda picture, **options: picture)
    module("wandb.sdk")
    module("wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module("wandb.wandb_run", Run=Run)
    patch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return runs


class Watched(NamedTuple):
    """A run of two epochs of a batch, with an evaluation after each, and what the callbacks under test left of it."""

    folder: Path
    events: EventAccumulator
    wandb: Run
    forwards: int
    reconstructions: int


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("runs") / "swarm-2"
    folder.mkdir()
    data = DetectionData(CONFIG.data, CONFIG.seed)
    L.seed_everything(CONFIG.seed, verbose=False)
    module = DetectionModule(CONFIG, data.test_set.class_names, data.test_set.category_ids)
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
            max_epochs=CONFIG.epochs,
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


def test_scalars_of_every_evaluation(watched: Watched) -> None:
    names = {*BINS, "threshold_x255", "filter_share", "train/loss", "train/loss_reconstruction"}
    assert names < set(watched.events.Tags()["scalars"])
    for name in (*BINS, "filter_share"):
        assert len(watched.events.Scalars(name)) == 2
    assert all(0 <= event.value <= 1 for event in watched.events.Scalars("filter_share"))


def test_pictures_of_every_evaluation(watched: Watched) -> None:
    names = watched.events.Tags()["images"]
    assert set(names) == {"panels/swarm_1_00000", "panels/swarm_1_00002", "precision_recall"}
    for name in names:
        pictures = watched.events.Images(name)
        assert [picture.step for picture in pictures] == [1, 2]
        decoded = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
        assert decoded.size == (pictures[-1].width, pictures[-1].height)
        assert 1000 < decoded.width <= 4096


def test_they_cost_a_reconstruction_for_each_picture_and_no_other_pass(watched: Watched) -> None:
    assert watched.forwards == 2 * 2  # two batches an evaluation
    assert watched.reconstructions == 2 * 2


def test_wandb_gets_scalars_and_pictures(watched: Watched) -> None:
    run = watched.wandb
    assert {key: run.options[key] for key in ("project", "name", "dir")} == {
        "project": "drones",
        "name": "swarm-2",
        "dir": str(watched.folder / "logs"),
    }
    assert "mode" not in run.options  # so that WANDB_MODE decides
    assert {*BINS, "filter_share", "threshold_x255", "train/loss"} < {name for values in run.logged for name in values}
    panels = [values for values in run.logged if "panels/swarm_1_00000" in values]
    assert [values["trainer/global_step"] for values in panels] == [1, 2]
    [picture] = panels[0]["panels/swarm_1_00000"]
    assert isinstance(picture, Image.Image)
    assert sum("precision_recall" in values for values in run.logged) == 2


def test_only_the_first_process_makes_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(Pictures, "_pictures", lambda self, module: made.append("picture") or [])
    data = DetectionData(CONFIG.data, 0).test_set
    pictures = Pictures(Evaluation(data.ground_truth, data.category_ids), data, data.class_names, 2)
    trainer: Any = SimpleNamespace(sanity_checking=False, loggers=[], global_step=0)
    for main in (False, True):
        monkeypatch.setattr("srtod.engine.monitoring.is_main_process", lambda main=main: main)
        pictures.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
        assert len(made) == main


def share(module: DetectionModule, images: list[torch.Tensor]) -> float | None:
    """What is logged after an evaluation of a batch."""
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    callback, trainer = FilterShare(), L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    callback.on_validation_epoch_start(trainer, module)
    with torch.no_grad():
        module.detector.eval()(images)
    callback.on_validation_epoch_end(trainer, module)
    return logged.get("filter_share")


def striped(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Noise beside grey, which is what a head that has learnt nothing gives: some of it passes the filter."""
    images = [torch.rand(3, height, width) for height, width in sizes]
    for image in images:
        image[:, :, : image.shape[2] // 2] = 0.5
    return images


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"enhancement": "attention"},
        {"enhancement": "multiplication"},
        {"enhancement": "concatenation"},
        {"threshold": None},
        {"threshold": None, "enhancement": "multiplication"},
        {"resize": "max", "threshold": 0.3},  # one pixel of 16 is enough to pass
        {"resize": "area", "threshold": 0.3},
        {"resize": "bilinear"},
        {"difference": "high_frequency"},
        {"detector": "fcos"},
    ],
    ids=lambda model: "-".join(map(str, model.values())) or "default",
)
def test_the_share_is_that_of_the_whole_filters_pixels_without_padding(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = DetectionModule(TrainConfig(ModelConfig(**{"channels": 16, "threshold": 0.15, **model})), ["drone"], [1])
    images = striped((64, 64), (41, 64), (64, 33))
    logged = share(module, images)
    whole = module.detector.reconstruct(images)  # by the plug's forward, without padding
    passes = torch.cat([parts.filter.flatten() for parts in whole]) > 1
    passing = float(passes.double().mean())
    assert logged == pytest.approx(passing)
    assert passing > 0.95 if model.get("threshold", 0) is None else 0.05 < passing < 0.95


@pytest.mark.parametrize("compiled", [False, True])
def test_the_share_under_compile_and_autocast(compiled: bool) -> None:
    torch.manual_seed(0)
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, threshold=0.15)), ["drone"], [1])
    images = striped((64, 64), (41, 64))
    expected = share(module, images)
    plug = module.detector.self_reconstruction
    assert plug is not None
    if compiled:
        plug.compile(backend="eager")
        assert share(module, images) == pytest.approx(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert share(module, images) == pytest.approx(expected, abs=0.03)  # bfloat16 moves the map a little


def test_nothing_is_left_on_the_detector() -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16)), ["drone"], [1])
    hooks = [len(part._forward_hooks) for part in module.detector.modules()]
    assert share(module, [torch.rand(3, 64, 64)]) is not None
    assert [len(part._forward_hooks) for part in module.detector.modules()] == hooks


def test_the_share_counts_beyond_what_float32_can() -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, threshold=None)), ["drone"], [1])
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    callback: Any = FilterShare()
    callback.on_validation_epoch_start(None, module)
    callback._passed += 2**24
    for _ in range(3):
        callback._passed += 1
    callback._total = 2**25
    callback.on_validation_epoch_end(None, module)
    assert logged["filter_share"] == (2**24 + 3) / 2**25


def test_an_image_that_cannot_be_read_any_more_has_no_picture() -> None:
    data = DetectionData(CONFIG.data, 0).test_set
    evaluation = Evaluation(data.ground_truth, data.category_ids)
    evaluation.curves = {"all": Curve(1, np.ones(101), np.ones(101))}
    pictures = Pictures(evaluation, data, data.class_names, 2)
    module = DetectionModule(CONFIG, data.class_names, data.category_ids).eval()
    ids = [image["id"] for image in data.ground_truth["images"]]
    for found, expected in ((ids, ["swarm_1_00000", "swarm_1_00002"]), (ids[1:], ["swarm_1_00002"])):
        evaluation.detections = dict.fromkeys(found, NO_DETECTIONS)
        named = [name for name, _ in pictures._pictures(module)]
        assert named == [*(f"panels/{name}" for name in expected), "precision_recall"]


@pytest.mark.parametrize("model", [{"self_reconstruction": False}, {"enhancement": "none"}], ids=str)
def test_without_a_filter_there_is_no_share(model: dict[str, Any]) -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, **model)), ["drone"], [1])
    assert share(module, [torch.rand(3, 64, 64)]) is None


def test_without_wandb_asking_for_it_is_an_error_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", False)
    check_wandb(None)
    with pytest.raises(ValueError, match=r"is not installed; install it \(pip install wandb\) or leave wandb out"):
        check_wandb("drones")


def test_a_resumed_run_goes_on_in_the_same_place_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = stand_in(monkeypatch)
    check_wandb("drones")
    assert wandb == []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        assert wandb_logger(tmp_path / name, "drones").experiment is wandb[-1]
    first, again, other = (run.options["id"] for run in wandb)
    assert first == again != other
    assert all(run.options["resume"] == "allow" for run in wandb)
