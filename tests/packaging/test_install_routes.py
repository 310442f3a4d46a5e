"""Every way to install srtod from its sources, each in an environment of its own that shares this one's torch.

The way that is not here, an environment without torch, is how .ci/run starts. There the compiler optimises, and CUDA is
built where it can be, as in test_kernels_compile.py; here neither is, which would take minutes each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

SOURCES = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "build-*", "dist", "runs")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SOURCES / "setup.py").exists(), reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


@dataclass
class Environment:
    """A copy of the sources, and a fresh virtual environment that sees the packages of the running one."""

    folder: Path

    @property
    def sources(self) -> Path:
        return self.folder / "clones/srtod"  # as `git clone` names it

    @property
    def own_packages(self) -> Path:
        return next(self.folder.glob("venv/lib/python*/site-packages"))

    @property
    def quick_compiler(self) -> str:
        """A C++ compiler that does not optimise, which takes a third of the time: the routes differ elsewhere."""
        script = self.folder / "c++"
        script.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
        script.chmod(0o755)
        return str(script)

    def python(self, *arguments: str, expect: int = 0, **variables: str) -> str:
        """Runs the environment's python in the copy of the sources; returns what it prints."""
        return self.run("python", *arguments, expect=expect, **variables)

    def run(self, program: str, *arguments: str, folder: Path | None = None, expect: int = 0, **variables: str) -> str:
        """Runs a program of the environment, by default in the copy of the sources; returns what it prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SRTOD_", "PYTHON"))}
        environment |= {"VIRTUAL_ENV": str(self.folder / "venv"), "SRTOD_CUDA": "0", **variables}
        done = subprocess.run(
            [self.folder / "venv/bin" / program, *arguments],
            cwd=folder or self.sources,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stdout
        return done.stdout

    def info(self, option: str = "-I") -> set[str]:
        """The lines of `python -m srtod.info`; -I keeps the source tree, which is the current folder, out of sight."""
        return {" ".join(line.split()) for line in self.python(option, "-m", "srtod.info").splitlines()}


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    made = Environment(tmp_path)
    shutil.copytree(SOURCES, made.sources, ignore=NOT_SOURCES)
    venv.create(tmp_path / "venv", with_pip=True)
    shared = {sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1])}
    (made.own_packages / "shared.pth").write_text("\n".join(shared))
    yield made
    shutil.rmtree(tmp_path)


def assert_built_against_installed_torch(environment: Environment, printed: str, option: str = "-I") -> None:
    assert f"against torch {torch.__version__}" in printed
    assert "Collecting torch" not in printed
    assert not (environment.own_packages / "torch").exists()
    assert {f"build: torch {torch.__version__}", "ops on cpu compiled"} <= environment.info(option)


def installed_presets(environment: Environment) -> set[Path]:
    """The presets that were installed, which must be all of them."""
    source, installed = (folder / "srtod/configs" for folder in (environment.sources, environment.own_packages))
    presets = {path.relative_to(installed) for path in installed.rglob("*.yaml")}
    assert presets == {path.relative_to(source) for path in source.rglob("*.yaml")}
    return presets


def test_install(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", "-v", ".", CXX=environment.quick_compiler)
    assert_built_against_installed_torch(environment, printed)
    assert (environment.own_packages / "srtod/py.typed").exists()
    assert installed_presets(environment)


def test_editable_install(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", "-v", "-e", ".", CXX=environment.quick_compiler)
    # From within the tree: the running environment's srtod, if it is not editable, would be found before this one.
    assert_built_against_installed_torch(environment, printed, "-s")
    assert any(environment.own_packages.glob("__editable__*srtod*.pth"))
    assert not (environment.own_packages / "srtod").exists()
    parent = environment.sources.parent  # where a folder named srtod lies, which is not the package
    found = environment.run("python", "-c", "import srtod; print(srtod.Predictor, srtod.__file__)", folder=parent)
    assert "srtod.prediction.predictor.Predictor" in found
    assert str(environment.sources / "srtod/__init__.py") in found
    assert environment.run("srtod", "--help", folder=parent).startswith("usage: srtod")


def test_install_without_build_isolation(environment: Environment) -> None:
    environment.python("-m", "pip", "install", "setuptools>=77", "ninja")
    command = ("-m", "pip", "install", "-v", "--no-build-isolation", ".")
    printed = environment.python(*command, CXX=environment.quick_compiler)
    assert_built_against_installed_torch(environment, printed)


def test_source_distribution_to_wheel(environment: Environment) -> None:
    printed = environment.python("-m", "build", CXX=environment.quick_compiler)
    (wheel,) = environment.sources.glob("dist/*.whl")
    printed += environment.python("-m", "pip", "install", str(wheel))
    assert_built_against_installed_torch(environment, printed)
    assert installed_presets(environment)


def test_pure_python_install(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", "-v", ".", SRTOD_BUILD="0")
    assert "SRTOD_BUILD=0: installing pure Python" in printed
    assert "-py3-none-any.whl" in printed
    assert "build no compiled part" in environment.info()


def test_failing_compiler_fails_the_install_and_says_what_to_do(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", ".", expect=1, CXX="/bin/false")
    assert "[srtod] The compiled ops could not be built" in printed
    assert "a C++17 compiler" in printed
    assert "SRTOD_BUILD=0" in printed


def test_without_a_compiler_the_install_says_so(environment: Environment) -> None:
    tools = environment.folder / "tools"  # nvcc is on the PATH, and c++ is not
    tools.mkdir()
    (tools / "nvcc").symlink_to(shutil.which("nvcc") or "/bin/false")
    printed = environment.python("-m", "pip", "install", ".", expect=1, PATH=str(tools), SRTOD_CUDA="")
    assert "[srtod] No C++ compiler was found (`c++`): install one, for example with `apt install g++`, or" in printed
    assert "SRTOD_BUILD=0" in printed
    assert "CUDA" not in printed


def test_compile_error_fails_the_install_and_says_what_to_do(environment: Environment) -> None:
    (environment.sources / "csrc/cpu/broken.cpp").write_text("int main( {")
    printed = environment.python("-m", "pip", "install", ".", expect=1)
    assert "[srtod] The compiled ops could not be built" in printed
    assert "broken.cpp:1" in printed
    assert "SRTOD_CUDA=0" not in printed.split("The way out:")[1]


@pytest.mark.skipif(shutil.which("nvcc") is None or torch.version.cuda is None, reason="needs nvcc and torch with CUDA")
def test_cuda_compile_error_fails_the_install_and_says_how_to_leave_cuda_out(environment: Environment) -> None:
    kernels = environment.sources / "csrc"
    for source in [*kernels.glob("cpu/*.cpp"), *kernels.glob("cuda/*.cu")]:
        source.unlink()  # what compiles is of no interest here
    (kernels / "cuda/broken.cu").write_text("int main( {")
    printed = environment.python("-m", "pip", "install", ".", expect=1, SRTOD_CUDA="1")
    assert "broken.cu(1)" in printed
    assert "The way out: SRTOD_CUDA=0 in front of the command leaves out the CUDA kernels; SRTOD_BUILD=0" in printed


def test_cuda_on_demand_fails_where_it_is_impossible(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", ".", expect=1, SRTOD_CUDA="1", CUDA_HOME="/nonexistent")
    assert "[srtod] SRTOD_CUDA=1, but " in printed


def test_unknown_switch_is_named(environment: Environment) -> None:
    printed = environment.python("-m", "pip", "install", ".", expect=1, SRTOD_CUDA="yes")
    assert "[srtod] SRTOD_CUDA must be 0 or 1, got 'yes'" in printed


def test_requested_gpu_architectures_are_built(environment: Environment) -> None:
    variables = {"SRTOD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.6 9.0+PTX", "CXX": "/bin/false"}
    printed = environment.python("-m", "pip", "install", "-v", ".", expect=1, **variables)
    if "[srtod] SRTOD_CUDA=1, but" in printed:
        pytest.skip("CUDA cannot be compiled here")
    assert "[srtod] building for CPU and CUDA (8.6;9.0+PTX)" in printed
