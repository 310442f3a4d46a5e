"""What the benchmarks measure and how: cases, variants, rounds, and the table of ratios."""

from __future__ import annotations

import functools
import gc
import math
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

VARIANTS = ("copy", "fused", "eager", "compile", "authors")
"""`copy` comes first: a plain copy of the largest input is the yardstick for the others' floor."""

LAUNCHES = {"fused_one_launch": "1", "fused_two_launches": "0"}
"""Variants of the fused op on CUDA: the value of SRTOD_COOPERATIVE, which otherwise is unset: the op goes by size."""

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

    @property
    def shapes(self) -> Case:
        """The same for all directions of the same inputs."""
        return replace(self, direction="any")

    def __str__(self) -> str:
        return f"{self.op} {self.size} N={self.batch} {self.layout} {self.dtype} {self.direction} {self.device}"


@dataclass
class Result:
    median_us: float
    p20_us: float
    p80_us: float
    floor_us: float  # the op's least memory traffic, at the speed of this run's copy
    peak_mb: float | None  # GPU memory that a call takes beyond its inputs


results: dict[Case, dict[str, Result]] = {}


class DeviceClock:
    """Times work on the GPU, and shows the sum of these times: what pytest-benchmark takes for its timer.

    Before each timed call a large buffer is overwritten and read. So the call finds nothing of its inputs in the L2
    cache (nor, thanks to the read, much that has yet to be written back), and the GPU is still busy with the buffer
    while Python enqueues the call: launch overhead stays out of the figure.
    """

    __name__ = "DeviceClock"  # for pytest-benchmark's files

    def __init__(self) -> None:
        self.seconds = 0.0
        self.flushes = 2  # through the buffer before each call; more where Python takes longer

    def __call__(self) -> float:
        return self.seconds

    def time(self, function: Callable[[], Any], setup: Callable[[], Any] = lambda: None) -> float:
        """Runs `setup`, untimed, then `function`; advances by the time that `function` takes on the GPU, in seconds."""
        while True:
            setup()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(self.flushes):
                _buffer().fill_(1).sum()
            start.record()
            function()
            end.record()
            gpu_was_waiting = start.query()  # it was through with the buffer before the whole call was enqueued
            end.synchronize()
            if not gpu_was_waiting or self.flushes >= 64:
                break
            self.flushes *= 2
        seconds: float = start.elapsed_time(end) / 1e3
        self.seconds += seconds
        return seconds


@functools.cache
def _buffer() -> Tensor:
    """On the GPU, four times the size of its L2 cache."""
    l2_bytes = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(max(l2_bytes, 2**26), dtype=torch.float32, device="cuda")


device_clock = DeviceClock()


def parametrize(cases: list[Case], variants: Callable[[Case], tuple[str, ...]]) -> pytest.MarkDecorator:
    """Of `case` and `variant`: all variants of a case in a row, on CUDA timed by `device_clock`."""
    on_gpu = [pytest.mark.benchmark(timer=device_clock)]
    return pytest.mark.parametrize(
        ("case", "variant"),
        [
            pytest.param(case, variant, marks=on_gpu if case.device == "cuda" else (), id=f"{case} {variant}")
            for case in cases
            for variant in variants(case)
        ],
    )


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of it for one shape, in all directions; `forget_other_shapes` goes before the next shape."""
    return torch.compile(function, dynamic=False)


_shapes: Case | None = None


def forget_other_shapes(case: Case) -> None:
    """Drops compiled code of other inputs, which would be searched at each call, but not that of other directions."""
    global _shapes  # noqa: PLW0603 - what dynamo's global cache holds
    if case.shapes != _shapes:
        _shapes = case.shapes
        torch._dynamo.reset()
        gc.collect()


def measure(
    benchmark: Any,
    rounds: int,
    case: Case,
    variant: str,
    function: Callable[..., Any],
    inputs: Tensors,
    grads: Tensors,
    floor_bytes: float,
) -> None:
    """Times `function(*inputs)` in the case's direction and files the result.

    Args:
        benchmark: The fixture of pytest-benchmark.
        rounds: Timed rounds; on CUDA at least 5 but no more than fit into half a second.
        case: What is measured.
        variant: In which form; `copy` copies `inputs[0]`.
        function: Takes `inputs`; returns a tensor or several.
        inputs: Those that require gradients get them in the backward direction.
        grads: Gradients of the function's outputs.
        floor_bytes: The op's least memory traffic.
    """
    cuda = case.device == "cuda"
    outputs: Tensors = ()

    def forward() -> Tensors:
        result = function(*inputs)
        return result if isinstance(result, tuple) else (result,)

    def backward() -> None:
        torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], grads)

    def setup() -> None:
        nonlocal outputs
        outputs = forward() if case.direction == "backward" and variant != "copy" else ()

    def once() -> None:
        nonlocal outputs
        if case.direction == "forward" or variant == "copy":
            with torch.no_grad():
                forward()
        else:
            outputs = outputs or forward()
            backward()
            outputs = ()

    benchmark.group = str(case)
    peak_mb = None
    if cuda:
        peak_mb = _peak_mb(setup, once)
        if rounds > 5:
            rounds = min(rounds, max(5, int(0.5 / device_clock.time(once, setup))))
        benchmark.pedantic(device_clock.time, args=(once, setup), rounds=rounds, warmup_rounds=min(2, rounds))
    else:
        benchmark.pedantic(once, setup=setup, rounds=rounds, warmup_rounds=min(3, rounds))
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = torch.tensor(benchmark.stats.stats.data, dtype=torch.float64)
    p20, median, p80 = (seconds.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)) * 1e6).tolist()
    of_case = results.setdefault(case, {})
    copy_us = median if variant == "copy" else of_case["copy"].median_us if "copy" in of_case else math.nan
    copied = 2 * inputs[0].numel() * inputs[0].element_size()
    of_case[variant] = Result(median, p20, p80, floor_bytes / copied * copy_us, peak_mb)
    benchmark.extra_info.update(
        {**asdict(case), **asdict(of_case[variant])},
        variant=variant,
        device=_device_name(case.device),
        torch=torch.__version__,
        commit=_commit(),
        threads=torch.get_num_threads(),
    )


def _peak_mb(setup: Callable[[], Any], once: Callable[[], Any]) -> float:
    """GPU memory that `setup` and `once` take; the first of two calls warms up, and so allocates workspaces."""
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setup()
        once()
        torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def table() -> list[str]:
    """The fused ops' medians, and how many times as long every other form takes."""
    measured = {variant for of_case in results.values() for variant in of_case}
    peers = [v for v in (*VARIANTS, "composed", *LAUNCHES) if v in measured - {"fused", "copy"}]
    heads = ["fused ms", *(f"x {p.removeprefix('fused_')}" for p in peers), "copy ms", "x floor"]
    lines = [f"{'':78s}" + "".join(f"{h:>15s}" for h in heads)]
    for case, of_case in results.items():
        if "fused" not in of_case:
            continue
        fused = of_case["fused"]
        ratios = [of_case[p].median_us / fused.median_us if p in of_case else math.nan for p in peers]
        copy_ms = of_case["copy"].median_us / 1e3 if "copy" in of_case else math.nan
        values = [fused.median_us / 1e3, *ratios, copy_ms, fused.median_us / fused.floor_us]
        lines.append(f"{case!s:78s}" + "".join(f"{'-' if math.isnan(v) else f'{v:.3f}':>15s}" for v in values))
    return lines


@functools.cache
def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


@functools.cache
def _commit() -> str:
    """SRTOD_COMMIT, where the tree has been copied without its history; else what git says."""
    if "SRTOD_COMMIT" in os.environ:
        return os.environ["SRTOD_COMMIT"]
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
