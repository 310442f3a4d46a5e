"""Loads the compiled ops, and decides call by call whether they or the reference run.

`srtod/_cpu*.so` has the schema of every op and the CPU kernels, `srtod/_cuda*.so` the CUDA kernels. Where they are
absent or unusable the ops run `srtod.ops.reference` and say so once. The choice reads module-level values only, so that
`torch.compile` traces through it and guards on it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from srtod._version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
_OLDEST_TORCH = "2.11"
_REBUILD = "`pip install --force-reinstall --no-deps .` in srtod's source tree builds it anew"


def build_info() -> dict[str, str]:
    """What setup.py built, with what, and why; empty where nothing was built."""
    try:
        info: dict[str, str] = importlib.import_module("srtod._build_info").info()
    except ImportError:
        return {}
    return info


def _load(name: str) -> str | None:
    """Loads `srtod/<name>*.so`; returns what is in the way, None if nothing."""
    library = next(_PACKAGE.glob(f"{name}*.so"), None)
    if library is None:
        return f"srtod/{name}*.so is not installed; `pip install .` in srtod's source tree builds it"
    built = build_info()
    if built.get("version", __version__) != __version__:
        return f"srtod/{library.name} was built for srtod {built['version']}, and this is {__version__}; {_REBUILD}"
    if torch.__version__ < _OLDEST_TORCH:
        return f"srtod/{library.name} needs torch {_OLDEST_TORCH} or newer, and torch {torch.__version__} is installed"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        detail = str(error.__cause__ or error).removeprefix(f"{library}: ")
        if "undefined symbol" in detail:
            detail = "a function that it calls is missing there"
        return (
            f"srtod/{library.name}, built with torch {built.get('torch', '(unknown)')}, does not load under the "
            f"installed torch {torch.__version__} ({detail}); {_REBUILD}"
        )
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} has no CUDA"
    if not any(_PACKAGE.glob("_cuda*.so")):
        return f"it was built without CUDA ({build_info().get('reason', 'for a reason not recorded')})"
    return _load("_cuda")


if torch._C._jit_get_schemas_for_operator("srtod::dgfe"):
    # Registering the ops a second time would not raise, it would end the process.
    raise ImportError(
        "the compiled ops of another copy of srtod are already loaded in this process, and a second copy would crash "
        f"it: import only one srtod (this one is {_PACKAGE}), and only once"
    )
_problems = {"cpu": _load("_cpu")}
_problems["cuda"] = _problems["cpu"] or _load_cuda()
_reference_requests = int(os.environ.get("SRTOD_REFERENCE", "0") not in ("", "0"))

LOADED = _problems["cpu"] is None
"""Whether torch knows the ops `torch.ops.srtod.*`, so that fake kernels and gradients can be registered for them."""


def is_fused(device: str | torch.device) -> bool:
    """Whether an op called now with tensors on `device` runs compiled; otherwise `srtod.ops.reference` runs."""
    return not _reference_requests and why_not_fused(torch.device(device)) is None


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Runs the ops of all threads as plain PyTorch inside the `with` block; SRTOD_REFERENCE=1 does so for a process."""
    global _reference_requests  # noqa: PLW0603 - the one switch, and what torch.compile guards on
    _reference_requests += 1
    try:
        yield
    finally:
        _reference_requests -= 1


def runs_fused(tensor: Tensor) -> bool:
    """`is_fused` as the ops ask it; warns once if the reference runs although nobody asked for it."""
    if _reference_requests:
        return False
    problem = why_not_fused(tensor.device)
    if problem is not None and not torch.compiler.is_compiling():  # Dynamo cannot trace warnings
        _warn_once(problem)
    return problem is None


def why_not_fused(device: torch.device) -> str | None:
    """What keeps the compiled ops from running on `device`, None if nothing."""
    if device.type not in _problems:
        return f"it has no compiled ops for {device.type} tensors"
    if device.type == "cuda" and _problems["cuda"] is None and not torch.compiler.is_compiling():
        return _why_gpu_lacks_code(device.index)  # Dynamo cannot look at GPUs either; there CUDA's own error tells
    return _problems[device.type]


@functools.cache
def _why_gpu_lacks_code(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return None
    capability, compiled = torch.cuda.get_device_capability(index), build_info().get("architectures", "")
    if any(_runs_on(capability, architecture) for architecture in compiled.split(";")):
        return None
    found = ".".join(map(str, capability))
    return (
        f"it was compiled for the GPU architectures {compiled}, and {torch.cuda.get_device_name(index)} is {found}; "
        f"with TORCH_CUDA_ARCH_LIST={found}, {_REBUILD}"
    )


def _runs_on(capability: tuple[int, int], architecture: str) -> bool:
    """CUDA's rule: code for X.Y runs on X.Z with Z >= Y, its PTX on everything newer, and X.Ya on X.Y alone."""
    code = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", architecture)
    if code is None:
        return True  # a name such as "Hopper", which only the build can resolve
    target = (int(code[1]), int(code[2]))
    if code[3]:
        return capability == target
    return capability >= target and (capability[0] == target[0] or code[4] is not None)


@functools.cache
def _warn_once(problem: str) -> None:
    warnings.warn(f"srtod runs as plain PyTorch, which is slower: {problem}.", RuntimeWarning, stacklevel=4)


def status() -> dict[str, str]:
    """For each kind of device, how the ops run there now and why; for `python -m srtod.info`."""
    if _reference_requests:
        return dict.fromkeys(_problems, "plain PyTorch, as asked for (SRTOD_REFERENCE or use_reference)")
    problems = {device: why_not_fused(torch.device(device)) for device in _problems}
    return {device: f"plain PyTorch: {problem}" if problem else "compiled" for device, problem in problems.items()}
