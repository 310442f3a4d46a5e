"""scripts/gpu_check.sh, rehearsed without a GPU: every stage starts, reports as it goes and ends in time.

The stand-in of this folder makes Python take the CPU for a GPU, and a script stands in for compute-sanitizer. So the
tests and benchmarks are the real ones; what needs streams or graphs fails, as it may on a GPU.
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

SOURCES = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).parent / "gpu_stand_in"
STAGES = ["build", "cuda", "values", "quick", "models"]
STAGES += ["memcheck", "synccheck", "initcheck", "racecheck", "benchmarks", "detectors"]
SECONDS = 45  # of which a busy machine takes a third to import torch

pytestmark = pytest.mark.skipif(not (SOURCES / "scripts").exists(), reason="needs the source tree")

# memcheck finds nothing, synccheck hangs, racecheck finds a race.
SANITIZER = r"""#!/bin/bash
tool=$2
shift 8
case $tool in
  synccheck) trap '' INT; while :; do sleep 1; done ;;
  racecheck) echo "========= Error: Race reported between Write access and Read access"; exit 9 ;;
esac
exec "$@"
"""


@dataclass
class Rehearsal:
    """A run of the script: its exit status, what it printed, and its output folder."""

    status: int
    printed: str
    out: Path

    def summary(self, stage: str) -> str:
        """The lines of a stage in the summary."""
        lines = self.printed.partition("=== summary\n")[2].splitlines()
        first = next(k for k, line in enumerate(lines) if line.startswith(f"{stage}: "))
        rest = lines[first + 1 :]
        more = next((k for k, line in enumerate(rest) if not line.startswith("    ")), len(rest))
        return "\n".join([lines[first], *rest[:more]])


def rehearse(folder: Path, *stages: str, seconds: int = SECONDS, **variables: str) -> Rehearsal:
    """Runs the script on a copy of the tree."""
    tree, tools = folder / "tree", folder / "tools"
    if not tree.exists():
        for name in ("srtod", "tests", "benchmarks", "scripts", "csrc", "build_backend"):
            shutil.copytree(SOURCES / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_cuda*.so"))
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(SOURCES / name, tree)
        tools.mkdir()
        for name, text in {
            "compute-sanitizer": SANITIZER,
            "nvcc": "#!/bin/bash\necho release 13.0\n",
            "failing-g++": "#!/bin/bash\nexit 1\n",
        }.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SRTOD_", "PYTEST_"))} | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(STAND_IN),
        "STAGE_SECONDS": str(seconds),
        "SRTOD_COMMIT": "rehearsal",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run(
        ["bash", tree / "scripts/gpu_check.sh", folder / "out", *stages],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Rehearsal(done.returncode, done.stdout, folder / "out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


def assert_started_and_ended(run: Rehearsal, *stages: str) -> None:
    print(run.printed)
    assert run.status == 1
    assert re.findall(r"^=== (\w+), see ", run.printed, re.MULTILINE) == list(stages)
    for stage in stages:
        seconds = re.search(r" in (\d+) s\b", run.summary(stage))
        assert seconds or "NOT RUN" in run.summary(stage), run.summary(stage)
        assert seconds is None or int(seconds[1]) <= SECONDS + 40, run.summary(stage)


def test_the_first_things_come_first(tmp_path: Path) -> None:
    usage = subprocess.run(
        ["bash", SOURCES / "scripts/gpu_check.sh", tmp_path, "no_stage"], capture_output=True, text=True, check=False
    )
    assert usage.returncode == 2
    assert usage.stderr.endswith(f"a stage is one of: {' '.join(STAGES)}\n")


@pytest.mark.slow
def test_a_stage_that_fails_or_cannot_run_or_hangs_costs_no_other(folder: Path) -> None:
    stages = ("build", "cuda", "models", "memcheck", "synccheck", "initcheck", "racecheck")
    compiler = str(folder / "tools/failing-g++")
    run = rehearse(folder, *stages, CXX=compiler, STAND_IN_HIDES="pycocotools")
    assert_started_and_ended(run, *stages)
    assert "FAILED with status" in run.summary("build")
    assert "[srtod] The compiled ops could not be built" in run.summary("build")
    assert "FAILED tests/ops/test_cuda.py::test_runs_on_the_current_stream" in run.summary("cuda")
    assert run.summary("models").startswith("models: NOT RUN: ")
    assert "lacks pycocotools: pip install pycocotools" in run.summary("models")
    assert run.summary("memcheck").startswith("memcheck: passed in ")
    assert "every op ran in" in run.summary("memcheck")
    assert f"stopped after STAGE_SECONDS={SECONDS}" in run.summary("synccheck")
    assert run.summary("initcheck").startswith("initcheck: passed in ")
    assert "Race reported" in run.summary("racecheck")


@pytest.mark.slow
def test_what_has_more_to_do_than_time_says_what_is_left(folder: Path) -> None:
    stages = ("values", "quick", "benchmarks", "detectors")
    run = rehearse(folder, *stages, seconds=60)
    assert_started_and_ended(run, *stages)
    assert " passed" in run.summary("values")
    assert "seconds are over" in run.summary("quick") + run.summary("benchmarks")
    assert "| fused, us |" in (run.out / "table.md").read_text()


def test_a_failure_shows_before_the_run_is_over_and_in_the_summary(tmp_path: Path) -> None:
    """Of two tests the first fails, and the second never ends."""
    (tmp_path / "test_two.py").write_text(
        "import time\ndef test_one():\n    assert 1 + 1 == 3\ndef test_two():\n    time.sleep(1000)\n"
        "def test_three():\n    pass\n"
    )
    command = ["timeout", "--signal", "INT", "--kill-after", "20", "5", sys.executable, "-m", "pytest", "-q", "-p"]
    command += ["pytest_unattended", "--seconds", "3", "-p", "no:cacheprovider", "test_two.py"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES / "scripts")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 124
    assert "FAILED test_two.py::test_one after" in done.stdout.partition("KeyboardInterrupt")[0]
    assert "assert (1 + 1) == 3" in done.stdout
    assert "1 failed" in done.stdout


def test_tests_that_time_is_over_for_do_not_start(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "import time\ndef test_one():\n    time.sleep(1)\ndef test_two():\n    raise AssertionError\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_unattended", "--seconds", "0.5"]
    command += ["-p", "no:cacheprovider", "test_two.py"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES / "scripts")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "seconds are over, and 1 tests have not run" in done.stdout
    assert "1 passed" in done.stdout
