"""`python -m srtod.benchmark_data`: what is measured, and what is said of it. No speed is asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from srtod import benchmark_data
from srtod._support.cli import run
from srtod.engine import DetectionData
from srtod.engine.throughput import Throughput, ThroughputConfig, _rate, measure_throughput

QUICK = [
    *("--channels", "16", "--swarm-images", "4", "--swarm-size", "128", "--threads", "1", "--accelerator", "cpu"),
    *("--seconds", "0.01"),
]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str:
    """The exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["benchmark_data", *QUICK, *arguments])
    try:
        run(benchmark_data.main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_table_and_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("batch_size: 1\nworkers: 1\nanchor_scale: auto\n")
    assert call(monkeypatch, "--config", "run.yaml", "--try-workers", "0") == 0
    header, *rows, blank, verdict = capsys.readouterr().out.splitlines()
    assert header.strip() == "images a second"
    labels = ["loader alone, 0 workers", "loader alone, 1 worker", "training step alone, cpu", "training, 1 worker"]
    assert [row[: row.rindex(" ")].strip() for row in rows] == labels
    assert all(float(row.split()[-1]) > 0 for row in rows)
    assert not blank
    assert verdict.startswith("The ")
    assert verdict.endswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_the_loader_is_started_for_each_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    original = DetectionData.train_dataloader

    def counted(data: DetectionData) -> object:
        started.append(data.config.workers)
        return original(data)

    monkeypatch.setattr(DetectionData, "train_dataloader", counted)
    options = {"channels": 16, "swarm_images": 4, "swarm_size": 128, "threads": 1, "accelerator": "cpu"}
    config = ThroughputConfig.from_dict(options | {"seconds": 0.01, "workers": 0, "try_workers": (1, 0)})
    throughput = measure_throughput(config)
    assert started == [0, 1, 0, 0]  # alone, alone with another number of workers, for the step, for both
    assert list(throughput.loader) == [0, 1]
    assert (throughput.workers, throughput.device) == (0, "cpu")
    assert min(throughput.step, throughput.both) > 0


def test_rate_counts_images_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 102.0, 104.0, 104.0])
    monkeypatch.setattr("srtod.engine.throughput.time.perf_counter", lambda: next(clock))
    used = []
    batches = iter([([None] * size, []) for size in (1, 1, 3, 4, 5, 9)])
    rate = _rate(batches, lambda batch: used.append(len(batch[0])), seconds=3, warm_up=2)
    assert used == [1, 1, 3, 4, 5]
    assert rate == 12 / 4


@pytest.mark.parametrize(
    ("loader", "both", "workers", "sentence"),
    [
        ({0: 50, 2: 100}, 38, 2, "The loader keeps up: training runs at 95% of the speed of its step"),
        (
            {0: 10, 2: 20, 4: 60, 8: 90},
            20,
            2,
            "waits for images 50% of the time; use --workers 4, which load 1.5 times",
        ),
        ({0: 100, 2: 100}, 30, 0, "waits for images 25% of the time; use --workers 2, which load 2.5 times"),
        ({0: 100, 1: 100}, 30, 0, "waits for images 25% of the time; use --workers 1, which loads 2.5 times"),
        ({0: 10, 2: 20, 4: 39}, 20, 2, "waits for images 50% of the time; use --workers 4, the fastest tried"),
        ({0: 10, 2: 20, 4: 21}, 20, 2, "no number of workers tried is faster; shrink the image files"),
        ({0: 10, 2: 80}, 20, 2, "though the loader alone is fast enough: both need the same cores"),
    ],
)
def test_verdict(loader: dict[int, float], both: float, workers: int, sentence: str) -> None:
    assert sentence in Throughput(loader, step=40, both=both, workers=workers, device="cpu").verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seconds 0", "seconds must be positive"),
        ("--try-workers -1", "try_workers must not be negative"),
        ("--data nowhere", "nowhere does not exist"),
        ("--config nothing", "there is no preset 'nothing'"),
        ("--sekonds 1", "did you mean --seconds?"),
    ],
)
def test_bad_options(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
