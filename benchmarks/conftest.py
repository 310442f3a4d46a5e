"""`pytest benchmarks/` compares the fused ops with other forms of the same computation, and prints a table of ratios.

pytest benchmarks/                                  # medians over 20 rounds
pytest benchmarks/ --rounds 1                       # a quick pass
pytest benchmarks/ -k cuda                          # the GPU's cases alone
pytest benchmarks/ --benchmark-json=results.json    # every entry's `extra_info` says what it measured
python benchmarks/report.py results.json            # a table of them in Markdown
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import measurement
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=20, help="timed rounds of each benchmark (default: 20)")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Results are published: the machine's kind counts, not its name."""
    machine_info.pop("node", None)


@pytest.fixture(autouse=True)
def _compiler_of_one_shape(case: measurement.Case) -> None:
    measurement.forget_other_shapes(case)


@pytest.fixture(autouse=True)
def _launches(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRTOD_COOPERATIVE", raising=False)
    if variant in measurement.LAUNCHES:
        monkeypatch.setenv("SRTOD_COOPERATIVE", measurement.LAUNCHES[variant])


@pytest.fixture
def measure(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """`measurement.measure` with its first two arguments filled in."""
    return partial(measurement.measure, benchmark, pytestconfig.getoption("--rounds"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if measurement.results:
        terminalreporter.section("median of the fused op, and how many times as long the other forms take")
        for line in measurement.table():
            terminalreporter.write_line(line)
