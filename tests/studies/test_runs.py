"""The runner: what is run, skipped, gone on with and refused, and the tables that it leaves."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from srtod._support.locks import locked
from srtod.studies.definition import Study, read_study
from srtod.studies.folder import RunFolder, StudyFolder
from srtod.studies.runs import run_study
from srtod.studies.summary import write_summary

from .conftest import STUDY, change_record

StandIn = Callable[..., Callable[[RunFolder, int], Sequence[str]]]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "out")


def starts(place: RunFolder) -> int:
    path = place.path / "starts"
    return len(path.read_text()) if path.is_file() else 0


def table(folder: StudyFolder) -> list[dict[str, str]]:
    with (folder.path / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_runs_are_done_and_then_skipped(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    said: list[str] = []
    plans = study.plans()
    outcome = run_study(study, folder, plans, jobs=3, command=stand_in(), report=said.append)
    assert (outcome.done, outcome.failed, outcome.elsewhere) == (12, [], [])
    assert "12 of 12 runs done, 0 running, 0 failed, about 0 h 0 min left" in said[-1]
    assert any(re.search(r"6 of 12 runs done, \d running, 0 failed, about 0 h 2 min left", line) for line in said)
    run_study(study, folder, plans, command=stand_in(), report=said.append)
    assert [starts(folder.run(plan)) for plan in plans] == [1] * 12
    rows = table(folder)
    assert [row["status"] for row in rows] == ["done"] * 12
    first = rows[0]
    assert (first["variant"], first["AP"], first["seconds"], first["commit"]) == ("plain", "30.0", "60.0", "c0ffee")
    assert first["command"].startswith("srtod study ")
    assert "--only-variants plain --only-datasets easy --seeds 0 --output" in first["command"]
    text = (folder.path / "summary.md").read_text()
    assert "| sr_tod | plain | 2 | +5.0 [+5.0, +5.0] |" in text
    assert "| oracle (control) | 2 | 40.5 ± 0.7 |" in text
    assert (folder.path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_differences_over_all_sets_are_means_seed_by_seed(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    run_study(study, folder, study.plans(["plain", "sr_tod"]), jobs=3, command=stand_in(), report=lambda line: None)
    for plan, value in zip(study.plans(["sr_tod"], ["easy"]), (0.45, 0.48), strict=True):
        change_record(
            folder.run(plan), metrics=dict.fromkeys(("AP", "AP50", "AP75", "APvt", "APt", "APs"), value) | {"APm": -1}
        )
    write_summary(study, folder)
    all_sets = (folder.path / "summary.md").read_text().partition("## All sets")[2]
    # +15 and +17 on the one, +5 and +5 on the other; with two values t is 12.7.
    assert "| sr_tod | plain | 2 | +10.5 [+4.1, +16.9] |" in all_sets
    assert "[+4.1, +16.9] | - |\n" in all_sets  # one set has no APm
    [sr_tod] = (folder.run(plan) for plan in study.plans(["sr_tod"], ["hard"], [0]))
    change_record(sr_tod, status="failed", error="gone")
    write_summary(study, folder)
    assert "## All sets" in (folder.path / "summary.md").read_text()
    [sr_tod] = (folder.run(plan) for plan in study.plans(["sr_tod"], ["hard"], [1]))
    change_record(sr_tod, status="failed", error="gone")
    write_summary(study, folder)
    assert "## All sets" not in (folder.path / "summary.md").read_text()


def test_more_seeds_come_into_the_same_folder(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    for seeds in ([0], [0, 5]):
        run_study(study, folder, study.plans(["plain"], ["easy"], seeds), command=stand_in(), report=lambda line: None)
    assert [row["seed"] for row in table(folder)] == ["0", "5"]


def test_a_failed_run_is_listed_and_the_others_go_on(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    script = (
        "if plan['variant'] == 'plain' and plan['seed'] == 0:\n"
        "    write('run', {'status': 'failed', 'error': 'the loss is no number'}); raise SystemExit(1)\n"
        "if plan['variant'] == 'sr_tod' and plan['seed'] == 0:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    plans = study.plans(datasets=["easy"])
    outcome = run_study(study, folder, plans, jobs=2, command=stand_in(script), report=lambda line: None)
    assert outcome.done == 4
    assert {place.path.parent.name for place in outcome.failed} == {"plain", "sr_tod"}
    errors = {row["variant"]: row["error"] for row in table(folder) if row["status"] == "failed"}
    assert errors == {"plain": "the loss is no number", "sr_tod": "killed by signal SIGKILL"}
    text = (folder.path / "summary.md").read_text()
    assert f"easy/plain/seed_0 failed: the loss is no number; see {outcome.failed[0].path.parent.parent}" in text
    again = run_study(study, folder, plans, command=stand_in(), report=lambda line: None)  # it is tried anew
    assert (again.done, again.failed) == (6, [])


def test_two_runners_do_not_run_the_same_run(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    plans = study.plans(["plain"], ["easy"])
    first, second = (folder.run(plan) for plan in plans)
    folder.open(study)
    first.path.mkdir(parents=True)
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'a')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\nprint('locked', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(first.lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        outcome = run_study(study, folder, plans, command=stand_in(), report=lambda line: None)
        assert outcome.elsewhere == [first]
        assert (starts(first), starts(second)) == (0, 1)
        other.kill()
    outcome = run_study(
        study, folder, plans, command=stand_in(), report=lambda line: None
    )  # of the dead one it is free
    assert (outcome.elsewhere, outcome.done) == ([], 2)


def test_ctrl_c_ends_the_runs_and_leaves_them_to_go_on(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    [plan] = study.plans(["plain"], ["easy"], [0])

    def interrupt(line: str) -> None:
        deadline = time.monotonic() + 30
        while folder.run(plan).state != "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        run_study(study, folder, [plan], command=stand_in("time.sleep(60)"), report=interrupt)
    assert folder.run(plan).state == "stopped"
    said: list[str] = []
    outcome = run_study(study, folder, [plan], command=stand_in(), report=said.append)
    assert said[0].startswith("goes on easy/plain/seed_0")
    assert outcome.done == 1


def test_the_folder_of_something_else_is_refused(study: Study, folder: StudyFolder, write: Any) -> None:
    folder.open(study)
    other = read_study(write(STUDY.replace("name: small", "name: large")))
    with pytest.raises(ValueError, match=r"is the folder of another study .small., and this one is large; choose"):
        folder.open(other)
    place = folder.path.parent / "full"
    place.mkdir()
    (place / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not the folder of a study; choose another --output"):
        StudyFolder(place).open(study)
    assert [path.name for path in place.iterdir()] == ["thesis.tex"]


def test_other_options_and_other_code_are_refused(
    study: Study, folder: StudyFolder, stand_in: StandIn, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(study: Study, **options: Any) -> None:
        plans = study.plans(["plain"], ["easy"], [0])
        run_study(study, folder, plans, command=stand_in(), report=lambda line: None, **options)

    run(study)
    longer = read_study(write(STUDY.replace("epochs: 2", "epochs: 3")))
    with pytest.raises(ValueError, match=r"was made with epochs 2, and the study says 3; put it back"):
        run(longer)
    with pytest.raises(ValueError, match=r"was trained with epochs 2, and .* says 3"):
        write_summary(longer, folder)
    monkeypatch.setattr("srtod.studies.folder.source_commit", lambda *paths: "decaf")
    with pytest.raises(ValueError, match=r"was made with commit c0ffee, and now it is decaf; .*--allow-commits"):
        run(study)
    run(study, allow_commits=True)
    monkeypatch.setattr("srtod.studies.folder.source_commit", lambda *paths: "decaf+changes")
    with pytest.raises(ValueError, match="the source has changes that no commit holds"):
        run(study)


def test_runs_from_before_an_option_go_on(study: Study, folder: StudyFolder, stand_in: StandIn) -> None:
    def run(variant: str) -> None:
        plans = study.plans([variant], ["easy"], [0])
        run_study(study, folder, plans, command=stand_in(), report=lambda line: None)

    run("plain")
    place = folder.run(study.plans(["plain"], ["easy"], [0])[0])
    for name in ("plan", "run"):
        content = json.loads((place.path / f"{name}.json").read_text())
        del content["options"]["representation_size"], content["options"]["intensity_range"]
        place.write(name, content)
    run("sr_tod")
    assert [row["status"] for row in table(folder)] == ["done", "done"]


def test_what_cannot_be_compared_is_refused_before_a_run_starts(
    study: Study, folder: StudyFolder, stand_in: StandIn
) -> None:
    plans = study.plans(["plain", "sr_tod"], ["easy"], [0])
    run_study(study, folder, plans, jobs=2, command=stand_in(), report=lambda line: None)
    change_record(folder.run(plans[1]), weights="abc")
    lines: list[str] = []
    with pytest.raises(ValueError, match="cannot be compared"):
        run_study(study, folder, study.plans(["plain"], ["easy"], [0, 1]), command=stand_in(), report=lines.append)
    assert not lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"anchor_scale": 4.0}}, r"anchor_scale is 4.0 in the first and 2.0 in the second"),
        ({"options": {"lr": 0.5}}, r"lr is 0.5 in the first and 0.02 in the second"),
        ({"options": {"detections_per_image": 9}}, "detections_per_image is 9 in the first and 100 in the second"),
        (
            {"data": {"training": [4, "z"], "test": [1, "b"]}},
            r"the training set is \[4, 'z'\] in the first and \[4, 'a'\]",
        ),
        ({"data": {"training": [4, "a"], "test": [2, "b"]}}, r"the test set is \[2, 'b'\]"),
        ({"weights": "abc"}, "weights is 'abc' in the first and None in the second"),
        ({"version": "9"}, "version is '9' in the first"),
        ({"commit": "decaf"}, "commit is 'decaf' in the first and 'c0ffee' in the second"),
    ],
)
def test_runs_that_differ_in_more_than_the_variant_are_not_compared(
    study: Study, folder: StudyFolder, stand_in: StandIn, change: dict[str, Any], message: str
) -> None:
    plans = study.plans(["plain", "sr_tod"], ["easy"], [0])
    run_study(study, folder, plans, jobs=2, command=stand_in(), report=lambda line: None)
    place = folder.run(plans[1])
    if "options" in change:
        record = place.read("run")
        assert record is not None
        change = {"options": record["options"] | change["options"]}
    change_record(place, **change)
    with pytest.raises(ValueError, match=f"easy/sr_tod/seed_0 and easy/plain/seed_0 cannot be compared: {message}"):
        write_summary(study, folder)
    assert len(table(folder)) == 2  # which lists and does not compare
    if "commit" in change:
        write_summary(study, folder, allow_commits=True)
        assert "**The runs are of different code.**" in (folder.path / "summary.md").read_text()


def test_a_full_disk_leaves_the_tables_of_before(
    study: Study, folder: StudyFolder, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = study.plans(["plain"], ["easy"], [0])
    run_study(study, folder, plans, command=stand_in(), report=lambda line: None)
    before = {name: (folder.path / name).read_bytes() for name in ("runs.csv", "summary.md", "summary.png")}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_summary(study, folder)
    assert error.value.filename == str(folder.path / "runs.csv")
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    assert not list(folder.path.glob("*.part"))


def test_a_lock_is_free_once_its_block_ends(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    with locked(place.lock) as free:
        assert free
    assert not place.is_locked
    assert place.state == "new"
