"""Fixtures of the studies' tests: a small study file, and a stand-in for the process that trains a run."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from srtod.studies import runs
from srtod.studies.definition import Study, read_study
from srtod.studies.folder import RunFolder

STUDY = """
name: small
seeds: [0, 1]
options: {epochs: 2, accelerator: cpu, channels: 16, enhancement: dgfe, swarm_images: 4, swarm_size: 128}
datasets:
  easy: {}
  hard: {swarm_kind: hard}
variants:
  plain: {self_reconstruction: false}
  sr_tod: {threshold: auto}
  oracle: {control: oracle}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a study file."""

    def write(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def study(write: Callable[[str], Path]) -> Study:
    return read_study(write(STUDY))


@pytest.fixture(autouse=True)
def _clean_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run on whatever the checkout holds."""
    monkeypatch.setattr("srtod.studies.folder.source_commit", lambda *paths: "c0ffee")
    monkeypatch.setattr(runs, "POLL", 0.02)


STAND_IN = """
import fcntl, json, os, signal, sys, time
from pathlib import Path

place, script = Path(sys.argv[1]), sys.argv[2]
plan = json.load(sys.stdin)

def write(name, content):
    part = place / (name + ".part")
    part.write_text(json.dumps(content))
    part.replace(place / (name + ".json"))

lock = (place / "lock").open("a")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
write("plan", {**plan, "commits": [plan["commit"]]})
(place / "run.json").unlink(missing_ok=True)
with (place / "starts").open("a") as file:
    file.write("x")
exec(script)
value = {"plain": 0.3, "sr_tod": 0.35}.get(plan["variant"], 0.4) + 0.01 * plan["seed"]
about = ("study", "dataset", "variant", "seed", "control", "version", "commit", "options")
write("run", {
    "status": "done", **{name: plan[name] for name in about}, "data": {"training": [4, "a"], "test": [1, "b"]},
    "weights": None, "device": "a CPU", "filter_share": 0.1, "filter_precision": None, "filter_recall": None,
    "threshold_x255": None, "psnr": None, "seconds": 60.0,
    "metrics": dict.fromkeys(("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm"), value),
})
"""
"""Stands in for `srtod.studies.worker`: does all but the training, and runs a script in place of that."""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Callable[[RunFolder, int], Sequence[str]]]:
    """Makes the command of a stand-in, which runs this script."""
    file = tmp_path / "stand_in.py"
    file.write_text(STAND_IN)

    def make(script: str = "") -> Callable[[RunFolder, int], Sequence[str]]:
        return lambda folder, threads: [sys.executable, str(file), str(folder.path), script]

    return make


def change_record(folder: RunFolder, **fields: object) -> None:
    """Changes what the record of a run says."""
    path = folder.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
