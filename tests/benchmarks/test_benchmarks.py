"""What the benchmarks report: measured times through pytest-benchmark, tables made of its file, forms that agree."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import bench_detectors
import linear_cost
import measurement
import model_table
import pytest
import torch
from measurement import Case, variant_function
from torch import Tensor

from srtod import ops
from srtod.models import build_detector

pytest.importorskip("pytest_benchmark")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = BENCHMARKS.parent / "scripts"

GPU_WITHOUT_A_GPU = """
import measurement, pytest, torch

enqueued = 0  # calls of the op
late = [True]  # whether the GPU had to wait for the op, event by event

class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.after = enqueued
    def query(self): return bool(late and late.pop())
    def synchronize(self): pass
    def elapsed_time(self, end): return 1.0 + (end.after - self.after)  # ms

def op(x):
    global enqueued
    enqueued += 1
    return x * 2

@measurement.parametrize(
    [measurement.Case("op", "small", 1, "contiguous", "float32", d, "cuda") for d in ("forward", "backward")],
    lambda case: ("copy", "fused"),
)
def test(case, variant, benchmark, monkeypatch):
    fakes = {
        "Event": Event,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 2**20,
        "max_memory_allocated": lambda: 3 * 2**20,
        "get_device_name": lambda: "a fake GPU",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(measurement, "_buffer", lambda: torch.empty(1))
    x = torch.zeros(8, requires_grad=case.needs_grad)
    before = enqueued
    measurement.measure(benchmark, 9, case, variant, op, (x,), (torch.ones(8),), floor_bytes=96)
    if case.direction == "forward":
        assert len(benchmark.stats.stats.data) == 9
        assert benchmark.stats.stats.median == pytest.approx(2e-3)
    else:  # the op itself ran, in the untimed part
        assert enqueued - before > 9
    if variant == "copy":
        assert measurement.device_clock.flushes == 4  # doubled once, after the late round
"""

MODELS_WITHOUT_A_MODEL = """
import measurement, pytest, types

seconds = {"plain": 0.2, "authors": 0.4, "paper": 0.25}
now, calls = [0.0], []

@measurement.parametrize(
    [measurement.Case("detector", "64x64", 1, "contiguous", "float32", "training")],
    lambda case: tuple(seconds),
    lambda case: [pytest.mark.benchmark(timer=lambda: now[0])],
)
def test(case, variant, benchmark, monkeypatch):
    def work(name):
        def setup():
            calls.append(f"set up {name}")
            now[0] += 100  # is not counted

        def once():
            calls.append(name)
            slower = 1 if variant == "plain" else 1 + (len(calls) - 1) // 4  # from round to round, for both
            now[0] += slower * seconds[name]

        return measurement.Work(setup, once)

    calls.clear()
    monkeypatch.setattr(measurement, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    base = None if variant == "plain" else work("plain")
    measurement.measure_model(benchmark, 4, case, variant, work(variant), base, 1000 * seconds[variant])
    own = [f"set up {variant}", variant]
    assert calls[-4:] == (own * 2 if base is None else ["set up plain", "plain", *own])
    assert len(calls) == (10 if base is None else 20)  # the first round warms up

def test_table():
    (lines,) = measurement.tables().values()
    figures = ["200.000", "2.000", "1.250", "-"]
    assert [line.split()[-9:] for line in lines[1:]] == [["plain", *figures, *figures]]
"""


def run_benchmarks(folder: Path, content: str) -> Path:
    """pytest-benchmark's file of a run of the benchmarks in `content`."""
    (folder / "bench_fake.py").write_text(content)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {BENCHMARKS}\npython_files = bench_*.py\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=results.json", "."]
    # pytest-benchmark measures nothing where it believes to be a worker of pytest-xdist.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    return folder / "results.json"


def report(results: Path) -> str:
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(results)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest-benchmark's file of a run that only imagines its GPU."""
    return run_benchmarks(tmp_path_factory.mktemp("benchmarks"), GPU_WITHOUT_A_GPU)


def test_times_on_the_gpu_reach_the_file(results: Path) -> None:
    benchmarks = json.loads(results.read_text())["benchmarks"]
    entries = {(b["extra_info"]["direction"], b["extra_info"]["variant"]): b["extra_info"] for b in benchmarks}
    assert set(entries) == {(d, v) for d in ("forward", "backward") for v in ("copy", "fused")}
    for name, value in {
        "device": "a fake GPU",
        "op": "op",
        "size": "small",
        "batch": 1,
        "layout": "contiguous",
        "dtype": "float32",
        "median_us": pytest.approx(2000),
        "p20_us": pytest.approx(2000),
        "p80_us": pytest.approx(2000),
        "floor_us": pytest.approx(3000),  # 96 bytes, where the copy moves 64 in 2 ms
        "peak_mb": 2,
    }.items():
        assert entries["forward", "fused"][name] == value, name
    assert {"torch", "commit", "threads"} <= set(entries["forward", "fused"])
    assert entries["backward", "fused"]["median_us"] == pytest.approx(1000)  # the forward part is not counted
    assert all(b["options"]["timer"].endswith("DeviceClock") for b in benchmarks)


def test_report(results: Path) -> None:
    printed = report(results)
    assert printed.startswith("a fake GPU, torch ")
    assert (
        "| small | 1 | contiguous | float32 | forward | 2000.0 | 2000.0-2000.0 | 2000.0 | 1.00 | 0.67 | 2.0 |"
        in printed
    )
    done = subprocess.run([sys.executable, str(BENCHMARKS / "report.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: python benchmarks/report.py RESULTS.json... > table.md" in done.stderr


def test_models_are_timed_and_compared_with_the_plain_one(tmp_path: Path) -> None:
    printed = report(run_benchmarks(tmp_path, MODELS_WITHOUT_A_MODEL))
    heads, _, row = (line for line in printed.splitlines() if line.startswith("|"))
    assert heads.endswith("authors / plain | paper / plain | plain, peak MB | authors / plain | paper / plain |")
    assert row == (
        "| 64x64 | 1 | contiguous | float32 | training | 200.0 | 200.0-200.0 | 2.00 | 1.25 | 200 | 2.00 | 1.25 |"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["inference", "training"])
@pytest.mark.parametrize("op", [bench_detectors.HEAD, pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_the_authors_form_agrees_with_ours(op: str, direction: str, dtype: str) -> None:
    case = Case(op, "64x96", 2, "contiguous", dtype, direction)
    model = bench_detectors.make_work(case, "paper")
    bench_detectors.check_agreement(case, model)
    model.work.setup()
    model.work.once()
    loss, enhanced = model.observe()
    wrong = [(loss, enhanced.roll(1, dims=3)), *([] if loss is None else [(1.01 * loss, enhanced)])]
    for outcome in wrong:
        with pytest.raises(AssertionError):
            bench_detectors.check_agreement(case, model._replace(observe=functools.partial(tuple, outcome)))


def test_agreement_is_checked_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("enabled", "benchmark", "deterministic", "allow_tf32")
    seen: list[dict[str, bool]] = []

    def observe() -> tuple[None, Tensor]:
        seen.append({name: getattr(torch.backends.cudnn, name) for name in settings})
        return None, torch.zeros(1, 1, 2, 2)

    monkeypatch.setattr(bench_detectors, "authors_outcome", lambda case: observe())
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    case = Case(bench_detectors.HEAD, "64x96", 2, "contiguous", "float32", "inference")
    bench_detectors.check_agreement(
        case, bench_detectors.ModelWork(measurement.Work(lambda: None, lambda: None), observe)
    )
    assert seen == [before | {"allow_tf32": False}] * 2
    assert {name: getattr(torch.backends.cudnn, name) for name in settings} == before


def test_variants_of_an_op() -> None:
    x = torch.arange(4.0)

    def fused(x: Tensor) -> Tensor:
        return x + 1

    def eager(x: Tensor) -> Tensor:
        return x + 2

    assert variant_function("fused", x, fused, eager) is fused
    assert variant_function("eager", x, fused, eager) is eager
    copied = variant_function("copy", x, fused, eager)(x + 3, x)
    assert torch.equal(copied, x + 3)
    assert torch.equal(x, torch.arange(4.0))


def test_every_benchmark_of_detectors_has_something_to_compare() -> None:
    head = [case for case in bench_detectors.CASES if case.op == bench_detectors.HEAD]
    assert {(case.direction, bench_detectors.variants(case)) for case in head} == {
        ("inference", ("authors", "paper", "subpixel")),
        ("training", ("authors", "paper", "subpixel")),
    }
    assert {(case.direction, bench_detectors.variants(case)) for case in bench_detectors.CASES if case not in head} == {
        ("inference", ("plain", "authors", "paper", "subpixel")),
        ("training", ("plain", "authors", "paper", "subpixel")),
    }


@pytest.mark.parametrize("with_it", [False, True])
def test_no_variant_of_a_detector_has_more_boxes_to_work_on(with_it: bool) -> None:
    detector = bench_detectors.random_detector("faster_rcnn", self_reconstruction=with_it).eval()
    proposals: list[int] = []
    detector.get_submodule("head.rpn").register_forward_hook(lambda *args: proposals.extend(map(len, args[2][0])))
    with torch.no_grad():
        (detections,) = detector(bench_detectors.random_images(1, "64x96")[0])
    assert proposals == [1000]
    assert len(detections["boxes"]) == 0


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    small, large = (
        bench_detectors.peak_mb(Case(bench_detectors.HEAD, size, 1, "contiguous", "float32", "training"), "authors")
        for size in ("64x64", "512x512")
    )
    if small is None or large is None:
        pytest.skip("Linux does not tell the resident memory")
    activations = (
        512 * 512 * 64 * 4 * (2 * 0.5 + 2) / 2**20
    )  # two maps of each Up block are kept, the first half as large
    assert large - small > activations


def test_linear_cost_takes_the_fastest_round_of_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """10x10 is called twice a round, 10x20 once; the clock runs slow in the first round."""
    times = iter([9e-7, 3e-7, 1.5e-6, 2e-7, 4e-7, 1.2e-6])
    monkeypatch.setattr(linear_cost, "_time", lambda run, device: next(times))
    prepared: list[str] = []
    workload = linear_cost.Workload("ops", "op", lambda size: lambda: prepared.append(size), ["10x10", "10x20"], 2)
    curve = linear_cost.measure(workload, argparse.Namespace(repeats=3, device="cpu"))
    assert prepared == ["10x10", "10x20"]
    assert curve == {"10x10": pytest.approx(3), "10x20": pytest.approx(6)}
    assert linear_cost._row(workload, curve, ["10x10", "10x20", "20x20"]) == "| ops | op | 3.00 | 2.00 | - |"


@pytest.mark.slow
def test_linear_cost_prints_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "cost.png"
    options = ["--sizes", "48x32", "64x64", "--channels", "32", "--parts", "ops", "self_reconstruction"]
    options += ["--largest-training", "48x32", "--rounds", "1", "--model-rounds", "1", "--repeats", "1"]
    command = [sys.executable, str(SCRIPTS / "linear_cost.py"), *options, "--out", str(picture)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")][2:]
    named = {(panel, name): figures for panel, name, *figures in rows}
    of_ops = {name for panel, name in named if panel == "ops, forward"}
    assert of_ops == {linear_cost.COPY, *linear_cost.OPS}
    assert {"dgfe", "filtration", "reconstruction_difference"} <= of_ops
    assert of_ops - {linear_cost.COPY} <= set(ops.__all__)
    assert named["models, training", "self-reconstruction"][1] == "-"  # larger than asked for
    assert all(float(figure) > 0 for figures in named.values() for figure in figures if figure != "-")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_model_table() -> None:
    options = ["--size", "64", "--channels", "64", "--backbone", "resnet18", "--repeats", "1"]
    command = [sys.executable, str(SCRIPTS / "model_table.py"), *options, "--detectors", "faster_rcnn"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| `")]
    assert [row[2] for row in rows] == ["no", "yes"]
    assert ["of them SR-TOD's" in row[4] for row in rows] == [False, True]


def test_model_table_counts_the_reconstruction_head() -> None:
    options = {"backbone": "resnet18", "channels": 64, "min_size": None}
    detector = build_detector("faster_rcnn", 2, enhancement="dgfe", **options).eval()
    total, of_reconstruction = model_table.count_macs(detector, [torch.rand(3, 64, 64)])
    # P2 is 16x16 with 64 channels: a 3x3 convolution to 64, and one to the 3 colours of 16 pixels.
    # DGFE's MLP: two pooled vectors of 64 to 4, and one back.
    assert of_reconstruction == 16 * 16 * 9 * 64 * (64 + 48) + 3 * 64 * 4
    assert total > 2 * of_reconstruction
    plain = build_detector("faster_rcnn", 2, self_reconstruction=False, **options).eval()
    assert model_table.count_macs(plain, [torch.rand(3, 64, 64)])[1] == 0
