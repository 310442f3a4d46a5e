"""`pytest benchmarks/` compares the fused ops, and models made of them, with other forms of the same computation.

It prints a table of ratios.

pytest benchmarks/                                  # medians over 20 rounds
pytest benchmarks/ --rounds 1                       # a quick pass
pytest benchmarks/ -k cuda                          # the GPU's cases alone
pytest benchmarks/ --large                          # with models at the sizes of docs/performance.md; an hour on a CPU
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
    parser.addoption("--large", action="store_true", help="also measure models at large sizes on the CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--large"):
        return
    large = [item for item in items if item.get_closest_marker("large")]
    config.hook.pytest_deselected(items=large)
    items[:] = [item for item in items if item not in large]


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


@pytest.fixture
def measure_model(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """`measurement.measure_model` with its first two arguments filled in."""
    return partial(measurement.measure_model, benchmark, pytestconfig.getoption("--rounds"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, lines in measurement.tables().items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
