"""What setup.py and the build backend decide before anything is compiled."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
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
        ("", set(), ["8.0", "9.0", "10.0", "12.0+PTX"], []),
        ("native", set(), ["8.0", "9.0", "10.0", "12.0+PTX"], []),
        ("", {(8, 6)}, ["8.6+PTX"], []),
        ("", {(9, 0), (8, 0)}, ["8.0", "9.0+PTX"], []),
        ("", {(7, 5)}, [], ["7.5"]),
        ("", {(7, 5), (8, 9)}, ["8.9+PTX"], ["7.5"]),
        ("", {(10, 0)}, ["10.0+PTX"], []),
        ("", {(99, 0)}, ["8.0", "9.0", "10.0", "12.0+PTX"], []),  # newer than nvcc
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


def test_an_older_nvcc_builds_for_what_it_knows(setup: dict[str, Any]) -> None:
    """That of CUDA 12.4 knows no GPU after 9.0."""
    known = {"75", "80", "86", "89", "90"}
    for visible in (set(), {(10, 0)}):
        assert setup["choose_architectures"]("", visible, known) == (["8.0", "9.0+PTX"], [])


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


@pytest.fixture
def backend_without_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build backend where the user's environment has no torch."""
    monkeypatch.syspath_prepend(SETUP.parent / "build_backend")
    monkeypatch.delenv("SRTOD_BUILD", raising=False)
    backend = importlib.import_module("srtod_build")
    monkeypatch.setattr(backend, "_path_with_torch", list)
    return backend


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_where_there_is_no_torch_it_is_fetched_and_said(
    backend_without_torch: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend_without_torch._torch_requirement() == ["torch>=2.11"]
    assert "torch is not installed: pip fetches it for the build" in capsys.readouterr().err
    monkeypatch.setenv("SRTOD_BUILD", "0")
    assert backend_without_torch._torch_requirement() == []


def test_without_a_compiler_no_torch_is_fetched(backend_without_torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SystemExit, match=r"No C\+\+ compiler was found"):
        backend_without_torch._torch_requirement()


@pytest.mark.parametrize("settings", [None, {"editable_mode": "strict"}])
def test_editable_installs_are_a_pth_file_unless_asked_for_otherwise(
    backend_without_torch: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str] | None
) -> None:
    given = []
    monkeypatch.setattr(backend_without_torch.build_meta, "build_editable", lambda *arguments: given.append(arguments))
    backend_without_torch.build_editable("folder", settings)
    assert given == [("folder", settings or {"editable_mode": "compat"}, None)]
