"""What the benchmarks measure and how: cases, variants, rounds, and the table of ratios."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VARIANTS = ("copy", "fused", "eager", "compile", "authors")
"""`copy` comes first: a plain copy of the largest input is the yardstick for the others' floor."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One thing to measure; the variants of a case are compared with one another."""

    op: str
    size: str
    batch: int
    layout: str  # contiguous or channels_last
    dtype: str
    direction: str  # forward, backward or both
    device: str = "cpu"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def needs_grad(self) -> bool:
        return self.direction != "forward"

    def __str__(self) -> str:
        return f"{self.op} {self.size} N={self.batch} {self.layout} {self.dtype} {self.direction} {self.device}"


@dataclass
class Result:
    median_us: float
    floor_us: float  # the least memory traffic of the op, at the speed of this run's copy
    peak_mb: float | None  # of GPU memory


results: dict[Case, dict[str, Result]] = {}


def measure(
    benchmark: Any,
    rounds: int,
    case: Case,
    variant: str,
    function: Callable[..., Any],
    inputs: Tensors,
    grads: Tensors,
    passes: float,
) -> None:
    """Times `function(*inputs)` in the case's direction and files the result.

    Args:
        benchmark: The fixture of pytest-benchmark.
        rounds: Timed rounds.
        case: What is measured.
        variant: In which form.
        function: Takes `inputs`; returns a tensor or several.
        inputs: Those that require gradients get them in the backward direction.
        grads: Gradients of the function's outputs.
        passes: The op's least memory traffic, in reads or writes of the tensor that `copy` copies (a copy makes two).
    """
    cuda = case.device == "cuda"

    def forward() -> Tensors:
        outputs = function(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def backward(outputs: Tensors) -> None:
        torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], grads)

    def once(outputs: Tensors | None) -> None:
        if case.direction == "forward" or variant == "copy":
            with torch.no_grad():
                forward()
        else:
            backward(forward() if outputs is None else outputs)
        if cuda:
            torch.cuda.synchronize()

    def setup() -> tuple[tuple[Tensors | None], dict[str, Any]]:
        outputs = forward() if case.direction == "backward" and variant != "copy" else None
        if cuda:
            torch.cuda.synchronize()
        return (outputs,), {}

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    benchmark.group = str(case)
    benchmark.pedantic(once, setup=setup, rounds=rounds, warmup_rounds=min(3, rounds))
    if benchmark.stats is None:  # --benchmark-disable
        return
    median_us = benchmark.stats.stats.median * 1e6
    of_case = results.setdefault(case, {})
    copy_us = median_us if variant == "copy" else of_case["copy"].median_us if "copy" in of_case else math.nan
    peak_mb = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    of_case[variant] = Result(median_us, passes / 2 * copy_us, peak_mb)
    benchmark.extra_info.update(
        {**asdict(case), **asdict(of_case[variant])},
        variant=variant,
        device=_device_name(case.device),
        torch=torch.__version__,
        commit=_commit(),
        threads=torch.get_num_threads(),
    )


def table() -> list[str]:
    """The fused ops' medians, and how many times as long every other form takes."""
    peers = [v for v in VARIANTS if v not in ("fused", "copy")]
    heads = ["fused ms", *(f"x {p}" for p in peers), "copy ms", "x floor"]
    lines = [f"{'':64s}" + "".join(f"{h:>11s}" for h in heads)]
    for case, of_case in results.items():
        if "fused" not in of_case:
            continue
        fused = of_case["fused"]
        ratios = [of_case[p].median_us / fused.median_us if p in of_case else math.nan for p in peers]
        copy_ms = of_case["copy"].median_us / 1e3 if "copy" in of_case else math.nan
        values = [fused.median_us / 1e3, *ratios, copy_ms, fused.median_us / fused.floor_us]
        lines.append(f"{case!s:64s}" + "".join(f"{'-' if math.isnan(v) else f'{v:.2f}':>11s}" for v in values))
    return lines


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
