"""A whole run: its folder, its logs, its checkpoints, and what it leaves when it fails."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, TrainedRun, train
from srtod.models import Detector
from srtod.models.checkpoint import load_detector
from srtod.models.reconstruction import SelfReconstructionOptions

CONFIG = TrainConfig(
    ModelConfig(channels=16, self_reconstruction_options=SelfReconstructionOptions(enhancement="dgfe")),
    DataConfig(swarm_images=10, swarm_size=128, batch_size=2),
    epochs=2,
    limit_batches=2,
    panels=1,
    seed=3,
    accelerator="cpu",
)
LOSSES = ("loss", "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_reconstruction")


Batch = tuple[list[str], list[Tensor]]


@contextmanager
def recorded() -> Iterator[list[Batch]]:
    """The training batches of the runs inside: names and pixels of their images."""
    batches: list[Batch] = []
    step = DetectionModule.training_step

    def recording(self: DetectionModule, batch: Any, index: int) -> Tensor:
        batches.append(([target["file_name"] for target in batch[1]], batch[0]))
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", recording)
        yield batches


@pytest.fixture(scope="module")
def run_and_batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, list[Batch]]:
    with recorded() as batches:
        return train(replace(CONFIG, output=str(tmp_path_factory.mktemp("runs") / "swarm"))), batches


@pytest.fixture(scope="module")
def run(run_and_batches: tuple[TrainedRun, list[Batch]]) -> TrainedRun:
    return run_and_batches[0]


def column(run: TrainedRun, name: str) -> list[float]:
    with (run.folder / "logs" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_the_folder_holds_everything(run: TrainedRun) -> None:
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "report/metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} < names
    assert {"checkpoints/MODEL_CARD.md", "report/report.html"} < names
    assert "logs/metrics.csv" in names
    assert not any(name.endswith(".part") for name in names)
    [picture] = (run.folder / "report" / "panels").iterdir()
    Image.open(picture).verify()


def test_the_reports_pictures_are_made_where_the_run_trained(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(checkpoint: object, path: Path, device: torch.device) -> None:
        raise NotImplementedError(device)

    device = torch.device("cpu", 0)  # another name of the CPU, so that it is known to come from the run
    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.root_device", device)
    monkeypatch.setattr("srtod.engine.training.restore_detector", loaded)
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")  # a finished run that still has to write its report
    for config in (replace(CONFIG, epochs=1, output=str(tmp_path / "new")), TrainConfig(resume=str(tmp_path / "run"))):
        with pytest.raises(NotImplementedError) as raised:
            train(config)
        assert raised.value.args == (device,)


def test_the_configuration_is_saved_as_it_was(run: TrainedRun) -> None:
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved == replace(CONFIG, output=saved["output"]).as_dict()


def test_metrics_are_those_of_the_best_checkpoint(run: TrainedRun) -> None:
    summary = json.loads((run.folder / "report" / "metrics.json").read_text())
    assert summary["metrics"] == run.metrics == load_detector(run.folder / summary["checkpoint"]).metrics
    assert run.metrics["AP"] == pytest.approx(max(column(run, "AP")))
    assert summary["seed"] == 3


def test_every_loss_the_threshold_and_the_learning_rate_are_logged_twice(run: TrainedRun) -> None:
    events = EventAccumulator(str(run.folder / "logs")).Reload()
    for name in [*(f"train/{loss}" for loss in LOSSES), "threshold_x255", "learning_rate", "AP", "AP50", "APvt"]:
        logged = column(run, name)
        assert [event.value for event in events.Scalars(name)] == pytest.approx(logged)
    assert column(run, "learning_rate") == pytest.approx([0.02, 0.002])


def test_a_checkpoint_alone_rebuilds_the_detector(run: TrainedRun) -> None:
    trained = load_detector(run.folder / "checkpoints" / "last.ckpt")
    assert (trained.class_names, trained.category_ids) == (["drone"], [1])
    assert not trained.detector.training
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"detector.{name}"], value) for name, value in trained.detector.state_dict().items())


def test_a_second_run_gets_a_numbered_folder_and_the_same_result(run: TrainedRun) -> None:
    before = (run.folder / "report" / "metrics.json").read_bytes()
    second = train(replace(CONFIG, output=str(run.folder)))
    assert second.folder == run.folder.with_name("swarm-2")
    assert second.metrics == run.metrics
    assert column(second, "train/loss") == column(run, "train/loss")
    assert (run.folder / "report" / "metrics.json").read_bytes() == before


def test_a_plain_detector_sees_the_same_batches_and_logs_no_threshold(
    run_and_batches: tuple[TrainedRun, list[Batch]], tmp_path: Path, blank_plots: None
) -> None:
    _, batches = run_and_batches
    model = replace(CONFIG.model, self_reconstruction=False)
    with recorded() as plain_batches:
        plain = train(replace(CONFIG, model=model, panels=0, output=str(tmp_path / "run")))
    assert len(batches) == 4
    for (names, images), (plain_names, plain_images) in zip(batches, plain_batches, strict=True):
        assert names == plain_names
        assert all(torch.equal(image, other) for image, other in zip(images, plain_images, strict=True))
    assert "threshold_x255" not in (plain.folder / "logs" / "metrics.csv").read_text()


def test_the_threshold_stays_in_range(tmp_path: Path) -> None:
    options = TrainConfig.from_dict(CONFIG.as_dict() | {"threshold": 0.0, "surrogate": "ste"})
    options = replace(options, threshold_lr=1e4, clip_grad_norm=None, epochs=1, panels=0)
    extreme = train(replace(options, output=str(tmp_path / "run")))
    assert all(0 <= value <= 255 for value in column(extreme, "threshold_x255"))
    assert (
        0
        <= load_detector(extreme.folder / "checkpoints" / "last.ckpt").detector.self_reconstruction.dgfe.threshold
        <= 1
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Detector.forward

    def exploding(self: Detector, *arguments: Any) -> Any:
        result = forward(self, *arguments)
        return {name: loss * float("nan") for name, loss in result.items()} if self.training else result

    monkeypatch.setattr(Detector, "forward", exploding)
    with pytest.raises(FloatingPointError, match="loss_classifier nan"):
        train(replace(CONFIG, output=str(tmp_path / "run")))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 12, 12]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "drone"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    file = str(tmp_path / "train.json")
    data = DataConfig(train_json=file, train_images=str(tmp_path), test_json=file, workers=workers)
    with pytest.raises(ValueError, match=r"^\S+/a\.png cannot be read as an image[^\n]*$"):
        train(replace(CONFIG, data=data, output=str(tmp_path / "run")))
