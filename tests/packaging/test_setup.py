"""What setup.py decides without compiling anything."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SETUP = Path(__file__).resolve().parents[2] / "setup.py"

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the source tree")


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    return runpy.run_path(str(SETUP), run_name="not_main")


@pytest.mark.parametrize(
    ("requested", "visible", "chosen", "left_out"),
    [
        ("", set(), ["8.0", "9.0+PTX"], []),
        ("native", set(), ["8.0", "9.0+PTX"], []),
        ("", {(8, 6)}, ["8.6+PTX"], []),
        ("", {(9, 0), (8, 0)}, ["8.0", "9.0+PTX"], []),
        ("", {(7, 5)}, [], ["7.5"]),
        ("", {(7, 5), (8, 9)}, ["8.9+PTX"], ["7.5"]),
        ("", {(10, 0)}, ["10.0+PTX"], []),
        ("", {(99, 0)}, ["8.0", "9.0+PTX"], []),  # newer than nvcc
        ("8.6 9.0+PTX", {(8, 0)}, ["8.6", "9.0+PTX"], []),
        ("7.0;7.5+PTX;8.0;12.0", set(), ["8.0", "12.0"], ["7.0", "7.5+PTX"]),
        ("7.5", {(8, 0)}, [], ["7.5"]),
    ],
)
def test_which_architectures_are_built(
    setup: dict[str, Any], requested: str, visible: set[tuple[int, int]], chosen: list[str], left_out: list[str]
) -> None:
    known = {"75", "80", "86", "89", "90", "100", "120"}
    assert setup["choose_architectures"](requested, visible, known) == (chosen, left_out)


@pytest.mark.parametrize(
    ("cxx_files", "cuda_files", "architectures", "said"),
    [
        (0, 0, 0, "about 1 minute"),
        (24, 0, 0, "about 2 minutes"),
        (24, 20, 1, "about 5 minutes"),
        (24, 20, 2, "about 8 minutes"),
    ],
)
def test_the_estimate_counts_files_and_architectures(
    setup: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    cxx_files: int,
    cuda_files: int,
    architectures: int,
    said: str,
) -> None:
    monkeypatch.setenv("MAX_JOBS", "1")
    setup["about_minutes"].__globals__.update(CXX_SECONDS=5, CUDA_SECONDS=9)
    files = ["a.cpp"] * cxx_files + ["a.cu"] * cuda_files
    assert setup["about_minutes"](files, architectures) == said
