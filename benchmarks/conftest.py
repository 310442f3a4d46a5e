"""`pytest benchmarks/` compares the fused ops with other forms of the same computation, and prints a table of ratios.

pytest benchmarks/                                  # medians over 20 rounds
pytest benchmarks/ --rounds 1                       # a quick pass
pytest benchmarks/ --benchmark-json=results.json    # every entry's `extra_info` says what it measured
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import measurement
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=20, help="timed rounds of each benchmark (default: 20)")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    gc.collect()


@pytest.fixture
def measure(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """`measurement.measure` with its first two arguments filled in."""
    return partial(measurement.measure, benchmark, pytestconfig.getoption("--rounds"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if measurement.results:
        terminalreporter.section("median of the fused op, and how many times as long the other forms take")
        for line in measurement.table():
            terminalreporter.write_line(line)
