"""The process of one run: `python -m srtod.studies.worker FOLDER THREADS`, with the plan as JSON on its input."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from srtod._support.cli import run
from srtod._support.errors import first_line
from srtod._support.folders import remove_leftovers
from srtod._support.locks import locked
from srtod.engine import TrainConfig, train
from srtod.engine.callbacks.checkpoints import BEST, LAST, best_detections
from srtod.engine.logs import TABLE, read_table
from srtod.engine.report import SUMMARY
from srtod.engine.run import read_run
from srtod.models.checkpoint import METRICS, read_checkpoint, write_checkpoint

from .controls import ControlledModule
from .folder import RunFolder, portable

__all__ = ["TAKEN", "work"]

TAKEN = 75
"""Exit status if another process trains the run."""

FILTER = ("filter_share", "filter_precision", "filter_recall", "threshold_x255")
"""Columns of the log of which the last value counts."""


def work(folder: RunFolder, plan: Mapping[str, Any], threads: int) -> int:
    """Trains a run, from its last checkpoint if it has one, and writes what came of it; returns the exit status.

    Args:
        folder: the run's folder, made if it is not there.
        plan: what `plan.json` holds.
        threads: threads of the CPU.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.lock) as free:
        if not free:
            return TAKEN
        if folder.state_on_disk == "done":
            return 0
        remove_leftovers(folder.path)
        commits = (folder.read("plan") or {}).get("commits", [])
        if plan["commit"] not in commits:
            commits = [*commits, plan["commit"]]
        folder.write("plan", {**plan, "options": portable(plan["options"]), "commits": commits})
        folder.forget("run")
        about = {name: plan[name] for name in ("study", "dataset", "variant", "seed", "control", "version")}
        about["commit"] = " ".join(commit or "" for commit in commits)
        try:
            _train(folder, plan, threads)
            folder.write("run", {"status": "done", **about, **_result(folder)})
        except Exception as error:
            traceback.print_exc()
            folder.write("run", {"status": "failed", **about, "error": first_line(error)})
            return 1
        _slim(folder.training)
    return 0


def _train(folder: RunFolder, plan: Mapping[str, Any], threads: int) -> None:
    """Trains the run, or the rest of it; one that has its report has finished."""
    training = folder.training
    if (training / SUMMARY).is_file():
        return
    spent = folder.read("spent") or {"seconds": 0.0, "since": 0.0}
    if (training / LAST).is_file():
        # What came after the last checkpoint is done again, and does not count.
        seconds = spent["seconds"] + max(0.0, (training / LAST).stat().st_mtime - spent["since"])
        config = read_run(training)
        config = TrainConfig.from_dict(config.as_dict() | {"threads": threads})
    else:
        seconds = 0.0
        shutil.rmtree(training, ignore_errors=True)
        config = TrainConfig.from_dict(_tuples(plan["options"]) | {"threads": threads, "output": str(training)})
    start = time.time()
    folder.write("spent", {"seconds": seconds, "since": start})
    control = plan["control"]
    train(config, None if control is None else partial(ControlledModule, control))
    folder.write("spent", {"seconds": seconds + time.time() - start, "since": time.time()})


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _result(folder: RunFolder) -> dict[str, Any]:
    """What a finished run measured, with all that the comparison asks of it. The metrics are of the last checkpoint."""
    checkpoint = read_checkpoint(folder.training / LAST)
    summary = json.loads((folder.training / SUMMARY).read_text(encoding="utf-8"))
    config = read_run(folder.training)
    weights = config.model.weights
    if weights is not None and Path(weights).is_file():
        weights = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    table = read_table(folder.training / TABLE)
    log = {name: [value for _, value in points] for name, points in table.items()}
    return {
        "options": portable(config.as_dict()),
        "data": checkpoint["callbacks"]["Checkpoints"]["data"],
        "weights": weights,
        "device": summary["device"],
        "metrics": checkpoint[METRICS],
        **{name: log[name][-1] if name in log else None for name in FILTER},
        "psnr": _psnr(log.get("psnr", [])),
        "seconds": (folder.read("spent") or {"seconds": math.nan})["seconds"],
    }


def _psnr(values: list[float]) -> float | None:
    """The PSNR in dB of the last tenth of the training, from the mean of its squared errors; of training images."""
    last = values[-max(1, len(values) // 10) :]
    return -10 * math.log10(sum(10 ** (-value / 10) for value in last) / len(last)) if last else None


def _slim(training: Path) -> None:
    """Leaves `best.ckpt`, which is the last one too, without the optimiser's state: many runs would fill the disk."""
    best = training / BEST
    content = read_checkpoint(best)
    best_detections(best, content["global_step"]).unlink(missing_ok=True)
    write_checkpoint({name: value for name, value in content.items() if name != "optimizer_states"}, best)
    (training / LAST).unlink(missing_ok=True)


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone, even by SIGKILL; what it has done is in the last checkpoint."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    folder, threads = sys.argv[1:]
    raise SystemExit(work(RunFolder(Path(folder)), json.load(sys.stdin), int(threads)))


if __name__ == "__main__":
    run(main)
