"""The CUDA library as users get it: what `setup.py` builds without a GPU, and what ptxas reports of every kernel.

A kernel that spills registers or keeps arrays in memory still gives right results, only slowly; ptxas tells.
`pytest -m slow -s tests/packaging/test_kernels_compile.py` prints the registers and the shared memory of each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).resolve().parents[2]
SAMPLE = """\
[2/3] /usr/local/cuda/bin/nvcc -c csrc/cuda/sum.cu -Xptxas=-v
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5srtod3sumIfEEvPKT_PS1_i' for 'sm_80'
ptxas info    : Function properties for _ZN5srtod3sumIfEEvPKT_PS1_i
    504 bytes stack frame, 540 bytes spill stores, 720 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 504 bytes cumulative stack size, 1024 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 28.875 ms
ptxas info    : Compiling entry function '_ZN5srtod5plainEPf' for 'sm_90'
ptxas info    : Function properties for _ZN5srtod5plainEPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN5srtod6helperEf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 0.616 ms
"""

needs_the_source_tree = pytest.mark.skipif(not (SOURCES / "setup.py").exists(), reason="needs the source tree")


@dataclass(frozen=True)
class Kernel:
    """One kernel's machine code for one architecture; sizes in bytes."""

    name: str  # mangled
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int


def parse(report: str) -> list[Kernel]:
    """The kernels of `ptxas -v`, whatever else was printed between them."""
    kernels = []
    for text in re.split(r"^ptxas info\s*: Compiling entry function ", report, flags=re.MULTILINE)[1:]:
        entry = re.match(r"'(\w+)' for '(sm_\w+)'", text)
        used = re.search(r"Used (\d+) registers(?:.*? (\d+)(?:\+\d+)? bytes smem)?", text)
        # Once for the kernel and once for every function that was not inlined.
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert entry, f"not what ptxas used to print:\n{text}"
        assert used, f"not what ptxas used to print:\n{text}"
        assert frames, f"not what ptxas used to print:\n{text}"
        stack, stores, loads = (sum(map(int, column)) for column in zip(*frames, strict=True))
        kernels.append(Kernel(entry[1], entry[2], int(used[1]), int(used[2] or 0), stack, stores + loads))
    return kernels


def table(kernels: list[Kernel]) -> str:
    """The kernels, one a line, with their names as written in C++."""
    names = "\n".join(kernel.name for kernel in kernels)
    names = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True).stdout
    names = names.replace("(anonymous namespace)::", "").replace("void srtod::", "")
    short_names = [name.split("(")[0] for name in names.splitlines()]
    rows = sorted(zip(short_names, kernels, strict=True), key=lambda row: row[0])
    lines = [
        f"{kernel.architecture:>12} {kernel.registers:9} {kernel.shared:6} {kernel.stack:5} {kernel.spills:6}  {name}"
        for name, kernel in rows
    ]
    return "\n".join(["", "architecture registers shared stack spills  kernel", *lines])


def test_the_parser_finds_spills() -> None:
    assert parse(SAMPLE) == [
        Kernel("_ZN5srtod3sumIfEEvPKT_PS1_i", "sm_80", registers=24, shared=1024, stack=504, spills=1260),
        Kernel("_ZN5srtod5plainEPf", "sm_90", registers=8, shared=0, stack=0, spills=0),
    ]


def test_the_parser_refuses_what_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="not what ptxas used to print"):
        parse(SAMPLE.replace("bytes spill stores", "bytes of spilling"))


@dataclass(frozen=True)
class Build:
    """What a build of all libraries printed, and the folder they are in."""

    printed: str
    folder: Path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build of `pip install` with its own flags, on a machine without a GPU; only ptxas is told to report."""
    folder = tmp_path_factory.mktemp("build")
    ours = ("SRTOD_", "PYTHON", "NVCC_", "TORCH_CUDA_ARCH_LIST")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "CUDA_VISIBLE_DEVICES": "",
        "MAX_JOBS": str(os.cpu_count()),
        "NVCC_APPEND_FLAGS": "-Xptxas=-v",  # a variable that nvcc itself reads
        "NVCC_THREADS": "1",  # reports of two architectures at once would mix
        "SRTOD_CUDA": "1",
    }
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", f"--build-temp={folder}/temporary", f"--build-lib={folder}"],
        cwd=SOURCES,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if impossible := re.search(r"\[srtod\] SRTOD_CUDA=1, but (.*)", done.stdout):
        pytest.skip(f"CUDA kernels cannot be compiled here: {impossible[1]}")
    assert done.returncode == 0, done.stdout
    return Build(done.stdout, folder / "srtod")


@pytest.mark.slow
@needs_the_source_tree
def test_no_kernel_spills_or_has_a_stack(build: Build) -> None:
    kernels = parse(build.printed)
    print(table(kernels))
    names = {
        architecture: {kernel.name for kernel in kernels if kernel.architecture == architecture}
        for architecture in {kernel.architecture for kernel in kernels}
    }
    assert {"sm_80", "sm_90"} <= set(names) <= {"sm_80", "sm_90", "sm_100", "sm_120"}  # an old nvcc knows the first two
    assert all(of_one == names["sm_80"] for of_one in names.values())
    slow = [kernel for kernel in kernels if kernel.stack or kernel.spills]
    assert not slow, table(slow)


@pytest.mark.slow
@needs_the_source_tree
def test_newer_gpus_are_served_by_ptx(build: Build) -> None:
    commands = [line for line in build.printed.splitlines() if "/nvcc " in line]
    assert len(commands) == len(list((SOURCES / "csrc/cuda").glob("*.cu")))
    ptx = [re.findall(r"-gencode=arch=compute_(\d+),code=compute_\1(?!\d)", command) for command in commands]
    assert ptx[0] in (["90"], ["120"])
    assert all(of_command == ptx[0] for of_command in ptx)


@pytest.mark.slow
@needs_the_source_tree
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_needs_torch_but_no_particular_one(build: Build) -> None:
    (library,) = build.folder.glob("_cuda*.so")
    header = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout.splitlines()
    needed = " ".join(line for line in header if "(NEEDED)" in line)
    search_path = " ".join(line for line in header if "PATH)" in line)
    assert "libtorch_cuda.so" in needed
    assert "libcudart.so" in needed
    # Both are in the process already, from the torch that runs; a path from the build could bring in others.
    assert "torch" not in search_path
    assert "cuda" not in search_path


@pytest.mark.slow
@needs_the_source_tree
def test_every_op_but_conv3x3_has_a_cuda_kernel(build: Build) -> None:
    libraries = [str(next(build.folder.glob(f"{name}*.so"))) for name in ("_cpu", "_cuda")]
    code = f"""
import torch
for library in {libraries}:
    torch.ops.load_library(library)
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("srtod::")]
print(len(ops), *[name for name in ops if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=build.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *without = done.stdout.split()
    assert int(count) > 0
    assert without == ["srtod::conv3x3"]  # on GPUs, cuDNN convolves


ERRORS = r"""
#include <cuda_runtime.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

static cudaError_t last = cudaSuccess;  // stands in for CUDA's, which without a driver reports that for ever
static cudaError_t take_last() { return std::exchange(last, cudaSuccess); }
#define cudaGetLastError take_last
#include "cuda/launch.cuh"

template <class F>
void expect(const char* sentence, const F& f) {
  last = cudaErrorInvalidValue;
  try {
    f();
    std::printf("no error: %s\n", sentence);
  } catch (const std::exception& error) {
    if (std::string(error.what()).find(sentence) == std::string::npos) std::printf("%s\n", error.what());
  }
  if (last != cudaSuccess) std::printf("left behind after: %s\n", sentence);
}

__global__ void kernel(int) {}

int main() {
  expect("were not compiled for this GPU", [] { srtod::check_cuda(cudaErrorNoKernelImageForDevice); });
  expect("driver is older than the CUDA toolkit", [] { srtod::check_cuda(cudaErrorUnsupportedPtxVersion); });
  expect("", [] { srtod::check_cuda(cudaErrorInvalidValue); });
  expect("", [] { srtod::launch_dependent(kernel, dim3(0), nullptr, 1); });  // no launch has no blocks
  srtod::check_cuda(cudaSuccess);
  std::printf("done\n");
}
"""


@pytest.mark.slow
@needs_the_source_tree
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_an_error_of_cuda_is_raised_once(tmp_path: Path) -> None:
    """With its sentence; and not by PyTorch's next launch as well, which asks CUDA for the last error."""
    torch_folder = Path(torch.__file__).parent
    if not (torch_folder / "lib/libtorch_cuda.so").exists():
        pytest.skip("needs torch with CUDA")
    source, program = tmp_path / "errors.cu", tmp_path / "errors"
    source.write_text(ERRORS)
    target = re.search(r'^TORCH_TARGET = "(\w+)"', (SOURCES / "setup.py").read_text(), re.MULTILINE)
    assert target
    runtime = next(Path(library).parent for library in _cuda_runtimes())
    command = ["nvcc", "-std=c++17", "-cudart=shared", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target[1]}"]
    command += [f"-I{SOURCES}/csrc", *(f"-isystem={path}" for path in cpp_extension.include_paths())]
    command += [source, "-o", program, f"-L{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
    command += [f"-Xlinker=-rpath={torch_folder}/lib", "-Xlinker=--allow-shlib-undefined", "-Xlinker=--no-as-needed"]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": f"{runtime}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stdout + done.stderr


def _cuda_runtimes() -> list[str]:
    """The CUDA runtime that torch has in this process."""
    return re.findall(r"(/\S+/libcudart\.so\S*)", Path("/proc/self/maps").read_text())
