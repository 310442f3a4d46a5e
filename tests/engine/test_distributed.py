"""Several processes train as one with their batches together, and their evaluation counts every image once.

Run as a script, this file is `python -m srtod.train` whose processes kill themselves in the second of two epochs.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import srtod.train
from srtod.engine import DataConfig, DetectionData, DetectionModule
from srtod.engine.sampling import EpochSampler, shard
from srtod.models.checkpoint import read_checkpoint

# 6 training images and 1 test image, which two processes both get. A one-stage detector without group norm or dropout
# draws nothing and treats images one by one.
OPTIONS = [
    *("--detector", "retinanet", "--channels", "16", "--swarm-images", "12", "--swarm-size", "128", "--panels", "1"),
    *(
        "--epochs",
        "2",
        "--lr",
        "0.005",
        "--limit-batches",
        "3",
        "--threads",
        "1",
        "--accelerator",
        "cpu",
        "--ema",
        "0.5",
    ),
]


SAME = ["--reconstruction", "paper", "--enhancement", "dgfe", "--threshold", "4/255"]
"""A head that learns slowly enough not to magnify rounding, and a threshold that does not depend on the batch."""


@pytest.mark.parametrize(("length", "world_size"), [(6, 2), (7, 2), (1, 4), (9, 3)])
def test_processes_share_the_images_of_one_process(length: int, world_size: int) -> None:
    whole = list(EpochSampler(length, seed=1))
    parts = [list(EpochSampler(length, seed=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    together = [entry for step in zip(*parts, strict=True) for entry in step]
    assert together[:length] == whole
    assert set(together) == set(whole)
    assert sorted({place for rank in range(world_size) for place in shard(length, rank, world_size)}) == list(
        range(length)
    )


def test_a_resumed_epoch_goes_on_behind_what_was_done_and_the_next_is_whole() -> None:
    sampler, whole = (
        EpochSampler(10, seed=1, rank=1, world_size=2, epoch=3, done=2),
        EpochSampler(10, 1, rank=1, world_size=2),
    )
    whole.set_epoch(3)
    assert list(sampler) == list(whole)[2:]
    assert len(sampler) == len(whole) == 5
    for epoch in (4, 3):
        sampler.set_epoch(epoch)
    sampler.set_epoch(4)
    whole.set_epoch(4)
    assert list(sampler) == list(whole)


def run(
    folder: Path, *options: str, launcher: tuple[str, ...] = ("-m", "srtod.train")
) -> subprocess.CompletedProcess[str]:
    return call(*launcher, *OPTIONS, "--output", str(folder), *options)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)


def main() -> None:
    step, calls = DetectionModule.training_step, count()

    def killed(self: DetectionModule, *arguments: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    DetectionModule.training_step = killed  # type: ignore[method-assign]
    srtod.train.main()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path: Path) -> None:
    """But for an automatic threshold: the mean of two quantiles is not that of both processes' pixels."""
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", "-m", "srtod.train")
    for folder, batch_size, options, launcher in (
        (one, 2, (), ("-m", "srtod.train")),
        (two, 1, ("--devices", "2"), ("-m", "srtod.train")),
        (tmp_path / "torchrun", 1, ("--devices", "2"), torchrun),
    ):
        process = run(folder, "--batch-size", str(batch_size), *SAME, *options, launcher=launcher)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count(f"{folder}:") == 1  # one process alone prints the result
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "torchrun", "two"]
    expected = rows(one)
    for folder in (two, tmp_path / "torchrun"):
        found = rows(folder)
        assert len(found) == len(expected)
        for row, other in zip(found, expected, strict=True):
            assert row.keys() == other.keys()
            for name, value in row.items():
                # float32 sums in another order: 1e-7 each, some hundreds of them, over six steps of SGD, in which
                # the reconstruction falls fast and magnifies them: 5e-7 of its loss in the first, 1.2e-4 in the last
                assert (value == other[name] == "") or float(value) == pytest.approx(
                    float(other[name]), rel=1e-3, abs=1e-5
                ), name
        weights, others = (read_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (folder, one))
        for name, value in weights.items():
            torch.testing.assert_close(
                value, others[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_the_end_of_the_whole_run(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    options = ("--batch-size", "1", "--devices", "2", "--save-every", "1", "--detector", "faster_rcnn")  # which draws
    for output, launcher, status in ((whole, ("-m", "srtod.train"), 0), (folder, (__file__,), -signal.SIGKILL)):
        process = run(output, *options, launcher=launcher)
        assert process.returncode == status, process.stderr
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    process = call("-m", "srtod.train", "--resume", str(folder))
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    assert rows(folder) == rows(whole)
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = (read_checkpoint(path / "checkpoints" / name) for path in (folder, whole))
        assert found["state_dict"].keys() == expected["state_dict"].keys()
        for key, value in expected["state_dict"].items():
            assert torch.equal(found["state_dict"][key], value), key
        states = [state["torch"] for state in found["random_state"]]
        assert len(states) == 2
        assert not torch.equal(*states)
        assert all(
            torch.equal(one, other["torch"]) for one, other in zip(states, expected["random_state"], strict=True)
        )


@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "SIGINT"]
)
def test_a_wait_for_other_machines_is_told_and_ended_by_a_signal_without_a_trace(
    tmp_path: Path, kind: signal.Signals
) -> None:
    port = 29600 + kind  # so that both can run at once
    # Where pytest runs in the background, it ignores SIGINT, and so would what it starts.
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from srtod.engine import waiting\nwaiting.PATIENCE = 1.0\n"
    code += "from srtod import train\nfrom srtod._support.cli import run\nrun(train.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *OPTIONS, "--nodes", "2", "--output", str(tmp_path / "run")],
        env=os.environ
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("waiting"))
    assert said.startswith(f"waiting for the 2 processes of the run to meet at 127.0.0.1:{port} (MASTER_ADDR and ")
    assert (tmp_path / "run" / "config.yaml").exists()
    process.send_signal(kind)
    assert "interrupted while waiting" in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + kind
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_ends_both_processes_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    options = (*OPTIONS, "--devices", "2", "--epochs", "1000", "--output", str(tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-m", "srtod.train", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "said").open("w"),
    )
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    said = (tmp_path / "said").read_text()
    assert f"the last checkpoint is {last}, and --resume {tmp_path / 'run'} goes on from it" in said
    assert "Traceback" not in said
    read_checkpoint(last)


def test_one_process_that_is_its_own_share_sees_everything() -> None:
    data = DetectionData(DataConfig(swarm_images=6, swarm_size=128), seed=0)
    assert len(data.train_dataloader()) == 3
    assert [target["image_id"] for _, targets in data.val_dataloader() for target in targets] == [1]


if __name__ == "__main__":
    main()
