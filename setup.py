"""Builds the compiled parts of srtod; everything else about the package is in pyproject.toml.

    srtod._cpu         the schema and the CPU kernel of every op   csrc/*.cpp, csrc/cpu/*.cpp
    srtod._cuda        the CUDA kernels                            csrc/cuda/*.cu
    srtod._build_info  what was built, with what, and why          csrc/build_info.cpp (pybind11)

The first two use torch's stable ABI, so that one build loads under every torch from 2.11 on. `_cuda` is apart because
it needs libtorch_cuda, which a CPU-only torch lacks. The environment variables are listed in CONTRIBUTING.md.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

TORCH_TARGET = "0x020b000000000000"  # torch 2.11, the oldest that the libraries load under
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fopenmp-simd", "-fvisibility=hidden", "-Wall"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden,-Wall"]  # no fast-math: see CONTRIBUTING.md
# Where no GPU is visible, as far as nvcc knows them. Code for 8.0 runs on 8.6 and 8.9 too, as that for 10.0 and 12.0
# does on 10.3 and 12.1. PTX of the last is added for newer GPUs. PTX alone would not do for those of today: a driver
# translates only PTX that is no newer than itself.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
# What one core takes to compile a file, for the estimate that is printed: of C++, and of CUDA for one architecture.
CXX_SECONDS, CUDA_SECONDS = 5, 9
METADATA_COMMANDS = {"egg_info", "dist_info", "sdist"}
ROOT = Path(__file__).resolve().parent

sys.path.append(str(ROOT / "build_backend"))  # is there already where the backend runs this file
from srtod_build_common import require_cxx_compiler, say  # noqa: E402


def flag(name: str) -> bool | None:
    """The environment variable `name` as yes (1), no (0) or undecided (unset)."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"[srtod] {name} must be 0 or 1, got {value!r}")
    return value == "1" if value else None


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.name != "build_info.cpp")


def cuda_home() -> Path | None:
    """A toolkit with nvcc and headers; the `nvcc` on the PATH may be a wrapper script that lives elsewhere."""
    candidates = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if not candidates and (nvcc := shutil.which("nvcc")):
        dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
        candidates = re.findall(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
    for home in map(Path, candidates or ["/usr/local/cuda"]):
        headers = [home / "include", *home.glob("targets/*/include")]
        if (home / "bin/nvcc").exists() and any((folder / "cuda_runtime.h").exists() for folder in headers):
            return home.resolve()
    return None


def nvcc_says(home: Path, option: str) -> str:
    return subprocess.run([home / "bin/nvcc", option], capture_output=True, text=True, check=True).stdout


def why_no_cuda(home: Path | None, torch_version: str, torch_cuda: str | None) -> str | None:
    """What speaks against building the CUDA library; None if nothing does."""
    if flag("SRTOD_CUDA") is False:
        return "SRTOD_CUDA=0"
    if not sources("csrc/cuda/*.cu"):
        return "this version has no CUDA sources"
    if torch_cuda is None:
        return f"torch {torch_version} has no CUDA"
    if home is None:
        return "no CUDA toolkit was found (nvcc on the PATH, or CUDA_HOME)"
    release = re.search(r"release (\d+\.\d+)", nvcc_says(home, "--version"))
    nvcc = release.group(1) if release else "of unknown version"
    if nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc {nvcc} in {home} does not match torch {torch_version}, which was built with CUDA {torch_cuda}"
    return None


def choose_architectures(
    requested: str,  # TORCH_CUDA_ARCH_LIST
    visible: set[tuple[int, int]],  # compute capabilities of the GPUs
    known: set[str],  # to nvcc, for example "80"
) -> tuple[list[str], list[str]]:
    """The architectures to build for, and those left out because the kernels need compute capability 8.0.

    The requested ones come first, then those of the visible GPUs, then the default ones.
    """
    by_request = requested not in ("", "native")
    if by_request:
        wanted = requested.replace(";", " ").split()
    else:
        wanted = [f"{major}.{minor}" for major, minor in sorted(visible)] or [*DEFAULT_ARCHITECTURES]
    too_old = [one for one in wanted if re.match(r"[1-7]\.", one)]
    chosen = [one for one in wanted if one not in too_old]
    if chosen and not by_request:
        by_default = [one for one in DEFAULT_ARCHITECTURES if one.replace(".", "") in known]
        chosen = [one for one in chosen if one.replace(".", "") in known] or by_default
        chosen[-1] += "+PTX"
    return chosen, too_old


def about_minutes(files: list[str], architectures: int) -> str:
    """Roughly how long the compilers take here."""
    seconds = sum(architectures * CUDA_SECONDS if file.endswith(".cu") else CXX_SECONDS for file in files)
    cores = min(len(os.sched_getaffinity(0)), int(os.environ.get("MAX_JOBS") or sys.maxsize))
    minutes = max(1, round(seconds / cores / 60))
    return f"about {minutes} {'minute' if minutes == 1 else 'minutes'}"


def compiled_parts() -> dict:
    """The arguments of `setup` that build the libraries."""
    require_cxx_compiler()
    # torch looks for ninja on the PATH; an environment that is not activated has it beside its python. Without ninja
    # the files are compiled one after another, and all of them after every change.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    home = cuda_home()
    if home:
        os.environ["CUDA_HOME"] = str(home)  # read by torch.utils.cpp_extension at import
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"[srtod] building the compiled ops needs torch, which cannot be imported ({error}): "
            "install torch first, or leave the ops out with SRTOD_BUILD=0"
        ) from error
    from torch.utils import cpp_extension

    no_cuda = why_no_cuda(home, torch.__version__, torch.version.cuda)
    architectures: list[str] = []
    too_old: list[str] = []
    if home and not no_cuda:
        visible = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        known = set(re.findall(r"sm_(\d+)", nvcc_says(home, "--list-gpu-code")))
        architectures, too_old = choose_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), visible, known)
        if not architectures:
            no_cuda = f"the CUDA kernels need a GPU of compute capability 8.0 or newer, not {' or '.join(too_old)}"
    if no_cuda and flag("SRTOD_CUDA"):
        raise SystemExit(f"[srtod] SRTOD_CUDA=1, but {no_cuda}")
    ways_out = "SRTOD_BUILD=0 in front of the command installs pure Python, which is slower."
    if not no_cuda:
        ways_out = "SRTOD_CUDA=0 in front of the command leaves out the CUDA kernels; " + ways_out

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                raise SystemExit(
                    f"[srtod] The compiled ops could not be built ({str(error).splitlines()[0].rstrip('.')}); what the "
                    "compiler said is above.\n"
                    "[srtod] Needed: a C++17 compiler (GCC 12 or newer, CXX=... names one) and Python's headers, for "
                    "example `apt install g++ python3-dev`.\n"
                    f"[srtod] The way out: {ways_out}"
                ) from error

    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET)]
    libraries = [
        cpp_extension.CppExtension(
            "srtod._cpu",
            sources("csrc/*.cpp") + sources("csrc/cpu/*.cpp"),
            depends=sources("csrc/*.h") + sources("csrc/cpu/*.h"),  # for builds without ninja, which finds them itself
            define_macros=macros,
            extra_compile_args={"cxx": CXX_FLAGS},
            py_limited_api=True,
        )
    ]
    built = {
        "version": runpy.run_path(str(ROOT / "srtod/_version.py"))["__version__"],
        "torch": str(torch.__version__),
        "cuda": "",
        "architectures": "",
        "decision": "CPU only",
        "reason": no_cuda or "",
    }
    if not no_cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(architectures)
        libraries.append(
            cpp_extension.CUDAExtension(
                "srtod._cuda",
                sources("csrc/cuda/*.cu"),
                depends=sources("csrc/*.h") + sources("csrc/cuda/*.cuh"),
                define_macros=[*macros, ("USE_CUDA", None)],  # shows the CUDA functions of torch's stable headers
                extra_compile_args={"nvcc": [*NVCC_FLAGS, "--threads", os.environ.get("NVCC_THREADS", "2")]},
                py_limited_api=True,
            )
        )
        built |= {
            "cuda": str(torch.version.cuda),
            "architectures": os.environ["TORCH_CUDA_ARCH_LIST"],
            "decision": "CPU and CUDA",
            "reason": f"nvcc in {home} matches torch {torch.__version__}"
            + (f"; {' and '.join(too_old)} left out, the kernels need 8.0 or newer" if too_old else ""),
        }
    of = f" ({built['architectures']})" if built["architectures"] else ""
    files = [source for library in libraries for source in library.sources]
    say(
        f"building for {built['decision']}{of}, against torch {built['torch']}: {built['reason']}\n"
        f"[srtod] compiling {len(files)} files takes {about_minutes(files, len(architectures))}"
    )
    info = Extension(
        "srtod._build_info",
        ["csrc/build_info.cpp"],
        define_macros=[(f"SRTOD_BUILT_{name.upper()}", json.dumps(value)) for name, value in built.items()],
        include_dirs=cpp_extension.include_paths(),  # torch ships pybind11's headers
        extra_compile_args=["-O2", "-g0", "-std=c++17", "-fvisibility=hidden"],
        language="c++",
    )
    return {"ext_modules": [*libraries, info], "cmdclass": {"build_ext": BuildExtension}}


if __name__ == "__main__":
    if METADATA_COMMANDS & set(sys.argv):
        setup()
    elif flag("SRTOD_BUILD") is False:
        say("SRTOD_BUILD=0: installing pure Python; the ops run as plain PyTorch, which works but is slower")
        setup()
    else:
        setup(**compiled_parts())
