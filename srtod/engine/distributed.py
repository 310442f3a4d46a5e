"""The processes of a run: who they are, and what they tell each other; a run of one process talks to itself."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

__all__ = ["MEETING", "check_processes", "gather", "is_main_process", "mean"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables that Lightning takes for the number of this process."""

MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Variables that say where the processes of a run meet."""


def check_processes(devices: int, nodes: int) -> None:
    """Raises a ValueError if the environment says other things of a run's processes than its options.

    Such variables may be left over from something else. Lightning believes them, and then no process is the first.

    Args:
        devices: processes on each machine.
        nodes: machines.
    """
    count, given = devices * nodes, os.environ
    make = f"devices {devices} and nodes {nodes} make {count}"
    if nodes == 1 and given.get("NODE_RANK", "0") != "0":
        raise ValueError(f"NODE_RANK is {given['NODE_RANK']} in the environment, but nodes is 1; unset NODE_RANK")
    if dist.is_torchelastic_launched():
        if given["WORLD_SIZE"] != str(count):
            raise ValueError(
                f"torchrun started {given['WORLD_SIZE']} processes, but {make}; pass the numbers that torchrun has"
            )
        return
    by_slurm = "SLURM_NTASKS" in given and given.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    if by_slurm and given["SLURM_NTASKS"] != str(count):
        raise ValueError(
            f"SLURM_NTASKS is {given['SLURM_NTASKS']} in the environment, but {make}; pass the numbers of the job, or "
            f"unset SLURM_NTASKS"
        )
    if by_slurm and count > 1 and not given.keys() >= {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"}:
        raise ValueError(
            f"SLURM_NTASKS is {count} in the environment, but srun did not start this process with --ntasks-per-node; "
            f"start it by srun --ntasks-per-node {devices}, or unset SLURM_NTASKS"
        )
    are_started = count > 1 and (by_slurm or "LOCAL_RANK" in given)  # by whatever told them so, such as Lightning
    for name in RANKS:
        if not are_started and given.get(name, "0") != "0":
            raise ValueError(
                f"{name} is {given[name]} in the environment, as if this were not the first process, but nothing has "
                f"started the others; unset {name}"
            )
    absent = [name for name in (*MEETING, "NODE_RANK") if name not in given]
    if nodes > 1 and not by_slurm and absent:
        raise ValueError(
            f"nodes is {nodes}, but the machines cannot find each other: {', '.join(absent)} not set; start by "
            f"torchrun or srun, or set the address and a port of the first machine, and the number of this one"
        )


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
