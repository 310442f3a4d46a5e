"""Errors that other packages raise: what kind they are, and what they say."""

from __future__ import annotations

import torch

__all__ = ["first_line", "is_out_of_memory"]

NO_MEMORY = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "CUDA error: out of memory",
    "killed by signal: Killed",
)
"""What is in the message of an error where memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of a GPU, of the machine, or of a process that loads images."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(tell in str(error) for tell in NO_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
