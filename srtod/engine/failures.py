"""What a machine cannot do, and what can go wrong while it trains, each in one sentence with the cure."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from .config import TrainConfig

__all__ = ["check_machine", "explained"]


def check_machine(config: TrainConfig) -> None:
    """Raises a ValueError if this machine, or the way the processes were started, cannot do what the run asks for."""
    has_cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not has_cuda:
        raise ValueError("accelerator is 'cuda', but PyTorch finds no CUDA device; use 'cpu' or 'auto'")
    on_cuda = has_cuda and config.accelerator != "cpu"
    if config.precision == "16-mixed" and not on_cuda:
        raise ValueError("precision '16-mixed' needs a CUDA device; use '32-true' or 'bf16-mixed' on the CPU")
    if on_cuda and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices is {config.devices}, but PyTorch finds {torch.cuda.device_count()} CUDA devices; lower devices"
        )
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != config.devices * config.nodes:
        raise ValueError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but devices {config.devices} and nodes "
            f"{config.nodes} make {config.devices * config.nodes}; pass the numbers that torchrun has"
        )


@contextmanager
def explained(config: TrainConfig, checkpoint: Path) -> Iterator[None]:
    """Turns what goes wrong inside into errors that say what to do.

    Args:
        config: the run.
        checkpoint: the file that the run can go on from, once it exists.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed.
        MemoryError: if there is not enough memory.
        ValueError: if the model cannot be compiled; also what processes that load images raise.
    """
    kept = f"{checkpoint.parents[1]} has no checkpoint yet"
    try:
        yield
    except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves switched off
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if checkpoint.exists():
            kept = f"the last checkpoint is {checkpoint}, and --resume {checkpoint.parents[1]} goes on from it"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    except ValueError as error:
        if "Original Traceback" not in str(error):
            raise
        # A loader's process sends its traceback as the message; the sentence is at its end.
        raise ValueError(str(error).splitlines()[-1].partition(": ")[2]) from None
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise MemoryError(_what_to_lower(config, error)) from error
        if config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise ValueError(
                f"the model cannot be compiled ({_first_line(error)}); torch.compile needs a working C++ compiler, and "
                f"Triton on CUDA: install them, or leave out compile"
            ) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of a GPU, of the machine, or of a process that loads images."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error) or "killed by signal: Killed" in str(error)


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
    return f"not enough memory ({_first_line(error)}); lower {', '.join(lower[:-1])} or {lower[-1]}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
