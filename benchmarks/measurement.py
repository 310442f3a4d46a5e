"""What the benchmarks measure and how: cases, variants, rounds, and the table of ratios.

Times are those of PyTorch's defaults: on CUDA cuDNN's float32 convolutions take TF32. Whether forms with convolutions
agree is checked `without_tf32`.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from srtod._support.machine import processor

VARIANTS = ("copy", "fused", "eager", "compile", "authors")
"""`copy` comes first: a plain copy of the largest input is the yardstick for the others' floor."""

LAUNCHES = {"fused_one_launch": "1", "fused_two_launches": "0"}
"""Variants of the fused op on CUDA: the value of SRTOD_COOPERATIVE, which otherwise is unset: the op goes by size."""

MODEL_VARIANTS = ("plain", "authors", "paper", "subpixel")
"""Of models: without self-reconstruction, as in the paper's release, the paper's head and the subpixel head."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One thing to measure; the variants of a case are compared with one another."""

    op: str
    size: str
    batch: int
    layout: str  # contiguous or channels_last
    dtype: str
    # forward, backward or both; of models inference or training, which is a step without the optimizer's
    direction: str
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
        return self.direction not in ("forward", "inference")

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
    floor_us: float | None  # the op's least memory traffic, at the speed of this run's copy
    peak_mb: float | None  # of an op the GPU memory beyond its inputs; of a model all memory, weights included
    time_ratio: float | None = None  # of a model: how many times as long as the base, which ran beside it


results: dict[Case, dict[str, Result]] = {}


class Work(NamedTuple):
    """What a model does, to be repeated."""

    setup: Callable[[], None]  # untimed, before each call of `once`
    once: Callable[[], None]


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


def timed_on_device(case: Case) -> Collection[pytest.MarkDecorator]:
    """Marks of an op's case: on CUDA it is timed by `device_clock`."""
    return [pytest.mark.benchmark(timer=device_clock)] if case.device == "cuda" else []


def parametrize(
    cases: list[Case],
    variants: Callable[[Case], tuple[str, ...]],
    marks: Callable[[Case], Collection[pytest.MarkDecorator]] = timed_on_device,
) -> pytest.MarkDecorator:
    """Of `case` and `variant`: all variants of a case in a row."""
    return pytest.mark.parametrize(
        ("case", "variant"),
        [
            pytest.param(case, variant, marks=marks(case), id=f"{case} {variant}")
            for case in cases
            for variant in variants(case)
        ],
    )


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of it for one shape, in all directions; `forget_other_shapes` goes before the next shape."""
    return torch.compile(function, dynamic=False)


def variant_function(
    variant: str, first: Tensor, fused: Callable[..., Any], eager: Callable[..., Any]
) -> Callable[..., Any]:
    """Of an op's forms: `copy` copies the first input, which is like `first`; `compile` is `eager` compiled."""
    if variant == "copy":
        target = torch.empty_like(first)
        return lambda first, *_: target.copy_(first)
    return {"fused": fused, "eager": eager, "compile": compiled(eager)}[variant]


def without_tf32() -> AbstractContextManager[None]:
    """cuDNN's float32 convolutions in full precision; its other settings are PyTorch's defaults meanwhile."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # enabled: or `flags` switches cuDNN off


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
    of_copy = results.get(case, {}).get("copy")
    copy_us = benchmark.stats.stats.median * 1e6 if variant == "copy" else of_copy.median_us if of_copy else math.nan
    copied = 2 * inputs[0].numel() * inputs[0].element_size()
    _file(benchmark, case, variant, floor_bytes / copied * copy_us, peak_mb)


def measure_model(
    benchmark: Any,
    rounds: int,
    case: Case,
    variant: str,
    work: Work,
    base: Work | None,
    peak_mb: float | None,
) -> None:
    """Times a model as a user's clock would, and files the result.

    The base runs before each round: a machine with other work grows slower and faster for both.

    Args:
        benchmark: The fixture of pytest-benchmark.
        rounds: Timed rounds; at least 3 but no more than fit into a minute.
        case: What is measured.
        variant: One of `MODEL_VARIANTS`.
        work: A step of training or an inference.
        base: The same of the form that it is compared with; None: it is that itself.
        peak_mb: The memory that it takes.
    """
    seconds_of_base = []

    def wait() -> None:
        if case.device == "cuda":
            torch.cuda.synchronize()

    def timed(work: Work) -> float:
        work.setup()
        wait()
        start = time.perf_counter()
        work.once()
        wait()
        return time.perf_counter() - start

    def prepare() -> None:
        if base is not None:
            seconds_of_base.append(timed(base))
        work.setup()
        wait()

    def step() -> None:
        work.once()
        wait()

    benchmark.group = str(case)
    seconds = sum(timed(each) for each in (work, base) if each is not None)  # warms up
    benchmark.pedantic(step, setup=prepare, rounds=min(rounds, max(3, int(60 / seconds))))
    if benchmark.stats is not None:
        pairs = zip(benchmark.stats.stats.data, seconds_of_base, strict=False)
        ratio = statistics.median(own / other for own, other in pairs) if seconds_of_base else None
        _file(benchmark, case, variant, None, peak_mb, ratio)


def _file(
    benchmark: Any,
    case: Case,
    variant: str,
    floor_us: float | None,
    peak_mb: float | None,
    time_ratio: float | None = None,
) -> None:
    seconds = torch.tensor(benchmark.stats.stats.data, dtype=torch.float64)
    p20, median, p80 = (seconds.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)) * 1e6).tolist()
    of_case = results.setdefault(case, {})
    of_case[variant] = Result(median, p20, p80, floor_us, peak_mb, time_ratio)
    benchmark.extra_info.update(
        {**asdict(case), **asdict(of_case[variant])},
        variant=variant,
        device=device_name(case.device),
        torch=torch.__version__,
        commit=commit(),
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


def tables() -> dict[str, list[str]]:
    """By title: the lines of what has been measured."""
    of_ops = {case: of_case for case, of_case in results.items() if "fused" in of_case}
    of_models = {case: of_case for case, of_case in results.items() if set(of_case) & set(MODEL_VARIANTS[2:])}
    found = {
        "median of the fused op, and how many times as long the other forms take": _table_of_ops(of_ops),
        "median time and peak memory of models, and how many times as much the other forms take": _table_of_models(
            of_models
        ),
    }
    return {title: lines for title, lines in found.items() if len(lines) > 1}


def _table_of_ops(cases: dict[Case, dict[str, Result]]) -> list[str]:
    measured = {variant for of_case in cases.values() for variant in of_case}
    peers = [v for v in (*VARIANTS, *LAUNCHES) if v in measured - {"fused", "copy"}]
    heads = ["fused ms", *(f"x {p.removeprefix('fused_')}" for p in peers), "copy ms", "x floor"]
    lines = [f"{'':78s}" + _cells(heads)]
    for case, of_case in cases.items():
        fused = of_case["fused"]
        ratios = [of_case[p].median_us / fused.median_us if p in of_case else None for p in peers]
        copy_ms = of_case["copy"].median_us / 1e3 if "copy" in of_case else None
        floor = fused.median_us / fused.floor_us if fused.floor_us else None
        lines.append(f"{case!s:78s}" + _cells([fused.median_us / 1e3, *ratios, copy_ms, floor]))
    return lines


def _table_of_models(cases: dict[Case, dict[str, Result]]) -> list[str]:
    """Ratios to the plain model, or to the authors' form of what the plain model does not have."""
    others = MODEL_VARIANTS[1:]
    heads = ["base", "ms", *(f"x {v}" for v in others), "MB", *(f"x {v}" for v in others)]
    lines = [f"{'':78s}" + _cells(heads)]
    for case, of_case in cases.items():
        base = "plain" if "plain" in of_case else "authors"
        cells: list[str | float | None] = [base]
        of_base = of_case.get(base)
        cells.append(of_base.median_us / 1e3 if of_base else None)
        cells += [of_case[v].time_ratio if v in of_case else None for v in others]
        peak = of_base.peak_mb if of_base else None
        cells.append(peak)
        peaks = [of_case[v].peak_mb if v in of_case else None for v in others]
        cells += [other / peak if other and peak else None for other in peaks]
        lines.append(f"{case!s:78s}" + _cells(cells))
    return lines


def _cells(values: list[Any]) -> str:
    texts = (v if isinstance(v, str) else "-" if v is None or math.isnan(v) else f"{v:.3f}" for v in values)
    return "".join(f"{text:>18s}" for text in texts)


@functools.cache
def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()[0]


@functools.cache
def commit() -> str:
    """SRTOD_COMMIT, where the tree has been copied without its history; else what git says."""
    if "SRTOD_COMMIT" in os.environ:
        return os.environ["SRTOD_COMMIT"]
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resident_bytes(field: str) -> int | None:
    """The process's resident memory now (VmRSS) or at its highest (VmHWM); None where Linux does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
