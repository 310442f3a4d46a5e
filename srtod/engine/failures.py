"""What a machine cannot do, and what can go wrong while it trains, each in one sentence with the cure."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from srtod._support.errors import first_line, is_out_of_memory

from .config import TrainConfig
from .distributed import check_processes

__all__ = ["check_machine", "explained"]

TRACEBACK = "Original Traceback"
"""What is in the message of an error from a process that loads images."""

LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
"""What is in the message of an error in a process that waits for another one of the run, which is gone."""

LOST_LOG = "you tried to log"
"""What is in the message of Lightning's error where TensorBoard's logger could not write."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of a full or broken disk."""

WORKERS = 32
"""Processes that load images, for each core of the CPU at most."""

DEAD_LOADER = "exited unexpectedly"
"""What is in the message where such a process died and it is not always known of what."""


def check_machine(config: TrainConfig) -> None:
    """Raises a ValueError if this machine, or the way the processes were started, cannot do what the run asks for."""
    has_cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not has_cuda:
        raise ValueError("accelerator is 'cuda', but PyTorch finds no CUDA device; use 'cpu' or 'auto'")
    on_cuda = has_cuda and config.accelerator != "cpu"
    if config.precision == "16-mixed" and not on_cuda:
        raise ValueError("precision '16-mixed' needs a CUDA device; use '32-true' or 'bf16-mixed' on the CPU")
    if on_cuda and config.deterministic and config.model.detector == "detectors" and config.model.sac:
        raise ValueError(
            "deterministic needs detectors without switchable atrous convolution on CUDA, where torchvision's "
            "deformable convolution has no deterministic gradient; pass --no-sac, or leave out deterministic"
        )
    if on_cuda and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {config.devices}, but PyTorch finds {torch.cuda.device_count()} CUDA devices; lower devices"
        )
    cores = len(os.sched_getaffinity(0))
    if not on_cuda and config.devices > cores:
        raise ValueError(
            f"devices is {config.devices}, but there are {cores} CPU cores for as many processes; lower devices"
        )
    if config.data.workers > WORKERS * cores:
        raise ValueError(f"workers is {config.data.workers}, but there are {cores} CPU cores; lower workers")
    check_processes(config.devices, config.nodes)


@contextmanager
def explained(config: TrainConfig, checkpoint: Path) -> Iterator[None]:
    """Turns what goes wrong inside into errors that say what to do.

    Args:
        config: the run.
        checkpoint: the file that the run can go on from, once it exists.

    Raises:
        ConnectionError: if another process of the run has ended.
        KeyboardInterrupt: if Ctrl-C was pressed.
        MemoryError: if there is not enough memory.
        OSError: if a log cannot be written; also what processes that load images raise.
        ValueError: if the model cannot be compiled; also what processes that load images raise.
    """
    kept = f"{checkpoint.parents[1]} has no checkpoint yet"
    try:
        with _quiet_threads():
            yield
    except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves switched off
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if checkpoint.exists():
            kept = f"the last checkpoint is {checkpoint}, and --resume {checkpoint.parents[1]} goes on from it"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    except (OSError, ValueError) as error:
        if TRACEBACK in str(error):
            raise type(error)(_sentence(error)) from None
        if reason := _why_not_written(error):
            folder = checkpoint.parents[1]
            cure = f"--resume {folder} goes on" if checkpoint.exists() else "start the run again"
            raise OSError(f"the logs in {folder} could not be written ({reason}); make room, and {cure}") from error
        raise
    except (MemoryError, RuntimeError) as error:
        if config.devices * config.nodes > 1 and _has_lost_a_process(error):
            # What that one said stays in sight, which it would not under the traceback.
            raise ConnectionError(
                "another process of the run has ended, and so must this one; see that one's own error"
            ) from None
        told: BaseException = error
        if DEAD_LOADER in str(error) and isinstance(error.__cause__, RuntimeError):
            told = error.__cause__  # which says what killed the process that loads images
        if _is_out_of_shared_memory(told) or DEAD_LOADER in str(told):
            raise MemoryError(
                f"not enough {'memory or ' if DEAD_LOADER in str(told) else ''}shared memory for the processes that "
                f"load images ({_sentence(told)}); lower --workers {config.data.workers}, or make /dev/shm larger (of "
                f"a container: --shm-size, --ipc=host)"
            ) from error
        if is_out_of_memory(told):
            raise MemoryError(_what_to_lower(config, told)) from error
        if config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise ValueError(
                f"the model cannot be compiled ({first_line(error)}); torch.compile needs a working C++ compiler, and "
                f"Triton on CUDA: install them, or leave out compile"
            ) from error
        raise


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Inside, TensorBoard's thread prints no traceback where it cannot write; the main thread hears of it."""
    tell = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in DISK):
            tell(failure)

    threading.excepthook = hook
    yield
    threading.excepthook = tell  # not after an error, behind which the thread may fail too


def _why_not_written(error: BaseException) -> str | None:
    """What the operating system said where a log could not be written; None if an error means something else.

    Checkpoints and the report name their files. Of the loggers, TensorBoard's does not let the error itself through.
    """
    origin: BaseException | None = error
    if LOST_LOG in str(error):
        while origin is not None and not isinstance(origin, OSError):
            origin = origin.__cause__ or origin.__context__
    if isinstance(origin, OSError) and origin.errno in DISK and (origin is not error or origin.filename is None):
        return origin.strerror
    return None


def _has_lost_a_process(error: BaseException) -> bool:
    """Whether an error means that another process of the run is gone; NCCL's kinds of errors have a class."""
    return isinstance(error, dist.DistError) or any(tell in str(error) for tell in LOST_PROCESS)


def _is_out_of_shared_memory(error: BaseException) -> bool:
    """Whether a process that loads images found no room for them in /dev/shm: it hears it by a signal, or in words."""
    text = str(error)
    return "killed by signal: Bus error" in text or ("</torch_" in text and "Too many open files" not in text)


def _what_to_lower(config: TrainConfig, error: BaseException) -> str:
    data, model = config.data, config.model
    lower = []
    if data.batch_size > 1:
        lower.append(
            f"batch_size {data.batch_size} (with accumulate raised from {config.accumulate} by as much, steps stay the "
            f"same)"
        )
    if model.min_size is not None:
        lower.append(f"min_size {' '.join(map(str, model.min_size))}")
    lower.append(f"crop {data.crop}" if data.crop is not None else "the size of training images by crop")
    lower.append(f"channels {model.channels}")
    if config.precision == "32-true":
        lower.append("precision to bf16-mixed")
    if data.workers:
        lower.append(f"workers {data.workers}")
    cures = f"lower {', '.join(lower[:-1])} or {lower[-1]}"
    options = model.self_reconstruction_options
    if model.self_reconstruction and options.reconstruction == "paper" and not options.recompute:
        cures = f"set recompute, or {cures}"
    return f"not enough memory ({_sentence(error)}); {cures}"


def _sentence(error: BaseException) -> str:
    """What an error says, on one line; where it comes from a loader's process, its traceback is in front of that."""
    if TRACEBACK not in str(error):
        return first_line(error)
    last = str(error).strip().splitlines()[-1]
    return last.partition(": ")[2] or last
