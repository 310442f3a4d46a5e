"""Runs the processes of a study: so many at once, none twice, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from srtod._support.signals import interruptible

from .definition import Plan, Study
from .folder import RunFolder, StudyFolder, code_version, planned, portable
from .summary import write_summary
from .worker import TAKEN

__all__ = ["Outcome", "run_study", "shard"]

POLL = 0.5  # seconds
PATIENCE = 20  # seconds that a run has to end once it is told to


class Outcome(NamedTuple):
    """How many of the runs are done, and the folders of those that failed and those that another process trains."""

    done: int
    failed: list[RunFolder]
    elsewhere: list[RunFolder]


@dataclass
class _Running:
    plan: Plan
    folder: RunFolder
    process: subprocess.Popen[str]


def shard(plans: Sequence[Plan], number: int, count: int) -> list[Plan]:
    """Part `number` of `count` of the runs, from 1 on: every `count`-th.

    Raises:
        ValueError: if there is no such part.
    """
    if not 1 <= number <= count:
        raise ValueError(f"--shard I/N needs I from 1 to N, got {number}/{count}")
    return list(plans[number - 1 :: count])


def run_study(
    study: Study,
    folder: StudyFolder,
    plans: Sequence[Plan],
    *,
    jobs: int = 1,
    allow_commits: bool = False,
    command: Callable[[RunFolder, int], Sequence[str]] | None = None,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Trains all of the runs that are not done yet; rewrites the summary after each.

    Args:
        study: the study.
        folder: its folder.
        plans: the runs, in their order.
        jobs: processes at once; each has its share of the cores.
        allow_commits: whether runs of other commits may stand beside those of this one.
        command: the command that trains a run by so many threads; None: `srtod.studies.worker`.
        report: gets a line of progress whenever a run starts or ends.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed, or the process was told to end; what was done goes on next time.
        OSError: if the folder cannot be written to.
        ValueError: if the folder, or a run in it, is of something else.
    """
    folder.open(study)
    code = code_version()
    if not allow_commits and (code["commit"] or "").endswith("+changes"):
        raise ValueError(
            "the source has changes that no commit holds, so that nobody could repeat the runs; commit them, or pass "
            "--allow-commits, which summary.md will say"
        )
    for plan in plans:
        folder.run(plan).check_plan(planned(study, plan), allow_commits=allow_commits)
    write_summary(study, folder, allow_commits=allow_commits)  # refuses runs that cannot be compared, before hours pass
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    progress = _Progress(folder, plans, jobs)
    waiting, running = list(plans), list[_Running]()
    failed, elsewhere = list[RunFolder](), list[RunFolder]()
    with interruptible():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    plan = waiting.pop(0)
                    place = folder.run(plan)
                    state = place.state
                    if state == "running":
                        elsewhere.append(place)
                    elif state != "done":
                        make = command or _command
                        running.append(_Running(plan, place, _start(study, plan, place, make(place, threads), threads)))
                        report(
                            progress.line(
                                f"{'goes on' if state == 'stopped' else 'starts'} {plan.name}", running, failed
                            )
                        )
                time.sleep(POLL if running else 0)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    status = one.process.returncode
                    if status == TAKEN:
                        elsewhere.append(one.folder)
                        continue
                    if one.folder.state_on_disk != "done":
                        _record_failure(study, one, status)
                        failed.append(one.folder)
                    what = "failed" if one.folder in failed else "done"
                    report(progress.line(f"{what} {one.plan.name}", running, failed))
                    write_summary(study, folder, allow_commits=allow_commits)
        finally:
            _end([one.process for one in running])
    write_summary(study, folder, allow_commits=allow_commits)
    return Outcome(progress.done, failed, elsewhere)


def _command(folder: RunFolder, threads: int) -> list[str]:
    return [sys.executable, "-m", "srtod.studies.worker", str(folder.path), str(threads)]


def _start(study: Study, plan: Plan, folder: RunFolder, command: Sequence[str], threads: int) -> subprocess.Popen[str]:
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.log.open("a") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
        )
    assert process.stdin is not None
    try:
        json.dump(planned(study, plan), process.stdin)
        process.stdin.close()
    except BrokenPipeError:  # it has ended, and its status says how
        pass
    return process


def _record_failure(study: Study, run: _Running, status: int) -> None:
    """Writes what is known of a run that ended without a word, such as one that was killed for its memory."""
    if run.folder.state_on_disk == "failed":
        return
    why = f"killed by signal {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    plan = planned(study, run.plan)
    if run.folder.read("plan") is None:
        run.folder.write("plan", {**plan, "options": portable(plan["options"]), "commits": [plan["commit"]]})
    run.folder.write("run", {"status": "failed", **{k: v for k, v in plan.items() if k != "options"}, "error": why})


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Progress:
    """How far a study is, and about how long it still takes."""

    def __init__(self, folder: StudyFolder, plans: Sequence[Plan], jobs: int) -> None:
        self.folder = folder
        self.plans = plans
        self.jobs = jobs
        self.done = 0

    def line(self, event: str, running: Sequence[_Running], failed: Sequence[RunFolder]) -> str:
        """What happened, and the numbers now."""
        seconds: dict[str, list[float]] = {}
        left: list[str] = []
        now = {one.folder for one in running}
        for plan in self.plans:
            place = self.folder.run(plan)
            record = place.read("run")
            if record is not None and record["status"] == "done" and place not in now:
                seconds.setdefault(plan.dataset, []).append(record["seconds"])
            elif place not in failed:
                left.append(plan.dataset)
        self.done = sum(map(len, seconds.values()))
        numbers = f"{self.done} of {len(self.plans)} runs done, {len(running)} running, {len(failed)} failed"
        return f"{event}: {numbers}, {_time_left(seconds, left, self.jobs)}"


def _time_left(seconds: dict[str, list[float]], left: Sequence[str], jobs: int) -> str:
    """The time that the runs on these data sets take, by what others took."""
    every = [value for values in seconds.values() for value in values]
    if not every:
        return "time left not known yet"
    overall = sum(every) / len(every)
    total = sum(sum(own) / len(own) if (own := seconds.get(dataset)) else overall for dataset in left) / jobs
    hours, minutes = divmod(round(total / 60), 60)
    return f"about {hours} h {minutes} min left"
