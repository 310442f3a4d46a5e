"""A pytest plugin for runs that nobody watches: prints each failure when it happens, and ends the run in time.

pytest -p pytest_unattended --seconds 500 tests

pytest by itself prints failures at the end, which a run that is stopped never reaches.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, help="start no test after this time (default: run all)")


class Unattended:
    """Watches the clock and the reports of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        self.limit: float | None = config.getoption("--seconds")
        self.start = time.monotonic()
        self.left = 0  # tests that have not run

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.left = len(session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._print(report.nodeid, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._print(report.nodeid, report.longreprtext)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        result = yield
        self.left -= 1
        if self.limit is not None and self.left > 0 and time.monotonic() - self.start > self.limit:
            item.session.shouldstop = f"the {self.limit:.0f} seconds are over, and {self.left} tests have not run"
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        session.config.option.tbstyle = "no"  # all has been printed

    def _print(self, name: str, text: str) -> None:
        self.terminal.write_line(f"\nFAILED {name} after {time.monotonic() - self.start:.0f} s")
        self.terminal.write_line(text)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Also lets SIGINT end the run with a summary: processes in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Unattended(config))
