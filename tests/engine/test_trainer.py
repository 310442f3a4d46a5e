"""What the options of training do to it: accumulation, early stop, compilation, the scaled learning rate."""

from __future__ import annotations

import csv
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from srtod.data import SwarmDataset
from srtod.engine import DataConfig, DetectionModule, Evaluation, ModelConfig, TrainConfig, train
from srtod.engine.failures import check_machine
from srtod.models import SelfReconstructionOptions
from srtod.models.checkpoint import read_checkpoint

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


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def column(folder: Path, name: str) -> list[float]:
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_batches_of_one_accumulated_to_two_train_as_batches_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The losses are divided by the positive priors of a batch: every image gets the boxes of the first, so that the
    # mean over two batches is that over one.
    sample = SwarmDataset._sample
    boxes: list[Any] = []

    def same_boxes(self: SwarmDataset, image: Tensor, *rest: Any, **more: Any) -> Any:
        if not boxes:
            boxes.extend(rest[:2])
        return sample(self, image, *boxes, *rest[2:], **more)

    monkeypatch.setattr(SwarmDataset, "_sample", same_boxes)
    for name, batch_size, accumulate in (("one", 2, 1), ("two", 1, 2)):
        data = replace(CONFIG.data, batch_size=batch_size)
        model = replace(CONFIG.model, self_reconstruction=False)  # whose ReLUs at 0 make more of rounding
        train(replace(CONFIG, model=model, data=data, accumulate=accumulate, output=str(tmp_path / name)))
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        # Float32 gradients summed in another order, over four steps of a rate of 0.02: 4e-8 were found.
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    rates = [column(tmp_path / name, "learning_rate") for name in ("one", "two")]
    assert rates[0] == rates[1]  # the schedule counts optimizer steps


def test_a_run_stops_early_after_evaluations_without_a_better_ap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.4])
    end = Evaluation.on_validation_epoch_end

    def scripted(self: Evaluation, trainer: L.Trainer, module: L.LightningModule) -> None:
        log = module.log
        score = next(scores)
        monkeypatch.setattr(
            module, "log", lambda name, value, **more: log(name, score if name == "AP" else value, **more)
        )
        end(self, trainer, module)
        monkeypatch.undo()
        monkeypatch.setattr(Evaluation, "on_validation_epoch_end", scripted)

    monkeypatch.setattr(Evaluation, "on_validation_epoch_end", scripted)
    model = replace(CONFIG.model, self_reconstruction=False)
    train(replace(CONFIG, model=model, epochs=5, limit_batches=1, early_stop=2, output=str(tmp_path / "run")))
    assert column(tmp_path / "run", "AP") == pytest.approx([0.1, 0.3, 0.2, 0.3])
    checkpoints = tmp_path / "run" / "checkpoints"
    assert read_checkpoint(checkpoints / "best.ckpt")["epoch"] == 1
    with pytest.raises(ValueError, match=r"run has finished"):
        train(TrainConfig(resume=str(tmp_path / "run")))


@pytest.mark.parametrize(("lr_batch", "expected"), [(None, 0.02), (4, 0.03), (12, 0.01)])
def test_the_learning_rate_is_scaled_to_the_images_of_a_step(lr_batch: int | None, expected: float) -> None:
    data = replace(CONFIG.data, batch_size=3)
    config = replace(CONFIG, data=data, accumulate=2, lr_batch=lr_batch, lr_steps=(9,))
    module = DetectionModule(config, ["drone"], [1])
    for processes in (1, 2):
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=processes, datamodule=SimpleNamespace(train_set=range(12)), barebones=False
        )
        weights, *_ = module.configure_optimizers()["optimizer"].param_groups
        assert weights["lr"] == pytest.approx(expected if lr_batch is None else processes * expected)


@pytest.mark.slow
def test_a_compiled_run_equals_an_eager_one(tmp_path: Path) -> None:
    # The paper's head: with the subpixel head rounding came to 2.5e-5, over the bound below.
    options = SelfReconstructionOptions(reconstruction="paper", enhancement="dgfe", threshold=4 / 255)
    config = replace(CONFIG, model=replace(CONFIG.model, self_reconstruction_options=options), limit_batches=1)
    for compiled in (False, True):
        train(replace(config, compile=compiled, output=str(tmp_path / str(compiled))))
    eager, compiled_weights = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert compiled_weights.keys() == eager.keys()
    for name, value in compiled_weights.items():
        # Fused kernels round in another order: 1e-4 of a gradient at most, of which lr 0.02 and a norm of 10 remain.
        torch.testing.assert_close(value, eager[name], rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_recomputing_the_reconstruction_trains_alike(tmp_path: Path) -> None:
    runs = {}
    for recompute in (False, True):
        options = SelfReconstructionOptions(reconstruction="paper", recompute=recompute)
        model = replace(CONFIG.model, self_reconstruction_options=options)
        config = replace(CONFIG, model=model, limit_batches=1, output=str(tmp_path / str(recompute)))
        plug = DetectionModule(config, ["drone"], [1]).detector.self_reconstruction
        assert plug is not None
        assert plug.options.recompute == recompute
        runs[recompute] = read_checkpoint(train(config).folder / "checkpoints" / "last.ckpt")
    for name, value in runs[True]["state_dict"].items():
        # Gradients are summed in another order; later steps would make more of it.
        torch.testing.assert_close(value, runs[False]["state_dict"][name], rtol=0, atol=1e-6)
    assert runs[True]["srtod"] == runs[False]["srtod"]  # the same detector: a run can go on either way


def test_deterministic_and_bf16_runs_repeat_themselves(tmp_path: Path) -> None:
    config = replace(CONFIG, deterministic=True, precision="bf16-mixed", limit_batches=1)
    try:
        first, second = (weights(train(replace(config, output=str(tmp_path / "run"))).folder) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "16-mixed"}, "precision '16-mixed' needs a CUDA device; use '32-true' or 'bf16-mixed'"),
        ({"accelerator": "cuda"}, "PyTorch finds no CUDA device"),
    ],
)
def test_what_a_machine_without_cuda_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        check_machine(replace(CONFIG, **options))


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({}, {"RANK": "1"}, r"^RANK is 1 in the environment, as if .* nothing has started the others; unset RANK$"),
        ({"devices": 2}, {"RANK": "1"}, "unset RANK$"),
        ({}, {"LOCAL_RANK": "1"}, "unset LOCAL_RANK$"),
        ({}, {"SLURM_PROCID": "2"}, "unset SLURM_PROCID$"),
        ({"devices": 2}, {"NODE_RANK": "1"}, "NODE_RANK is 1 in the environment, but nodes is 1; unset NODE_RANK$"),
        ({}, {"SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4 in the environment, but devices 1 and nodes 1 make 1; pass"),
        ({"devices": 2}, {"SLURM_NTASKS": "2"}, "srun did not start this process with --ntasks-per-node; start it by"),
        ({"nodes": 2}, {"MASTER_PORT": "1"}, "find each other: MASTER_ADDR, NODE_RANK not set; start by torchrun or"),
        ({"data": replace(CONFIG.data, workers=65)}, {}, "workers is 65, but there are 2 CPU cores; lower workers"),
        ({"devices": 99}, {}, "devices is 99, but there are 2 CPU cores for as many processes; lower devices"),
        (
            {"devices": 2},
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"},
            "torchrun started 4 processes, but devices 2 and nodes 1 make 2",
        ),
        ({}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, None),
        ({}, {"RANK": "0", "SLURM_NTASKS": "1"}, None),
        ({"devices": 2}, {"LOCAL_RANK": "1", "RANK": "1"}, None),  # of one that Lightning, or the user, has started
        (
            {"devices": 2},
            {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            None,
        ),
        ({"devices": 2, "nodes": 2}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3"}, None),
        ({"nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "1"}, None),
    ],
    ids=str,
)
def test_an_environment_of_other_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], environment: dict[str, str], message: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(2))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_machine(replace(CONFIG, **options))
