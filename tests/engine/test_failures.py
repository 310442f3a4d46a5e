"""What goes wrong while a run trains: memory, compilers and images that cannot be decoded."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from srtod.data import Sample
from srtod.engine import DataConfig, DetectionModule, ModelConfig, TrainConfig, train
from srtod.engine.failures import check_machine, explained

pytestmark = pytest.mark.usefixtures("blank_plots")

CONFIG = TrainConfig(
    ModelConfig("retinanet", channels=16, self_reconstruction=False),
    DataConfig(swarm_images=4, swarm_size=128),
    epochs=1,
    panels=0,
    accelerator="cpu",
    threads=1,
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError("Unable to allocate 8. GiB for an array"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ],
    ids=["cuda", "cpu", "numpy", "loader"],
)
def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(DetectionModule, "training_step", failing)
    with pytest.raises(MemoryError) as raised:
        train(replace(CONFIG, output=str(tmp_path / "run")))
    assert str(raised.value) == (
        f"not enough memory ({str(error).splitlines()[0]}); lower batch_size 2 (with accumulate raised from 1 by as "
        "much, steps stay the same), the size of training images by crop, channels 16 or precision to bf16-mixed"
    )


@pytest.mark.parametrize(
    ("model", "is_told"),
    [
        ({}, False),
        ({"reconstruction": "paper", "recompute": False}, True),
        ({"reconstruction": "paper"}, False),
        ({"recompute": False}, False),  # no other head has anything to recompute
        ({"reconstruction": "paper", "recompute": False, "self_reconstruction": False}, False),
    ],
    ids=str,
)
def test_out_of_memory_says_that_the_reconstruction_can_be_recomputed(
    tmp_path: Path, model: dict[str, Any], is_told: bool
) -> None:
    config = TrainConfig.from_dict(CONFIG.as_dict() | {"detector": "faster_rcnn", "self_reconstruction": True, **model})
    with pytest.raises(MemoryError) as raised, explained(config, tmp_path / "checkpoints" / "last.ckpt"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    said = str(raised.value)
    assert ("out of memory.); set recompute, or lower batch_size 2" in said) == is_told
    assert ("recompute" in said) == is_told


class Samples(Dataset[Sample]):
    """Images whose loading ends as `end` does."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Sample:
        self.end()
        raise AssertionError


def dying(number: int) -> Callable[[], None]:
    def end() -> None:
        time.sleep(1)  # until the main process waits, as it does in training, and hears of it
        os.kill(os.getpid(), number)

    return end


def refused_file() -> None:
    Path("absent.png").read_bytes()


def full_memory() -> None:
    raise RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        # PyTorch does not always hear of the signal, and then only that the process is gone.
        (dying(signal.SIGKILL), MemoryError, r"^not enough memory .*\(DataLoader worker .*\); lower .*workers 1"),
        (
            dying(signal.SIGBUS),
            MemoryError,
            r"^not enough .*shared memory .*\(DataLoader worker .*\); lower --workers 1",
        ),
        (full_memory, MemoryError, r"not enough shared memory .*\(unable to write .*\); .* or make /dev/shm larger"),
        (refused_file, FileNotFoundError, r"^\[Errno 2\] No such file or directory: 'absent\.png'$"),
    ],
    ids=["killed", "bus error", "full", "file"],
)
def test_what_processes_that_load_images_die_of_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[], None],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("srtod.engine.data.TrainingSamples", lambda *_: Samples(end))
    # How often PyTorch asks whether the process lives, in seconds; it would be every 5.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    with pytest.raises(error, match=message) as raised:
        train(replace(CONFIG, data=replace(CONFIG.data, workers=1), output=str(tmp_path / "run")))
    assert "\n" not in str(raised.value)


BUS = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that workers are out of")


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            r"^not enough memory \(.*Killed\.\); lower b",
        ),
        (BUS, r"^not enough shared memory for the processes .*Bus error.*; lower --workers 0, or make /dev/shm larger"),
        (TimeoutError(), r"^not enough memory or shared memory for .* \(.*\(pid\(s\) 7\) exited .*; lower --workers 0"),
    ],
    ids=["killed", "bus error", "unknown"],
)
def test_what_killed_a_process_that_loads_images_is_told_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, message: str
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from cause

    monkeypatch.setattr(DetectionModule, "training_step", failing)
    with pytest.raises(MemoryError, match=message):
        train(replace(CONFIG, output=str(tmp_path / "run")))


def test_deterministic_deformable_convolutions_are_refused_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = TrainConfig(ModelConfig("detectors", backbone="resnet18"), deterministic=True)
    with pytest.raises(ValueError, match=r"^deterministic needs .* on CUDA, .*; pass --no-sac, or leave out determ"):
        check_machine(config)
    check_machine(replace(config, deterministic=False))
    check_machine(replace(config, accelerator="cpu"))
    check_machine(replace(config, model=replace(config.model, sac=False)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:53972. This is typically"
        ),
        torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:94, remote process exited"),
    ],
    ids=["gloo", "nccl"],
)
def test_a_process_that_has_lost_another_one_says_no_more_than_that(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(ConnectionError, match=r"^another process of the run has ended, .*; see that one's own error$"),
        explained(replace(CONFIG, devices=2), tmp_path / "checkpoints" / "last.ckpt"),
    ):
        raise error
    with pytest.raises(type(error)), explained(CONFIG, tmp_path / "checkpoints" / "last.ckpt"):
        raise error


def test_other_errors_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(DetectionModule, "training_step", failing)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        train(replace(CONFIG, output=str(tmp_path / "run")))


def test_a_model_that_cannot_be_compiled_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\nin this place")

    monkeypatch.setattr(DetectionModule, "training_step", failing)
    with pytest.raises(
        ValueError, match=r"cannot be compiled \(No working C\+\+ compiler found\); .* leave out compile"
    ):
        train(replace(CONFIG, compile=True, output=str(tmp_path / "run")))
