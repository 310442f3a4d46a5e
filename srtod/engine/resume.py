"""Going on with a run: its folder, its configuration and its last checkpoint, each checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from srtod.checkpoint import DESCRIPTION, read_checkpoint

from .checkpointing import LAST
from .config import TrainConfig
from .presets import read_config

__all__ = ["CONFIG", "Resumed", "check_same_detector", "open_run", "record_job", "requeued_run"]

CONFIG = "config.yaml"
JOB = "slurm_job_id"


class Resumed(NamedTuple):
    """A run to go on with.

    Attributes:
        folder: its folder.
        config: its configuration, with `resume` set.
        checkpoint: the file to go on from.
        description: what the file says of its detector, see `srtod.checkpoint.describe`.
        step: optimizer steps that were done.
        finished: whether it has trained its last epoch, or stopped early.
    """

    folder: Path
    config: TrainConfig
    checkpoint: Path
    description: dict[str, Any]
    step: int
    finished: bool


def open_run(config: TrainConfig) -> Resumed:
    """Opens the run that `config.resume` names.

    Args:
        config: the run's folder; every other option must have its default, or the value that the run has.

    Raises:
        FileNotFoundError: if there is no such folder, or no configuration or checkpoint in it.
        ValueError: if an option differs from the run's, or a file is damaged.
    """
    folder = Path(str(config.resume))
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}; pass the one to go on with")
    saved = replace(TrainConfig.from_dict(read_config(folder / CONFIG)), resume=config.resume)
    _check_options(config, saved, folder)
    checkpoint = folder / "checkpoints" / LAST
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{folder} has no {LAST} to go on from; start the run again, with save_every if its epochs are long"
        )
    try:
        content = read_checkpoint(checkpoint)
    except ValueError as error:
        others = [str(path) for path in (folder / "checkpoints").glob("*.ckpt") if path != checkpoint]
        kept = f"; {' and '.join(others)} can still be evaluated" if others else ""
        raise ValueError(f"{error}: this run cannot go on, start it again{kept}") from error
    finished = content["callbacks"]["Checkpoints"]["finished"]
    return Resumed(folder, saved, checkpoint, content[DESCRIPTION], content["global_step"], finished)


def check_same_detector(
    resumed: Resumed, model: dict[str, Any], class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Raises a ValueError if a checkpoint's detector is not the one that the configuration and the data ask for.

    Args:
        resumed: the run.
        model: arguments of `build_detector`.
        class_names: see `srtod.checkpoint.TrainedDetector`.
        category_ids: see `srtod.checkpoint.TrainedDetector`.
    """
    description = resumed.description
    wanted = {**model, "weights": None, "class_names": list(class_names), "category_ids": list(category_ids)}
    found = {**description["model"], **{key: description[key] for key in ("class_names", "category_ids")}}
    for name in {"name": None} | wanted | found:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{resumed.checkpoint} holds another detector: its {name} is {found.get(name)!r}, but {CONFIG} and the "
                f"data say {wanted.get(name)!r}; put back the {CONFIG}, the data and the checkpoint of one run"
            )


def record_job(folder: Path) -> None:
    """Writes into a new run's folder which SLURM job it belongs to, if any, for `requeued_run`."""
    if job := os.environ.get("SLURM_JOB_ID"):
        (folder / JOB).write_text(job)


def requeued_run(path: Path) -> Path | None:
    """The folder of the run that SLURM's job was in when it was stopped and queued again, if there is one.

    SLURM starts the job's command once more as it was; the run then goes on in its folder instead of a new one, from
    its `last.ckpt`: what Lightning saves when SLURM ends a job stands at any place inside a step or an evaluation.

    Args:
        path: the folder that the run asks for; where it existed, the run took `path-2`, `path-3`, ...
    """
    if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return None
    for record in sorted(path.parent.glob(f"{path.name}*/{JOB}")):
        if record.read_text() == os.environ.get("SLURM_JOB_ID") and (record.parent / "checkpoints" / LAST).is_file():
            return record.parent
    return None


def _check_options(given: TrainConfig, saved: TrainConfig, folder: Path) -> None:
    """Options beside resume may repeat what the run has, but not change it."""
    defaults, own, options = TrainConfig().as_dict(), saved.as_dict(), given.as_dict()
    for name, value in options.items():
        if value not in (defaults[name], own[name]):
            raise ValueError(
                f"{name} is {value!r}, but the run in {folder} has {own[name]!r} and goes on as it was; leave the "
                f"option out, or start a new run"
            )
