"""The CUDA kernels on the CPU: built for the emulation in csrc/emulation, they pass the very tests of the ops.

The emulation runs threads, barriers, shuffles, shared memory, atomics and cooperative launches, in changing orders, and
under AddressSanitizer. It finds wrong indices, missing barriers and wrong arithmetic, and is shown to, by kernels that
are broken on purpose; of races between two barriers, of memory models and of speed it knows nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).resolve().parents[2]
KERNELS = sorted((SOURCES / "csrc/cuda").glob("*.cu"))
TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"
FLAGS = {"plain": ["-O2"], "sanitized": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address"]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not KERNELS, reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def compile_kernel(source: Path, flags: str, to: Path) -> Path:
    """One source file, with `csrc` as it is around it."""
    setup = (SOURCES / "setup.py").read_text()
    target = re.search(r'^TORCH_TARGET = "(\w+)"', setup, re.MULTILINE)
    assert target
    options = [*FLAGS[flags], "-std=c++17", "-fPIC", "-fvisibility=hidden", "-DSRTOD_EMULATION", "-Wno-unknown-pragmas"]
    options += [f"-DTORCH_TARGET_VERSION={target[1]}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["g++", *options, "-x", "c++", "-c", source, "-o", to], check=True)
    return to


def make_package(objects: list[Path], flags: str, folder: Path) -> Path:
    """A copy of the package and its tests, whose library of CPU kernels holds these emulated CUDA kernels."""
    no_libraries = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(SOURCES / "srtod", folder / "srtod", ignore=no_libraries)
    shutil.copytree(SOURCES / "tests/ops", folder / "tests/ops", ignore=no_libraries)
    shutil.copy(SOURCES / "pyproject.toml", folder)
    link = [f"-L{TORCH_LIBRARIES}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH_LIBRARIES}"]
    library = folder / "srtod/_cpu.so"
    subprocess.run(["g++", "-shared", *FLAGS[flags], *objects, "-o", library, *link], check=True)
    return folder


@dataclass
class Outcome:
    """How a run of tests ended, what pytest printed, and what AddressSanitizer found."""

    code: int
    printed: str
    found: str

    @property
    def passed(self) -> int:
        count = re.search(r"(\d+) passed", self.printed)
        return int(count[1]) if count else 0


def run_tests(package: Path, flags: str, *arguments: str, **variables: str) -> Outcome:
    """Runs the tests of the ops on the CPU with a package that `make_package` made."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SRTOD_")}
    environment |= {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", **variables}
    if flags == "sanitized":
        libraries = [
            subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
            for name in ("libasan.so", "libstdc++.so")
        ]
        environment["LD_PRELOAD"] = " ".join(name.strip() for name in libraries)
        environment["ASAN_OPTIONS"] = f"detect_leaks=0:log_path={package}/found"  # CPython's leaks are not ours
    used = subprocess.run(
        [sys.executable, "-c", "import srtod; print(srtod.__file__)"],
        cwd=package,
        env=environment | {"LD_PRELOAD": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert used.startswith(str(package)), f"another srtod would be tested: {used}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=package, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    found = "".join(report.read_text() for report in package.glob("found*"))
    return Outcome(done.returncode, done.stdout, found)


@dataclass(frozen=True)
class Run:
    """A way to run the tests on unbroken kernels."""

    flags: str
    selection: tuple[str, ...]
    least: int  # tests that must pass, so that none is lost unnoticed
    variables: dict[str, str] = field(default_factory=dict)


# The modules that run kernels. What the others ask is the same for every kernel, and asked of the CPU's: compilers,
# threshold and module, and gradients by finite differences, where these judge gradients by the reference in float64.
OF_KERNELS = [f"tests/ops/test_{name}.py" for name in ("reference", "exact", "special_values", "layout", "properties")]
OF_KERNELS += ["tests/ops/test_bad_input.py", "tests/ops/test_torch_features.py::test_opcheck"]
# DGFE each way at every size; the choice by size, and -O2, are those of the random cases and of the faults.
RUNS = {
    "one_launch": Run("sanitized", (*OF_KERNELS, "-k", "not cuda"), 1500, {"SRTOD_COOPERATIVE": "1"}),
    "two_launches": Run("sanitized", (*OF_KERNELS[:3], "-k", "dgfe and not cuda"), 400, {"SRTOD_COOPERATIVE": "0"}),
    "random_cases": Run("plain", ("tests/ops/test_fuzz.py", "-m", "slow", "-k", "not cuda"), 20),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory, workers: ThreadPoolExecutor) -> dict[str, dict[str, Path]]:
    """For each kind of flags the compiled schemas and kernels, by name."""
    folder = tmp_path_factory.mktemp("objects")
    futures = {
        (flags, source.name): workers.submit(compile_kernel, source, flags, folder / flags / f"{source.name}.o")
        for flags in FLAGS
        for source in [SOURCES / "csrc/library.cpp", *KERNELS]
    }
    return {flags: {name: future.result() for (of, name), future in futures.items() if of == flags} for flags in FLAGS}


@dataclass(frozen=True)
class Fault:
    """A kernel broken on purpose: `correct`, in this file of csrc/cuda, becomes `broken`."""

    file: str
    correct: str
    broken: str
    flags: str
    sign: str  # what the run must show


FAULTS = {
    "wrong_index_into_kept_rows": Fault(
        "dgfe_one_launch.cu",
        "return kept[(row - begin) * kThreads + threadIdx.x]",
        "return kept[(row - begin + 1) * kThreads + threadIdx.x]",
        "plain",
        "AssertionError",
    ),
    "part_of_a_sum_left_out": Fault(
        "dgfe_backward.cu",
        "for (uint32_t k = begin; k < end; ++k) sum += of_image",
        "for (uint32_t k = begin + 1; k < end; ++k) sum += of_image",
        "plain",
        "AssertionError",
    ),
    "no_barrier_of_the_block": Fault(
        "dgfe_one_launch.cu",
        "    __syncthreads();\n    if (threadIdx.x < chunk_end",
        "    if (threadIdx.x < chunk_end",
        "plain",
        "AssertionError",
    ),
    "no_barrier_of_the_grid": Fault(
        "dgfe_one_launch.cu",
        "  wait_for_grid();\n\n  combine_slices<",
        "\n  combine_slices<",
        "plain",
        "AssertionError",
    ),
    "barrier_that_not_all_threads_reach": Fault(
        "dgfe_one_launch.cu",
        "  wait_for_grid();\n\n  combine_slices<",
        "  if (threadIdx.x > 0) wait_for_grid();\n\n  combine_slices<",
        "plain",
        "a GPU would hang",
    ),
    "wrong_index_into_shared_memory": Fault(
        "dgfe_backward.cu",
        "of_warp[threadIdx.x / 32][first + k - begin] = of_pixels",
        "of_warp[threadIdx.x / 32 + 1][first + k - begin] = of_pixels",
        "sanitized",
        "heap-buffer-overflow",
    ),
    "wrong_index_into_global_memory": Fault(
        "dgfe_backward.cu",
        "sums.grad_filter[(group * shape.batch + n) * shape.pixels + pixel + i]",
        "sums.grad_filter[(group * shape.batch + n) * shape.pixels + pixel + i + 1]",
        "sanitized",
        "heap-buffer-overflow",
    ),
}


def run_fault(fault: Fault, objects: dict[str, Path], folder: Path) -> Outcome:
    """The tests of DGFE with the broken kernel among the other `objects`."""
    shutil.copytree(SOURCES / "csrc", folder / "csrc")
    source = folder / "csrc/cuda" / fault.file
    text = source.read_text()
    assert text.count(fault.correct) == 1, "the fault no longer fits the kernel"
    source.write_text(text.replace(fault.correct, fault.broken))
    broken = compile_kernel(source, fault.flags, folder / "broken.o")
    all_objects = [broken if name == fault.file else path for name, path in objects.items()]
    package = make_package(all_objects, fault.flags, folder / "package")
    selection = "every_dtype_layout_and_size and dgfe and float32 and contiguous and not cuda"
    return run_tests(package, fault.flags, "tests/ops/test_reference.py", "-x", "-k", selection)


@pytest.fixture(scope="module")
def outcomes(
    objects: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory, workers: ThreadPoolExecutor
) -> dict[str, Future[Outcome]]:
    """All runs and faults, side by side."""

    def start(name: str, run: Run) -> Outcome:
        package = make_package(list(objects[run.flags].values()), run.flags, tmp_path_factory.mktemp(name))
        return run_tests(package, run.flags, *run.selection, **run.variables)

    def start_fault(name: str, fault: Fault) -> Outcome:
        return run_fault(fault, objects[fault.flags], tmp_path_factory.mktemp(name))

    started = {name: workers.submit(start, name, run) for name, run in RUNS.items()}
    return started | {name: workers.submit(start_fault, name, fault) for name, fault in FAULTS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_kernels_pass_the_tests_of_the_ops(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[name].result()
    assert outcome.code == 0, outcome.printed[-5000:] + outcome.found
    assert outcome.passed >= RUNS[name].least
    assert "ERROR: AddressSanitizer" not in outcome.found


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[name].result()
    assert outcome.code != 0
    assert FAULTS[name].sign in outcome.printed + outcome.found, outcome.printed[-3000:] + outcome.found
