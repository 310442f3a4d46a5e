"""What the benchmarks report: measured times of the GPU through pytest-benchmark, and the table made of its file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest-benchmark's file of a run that only imagines its GPU."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "bench_fake.py").write_text(GPU_WITHOUT_A_GPU)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {BENCHMARKS}\npython_files = bench_*.py\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=results.json", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    return folder / "results.json"


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
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(results)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("a fake GPU, torch ")
    assert (
        "| small | 1 | contiguous | float32 | forward | 2000.0 | 2000.0-2000.0 | 2000.0 | 1.00 | 0.67 | 2.0 |"
        in printed
    )
    done = subprocess.run(command[:-1], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: python benchmarks/report.py RESULTS.json... > table.md" in done.stderr


def test_model_table_counts_the_reconstruction_head() -> None:
    options = ["--size", "256", "--channels", "64", "--backbone", "resnet18", "--repeats", "1"]
    command = [sys.executable, str(BENCHMARKS / "model_table.py"), *options, "--detectors", "faster_rcnn"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| `")]
    assert [row[2] for row in rows] == ["no", "yes"]
    # P2 is 64x64. Of each Up block a transposed 4x4 convolution, of which a pixel sees 2x2, and two 3x3; 3x3 to RGB.
    first, second = 128 * 128 * 32, 256 * 256 * 16
    macs = first * (64 * 4 + 2 * 32 * 9) + second * (32 * 4 + 2 * 16 * 9) + 256 * 256 * 3 * 16 * 9
    counted = re.search(r"\(([\d.]+) of them", rows[1][4])
    assert counted
    assert float(counted[1]) == pytest.approx(macs / 1e9, abs=0.05)  # printed with one decimal
