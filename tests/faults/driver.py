"""Runs command lines again and again, each time with a fault at another place where they write.

The standard input says in JSON what to run, by name, and the standard output what came of it. The process has
`faults.c` preloaded. It loads srtod once, and forks for each run.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import srtod.prediction
import srtod.studies.worker
from srtod._support.cli import run
from srtod.studies.folder import RunFolder

FAULTS = ctypes.CDLL(None)
FAULTS.faults_site.restype = ctypes.c_char_p
FAULTS.faults_calls.restype = ctypes.c_long
FAULTS.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]


def main() -> None:
    json.dump({name: attempts(task) for name, task in json.load(sys.stdin).items()}, sys.stdout)


def attempts(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a command line: first the one without a fault."""
    base = Path(task["base"])
    base.mkdir()
    sites = base / "sites.json"
    results = [attempt(task, base / "whole", -1, sites)]
    for number, (call, site) in enumerate(chosen(json.loads(sites.read_text()), task)):
        results.append({**attempt(task, base / str(number), call), "site": site})
    return results


def chosen(sites: list[str], task: dict[str, Any]) -> list[tuple[int, str]]:
    """The first and the last of the calls of one kind at one file, by their numbers; at most so many, spread evenly."""
    at_most = task["at_most"]
    kinds: dict[str, list[int]] = {}
    for call, site in enumerate(sites):
        if task["lasting"] and site.startswith(("rename ", "fsync ")):  # they fail on no full disk, see `faults.c`
            continue
        kinds.setdefault(re.sub(r"[0-9a-f]{8}\.(part|before)|\d{6,}.*", "*", site), []).append(call)
    calls = sorted({call for kind in kinds.values() for call in (kind[0], kind[-1])})
    step = 1 if at_most is None else max(1, -(-len(calls) // at_most))
    return [(call, sites[call]) for call in calls[::step]]


def attempt(task: dict[str, Any], folder: Path, call: int, sites: Path | None = None) -> dict[str, Any]:
    """Runs the command line in a folder, with a fault at this call; -1: with none."""
    shutil.copytree(task["start"], folder)
    said = folder.with_suffix(".txt")
    child = os.fork()
    if child == 0:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        FAULTS.faults_arm(os.fsencode(folder), call, task["error"], task["lasting"])
        end(task["program"], [word.replace("HERE", str(folder)) for word in task["arguments"]], sites)
    _, status = os.waitpid(child, 0)
    return {"folder": str(folder), "status": os.waitstatus_to_exitcode(status), "said": said.read_text()}


def end(name: str, arguments: list[str], sites: Path | None) -> NoReturn:
    """Runs the command line in this process, and ends it with its status."""
    status = 0
    program = worker if name == "worker" else import_module(f"srtod.{name}").main
    try:
        run(lambda: program(arguments))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 2
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    if sites is not None:
        sites.write_text(json.dumps([FAULTS.faults_site(n).decode() for n in range(FAULTS.faults_calls())]))
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def worker(arguments: Sequence[str]) -> None:
    """The process of a run of a study."""
    folder, plan = arguments
    raise SystemExit(srtod.studies.worker.work(RunFolder(Path(folder)), json.loads(plan), 1))


if __name__ == "__main__":
    main()
