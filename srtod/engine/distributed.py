"""What the processes of a run tell each other; a run of one process talks to itself."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

__all__ = ["gather", "is_main_process", "mean"]


def is_main_process() -> bool:
    """Whether this is the process of rank 0, which makes the run's folder and alone writes to it."""
    # Before there is a trainer, Lightning's rank is that in its machine, where it launches the processes itself.
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # set where lightning is imported
    return rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def mean(values: Tensor) -> Tensor:
    """The mean over all processes of values of any shape, the same in each of them."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def gather(value: Any) -> list[Any]:
    """What each process passed, in the order of their ranks, the same in each of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
