"""The installed package: what it was built from, what it says about itself, and how it behaves with parts missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srtod
from srtod.ops import _extension

PACKAGE = Path(srtod.__file__).parent
SOURCES = Path(__file__).resolve().parents[2]
INFO = "import runpy; runpy.run_module('srtod.info', run_name='__main__')"
CALL_TWICE = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from srtod import ops
    imported = len(caught)
    image = torch.zeros(1, 3, 4, 4)
    values = [ops.difference_map(image + 0.5, image).mean().item() for _ in range(2)]
print(json.dumps([values, imported, [str(warning.message) for warning in caught], ops.is_fused("cpu")]))
"""

compiled = pytest.mark.skipif(not _extension.LOADED, reason="installed without compiled ops")


def run(code: str, *, path: Path = PACKAGE.parent, **variables: str) -> str:
    """What a fresh interpreter prints for `code`, with the srtod in the folder `path` first on its import path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SRTOD_")} | variables
    environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def call_twice(path: Path = PACKAGE.parent, **variables: str) -> tuple[list[str], bool]:
    """The warnings of two calls of an op, and whether it ran compiled; its values must be right in any case."""
    values, imported, messages, fused = json.loads(run(CALL_TWICE, path=path, **variables))
    assert values == [0.5, 0.5]
    assert imported == 0
    return messages, fused


@pytest.fixture
def bare_copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package that lacks the compiled libraries."""
    shutil.copytree(PACKAGE, tmp_path / "srtod", ignore=shutil.ignore_patterns("_c*.so", "__pycache__"))
    return tmp_path


def test_the_version_has_one_source() -> None:
    assert importlib.metadata.version("srtod") == srtod.__version__


@pytest.mark.skipif(not (SOURCES / "setup.py").exists(), reason="needs the source tree")
def test_source_distribution_has_all_that_tests_read(tmp_path: Path) -> None:
    """By setuptools' list of its files: they are run from there, with the documents, examples and sources they need."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=SOURCES, check=True, capture_output=True)
    distributed = set((tmp_path / "srtod.egg-info/SOURCES.txt").read_text().splitlines())
    folders = [".ci", "benchmarks", "build_backend", "csrc", "docs", "examples", "scripts", "srtod", "tests"]
    sources = {
        str(path.relative_to(SOURCES))
        for folder in folders
        for path in (SOURCES / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so") and path.name != "_build_info.py"
    }
    assert not sources - distributed
    assert not [name for name in distributed if name.endswith((".pyc", ".so"))]


@compiled
def test_build_info_tells_what_was_built_and_why() -> None:
    built = _extension.build_info()
    assert set(built) == {"version", "compiler", "torch", "cuda", "architectures", "decision", "reason"}
    assert built["version"] == srtod.__version__
    assert built["torch"]
    assert built["decision"] in ("CPU only", "CPU and CUDA")
    assert built["reason"]


def test_info_prints_the_environment() -> None:
    printed = run(INFO)
    for fact in (srtod.__version__, torch.__version__, "processor", "ops on cpu", "ops on cuda", "pycocotools"):
        assert fact in printed


def test_info_survives_a_broken_torch(bare_copy: Path) -> None:
    (bare_copy / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    lines = [" ".join(line.split()) for line in run(INFO, path=bare_copy).splitlines()]
    assert "torch not usable: ImportError: libcudart.so.13 is missing" in lines
    assert "ops not usable: ImportError: libcudart.so.13 is missing" in lines


def test_importing_the_ops_loads_nothing_but_torch() -> None:
    code = "import sys, torch; before = set(sys.modules); import srtod.ops; print(*set(sys.modules) - before)"
    packages = {module.partition(".")[0] for module in run(code).split()}
    assert packages - set(sys.stdlib_module_names) <= {"srtod", "torch"}


@compiled
def test_compiled_ops_run_without_a_warning() -> None:
    assert call_twice() == ([], True)


def test_missing_library_warns_once_and_tells_how_to_build(bare_copy: Path) -> None:
    messages, fused = call_twice(bare_copy)
    assert not fused
    assert len(messages) == 1
    assert "srtod/_cpu*.so is not installed; `pip install .`" in messages[0]


def test_reference_on_request_does_not_warn(bare_copy: Path) -> None:
    assert call_twice(bare_copy, SRTOD_REFERENCE="1") == ([], False)


@compiled
def test_reference_can_be_asked_for_per_process_and_per_block() -> None:
    assert call_twice(SRTOD_REFERENCE="1") == ([], False)
    assert call_twice(SRTOD_REFERENCE="0") == ([], True)
    image = torch.zeros(1, 3, 4, 4)
    with _extension.use_reference():
        assert not _extension.is_fused("cpu")
        with _extension.use_reference():
            assert not _extension.runs_fused(image)
        assert not _extension.runs_fused(image)
    assert _extension.runs_fused(image)


@compiled
def test_torch_compile_follows_the_choice() -> None:
    def path(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if _extension.runs_fused(x) else x - 1

    traced = torch.compile(path, fullgraph=True, backend="eager")
    assert traced(torch.zeros(1)) == 1
    with _extension.use_reference():
        assert traced(torch.zeros(1)) == -1
    assert traced(torch.zeros(1)) == 1


def test_unknown_devices_run_the_reference() -> None:
    assert not _extension.is_fused("meta")


def test_a_damaged_library_is_explained(bare_copy: Path) -> None:
    (bare_copy / "srtod/_cpu.abi3.so").write_bytes(b"not a library")
    messages, fused = call_twice(bare_copy)
    assert not fused
    assert len(messages) == 1
    assert f"does not load under the installed torch {torch.__version__} (" in messages[0]
    assert "builds it anew" in messages[0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_library_for_another_torch_is_explained_without_symbols(bare_copy: Path) -> None:
    source = bare_copy / "other.cpp"
    source.write_text("void only_in_another_torch(); struct Call { Call() { only_in_another_torch(); } } call;")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", bare_copy / "srtod/_cpu.abi3.so"], check=True)
    messages, fused = call_twice(bare_copy)
    assert not fused
    assert len(messages) == 1
    assert "(a function that it calls is missing there)" in messages[0]
    assert "only_in_another_torch" not in messages[0]


def test_a_torch_that_is_too_old_is_named(bare_copy: Path) -> None:
    (bare_copy / "srtod/_cpu.abi3.so").touch()
    old = "import torch; torch.__version__ = type(torch.__version__)('2.10.1')\n"
    messages = json.loads(run(old + CALL_TWICE, path=bare_copy))[2]
    assert len(messages) == 1
    assert "needs torch 2.11 or newer, and torch 2.10.1 is installed" in messages[0]


@compiled
def test_a_library_of_another_version_is_not_loaded(bare_copy: Path) -> None:
    (bare_copy / "srtod/_cpu.abi3.so").touch()
    (bare_copy / "srtod/_version.py").write_text('__version__ = "99.0"')
    messages, fused = call_twice(bare_copy)
    assert not fused
    assert f"was built for srtod {srtod.__version__}, and this is 99.0" in messages[0]


@compiled
def test_a_second_copy_is_refused_before_it_crashes() -> None:
    code = """
import sys
import srtod.ops
for name in [name for name in sys.modules if name.startswith("srtod")]:
    del sys.modules[name]
try:
    import srtod.ops
except ImportError as error:
    print(error)
"""
    assert "another copy of srtod are already loaded" in run(code)


@pytest.mark.parametrize(
    ("capability", "architecture", "runs"),
    [
        ((8, 6), "8.0", True),
        ((8, 0), "8.6", False),
        ((9, 0), "8.0", False),
        ((9, 0), "8.0+PTX", True),
        ((8, 0), "9.0+PTX", False),
        ((9, 0), "9.0a", True),
        ((12, 0), "9.0a", False),
        ((10, 0), "Blackwell", True),
    ],
)
def test_which_gpus_run_which_code(capability: tuple[int, int], architecture: str, runs: bool) -> None:
    assert _extension._runs_on(capability, architecture) == runs
