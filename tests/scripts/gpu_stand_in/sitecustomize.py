"""Makes a process believe in a GPU, whose tensors are the CPU's: for the rehearsal of scripts/gpu_check.sh.

Python imports this at its start where the folder is on PYTHONPATH. It knows what the benchmarks ask of a GPU; streams
and graphs fail. Modules named in STAND_IN_HIDES cannot be found.
"""

from __future__ import annotations

import importlib.util
import os
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OnTheCPU(TorchFunctionMode):
    """Every call with a CUDA device gets the CPU instead."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.cuda:
            return args[0]
        kwargs = {name: moved(value) for name, value in (kwargs or {}).items()}
        return function(*map(moved, args), **kwargs)


def moved(value: Any) -> Any:
    """The CPU for a CUDA device."""
    is_device = isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] == "cuda")
    return "cpu" if is_device and torch.device(value).type == "cuda" else value


class Generator(torch.Generator):
    """On the CPU, whatever is asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


class Event:
    """The time of the host."""

    def __init__(self, **_: Any) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


def nothing(*_: Any, **__: Any) -> int:
    return 0


find_spec = importlib.util.find_spec
hidden = os.environ.get("STAND_IN_HIDES", "").split()
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find_spec(name, *rest)

torch.Generator = Generator  # type: ignore[misc]
torch.version.cuda = torch.version.cuda or "13.0"
stand_ins = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_name": lambda *_: "no GPU, but a rehearsal",
    "get_device_properties": lambda *_: SimpleNamespace(L2_cache_size=1 << 20),
    "mem_get_info": lambda *_: (0, 0),
    "Event": Event,
}
quiet = ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "empty_cache")
for name, value in (stand_ins | dict.fromkeys((*quiet, "set_sync_debug_mode", "_sleep"), nothing)).items():
    setattr(torch.cuda, name, value)
if find_spec("srtod") is not None:
    from srtod.ops import _extension

    _extension._problems["cuda"] = None
    _extension._why_gpu_lacks_code = lambda _: None  # type: ignore[assignment]
OnTheCPU().__enter__()
