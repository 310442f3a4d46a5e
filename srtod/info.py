"""Print the environment, for bug reports, or what a checkpoint holds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from srtod._support.cli import run
from srtod._support.machine import processor
from srtod._support.options import Parser
from srtod._version import __version__

DESCRIPTION = """Print the environment, for bug reports: a missing or broken part is reported, not raised. With a
checkpoint, print its detector, classes, data and metrics instead."""
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
DEPENDENCIES = (
    "torchvision",
    "jinja2",
    "lightning",
    "matplotlib",
    "numpy",
    "pillow",
    "pycocotools",
    "pyyaml",
    "tensorboard",
    "tqdm",
)


def environment() -> dict[str, str]:
    """Everything a maintainer asks first, as name -> text, in printing order."""
    lines = {
        "srtod": f"{__version__} in {Path(__file__).parent}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "processor": _processor(),
    }
    for name, part in (("torch", _torch), ("ops", _ops)):
        lines |= _or_error(name, part)
    lines |= {name: _version(name) for name in DEPENDENCIES}
    return lines


def _processor() -> str:
    name, supported = processor()
    sets = [name for name in INSTRUCTION_SETS if name in supported]
    return ", ".join([name, f"{os.cpu_count()} cores", *sets])


def _torch() -> dict[str, str]:
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "CUDA of torch": torch.version.cuda or "none",
        "GPUs": "; ".join(_gpu(index) for index in gpus) or "none",
    }


def _gpu(index: int) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"


def _ops() -> dict[str, str]:
    from srtod.ops import _extension

    built = _extension.build_info()
    build = {f"build: {name}": value or "none" for name, value in built.items()} or {"build": "no compiled part"}
    return build | {f"ops on {device}": how for device, how in _extension.status().items()}


def _or_error(name: str, part: Callable[[], dict[str, str]]) -> dict[str, str]:
    try:
        return part()
    except Exception as error:
        return {name: f"not usable: {type(error).__name__}: {error}"}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.info") -> None:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a .ckpt file of `srtod train`, or hf://OWNER/NAME[@REVISION][/FILE]",
    )
    checkpoint = parser.parse_args(arguments).checkpoint
    if checkpoint is None:
        _print(environment())
        return
    from srtod.engine.card import checkpoint_facts
    from srtod.evaluation import format_table
    from srtod.models.checkpoint import METRICS, read_checkpoint

    content = read_checkpoint(checkpoint)
    _print(checkpoint_facts(content))
    if metrics := content.get(METRICS):
        print(f"\n{format_table(metrics)}")


def _print(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:{width}}  {text}")


if __name__ == "__main__":
    run(main)
