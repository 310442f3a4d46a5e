"""Going on with a run: its folder, its configuration and its last checkpoint, each checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from srtod._version import __version__
from srtod.models.checkpoint import DESCRIPTION, METRICS, read_checkpoint

from .checkpointing import LAST, RANDOM_STATE
from .config import TrainConfig
from .presets import read_config

__all__ = [
    "CONFIG",
    "Resumed",
    "check_options",
    "check_same_data",
    "check_same_detector",
    "open_run",
    "read_run",
    "record_job",
    "requeued_run",
    "with_absolute_paths",
]

CONFIG = "config.yaml"
PATHS = ("data", "train_json", "train_images", "test_json", "test_images")
CHANGEABLE = frozenset({*PATHS, "threads", "workers", "panels", "recompute"})
"""What a run that goes on may have otherwise: it trains alike, as `check_same_data` sees to it."""

JOB = "slurm_job_id"


class Resumed(NamedTuple):
    """A run to go on with.

    Attributes:
        folder: its folder.
        config: its configuration, with `resume` set.
        checkpoint: the file to go on from.
        description: what the file says of its detector, see `srtod.models.checkpoint.describe`.
        step: optimizer steps that were done.
        finished: whether it has trained its last epoch, or stopped early.
        data: number of images and hash of its "training" and its "test" set, see `srtod.engine.checkpointing`.
    """

    folder: Path
    config: TrainConfig
    checkpoint: Path
    description: dict[str, Any]
    step: int
    finished: bool
    data: dict[str, tuple[int, str]]


def read_run(folder: Path) -> TrainConfig:
    """The configuration of the run in a folder, with `resume` set.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if its configuration is not as it should be.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}; pass the one to go on with")
    return replace(TrainConfig.from_dict(read_config(folder / CONFIG)), resume=str(folder))


def open_run(config: TrainConfig) -> Resumed:
    """Opens the run that `config.resume` names.

    Args:
        config: the run's folder; every other option must have its default, or the value that the run has, but for
            those in `CHANGEABLE`.

    Raises:
        FileNotFoundError: if there is no such folder, or no configuration or checkpoint in it.
        ValueError: if an option differs from the run's, or a file is damaged.
    """
    folder = Path(str(config.resume))
    saved = read_run(folder)
    defaults = TrainConfig().as_dict()  # which an option that nobody set has too
    wanted, own = config.as_dict() | {"resume": saved.resume}, saved.as_dict()
    given = {name: value for name, value in wanted.items() if value != defaults[name]}
    check_options(given, saved, folder)
    if all(wanted[name] == own[name] for name in own.keys() - CHANGEABLE):  # as from the command line: all of it is set
        given |= {name: wanted[name] for name in ("workers", "panels", "recompute")}
    own |= {name: value for name, value in given.items() if name in CHANGEABLE}
    checkpoint = folder / "checkpoints" / LAST
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{folder} has no {LAST} to go on from; start the run again, with save_every if its epochs are long"
        )
    try:
        content = read_checkpoint(checkpoint)
    except ValueError as error:
        others = [str(path) for path in (folder / "checkpoints").glob("*.ckpt") if path != checkpoint]
        kept = f"; {' and '.join(others)} can still be used by srtod.predict" if others else ""
        raise ValueError(f"{error}: this run cannot go on, start it again{kept}") from error
    description = content[DESCRIPTION]
    try:
        content[METRICS], content[RANDOM_STATE]  # which go back to where they came from
        step, state = content["global_step"], content["callbacks"]["Checkpoints"]
        finished, data = state["finished"], state["data"]
    except (KeyError, TypeError) as error:
        written = description["version"]
        cure = "" if written == __version__ else f"install srtod {written} to go on with it, or "
        raise ValueError(
            f"{checkpoint}, written by srtod {written}, does not hold all that srtod {__version__} needs to go on "
            f"(no {error}); {cure}start the run again"
        ) from error
    return Resumed(folder, TrainConfig.from_dict(own), checkpoint, description, step, finished, data)


def check_same_detector(resumed: Resumed, description: Mapping[str, Any]) -> None:
    """Raises a ValueError if a checkpoint's detector is not the one that the configuration and the data ask for.

    Args:
        resumed: the run.
        description: what a checkpoint would say of the one asked for, see `srtod.models.checkpoint.describe`.
    """
    wanted, found = (
        {**which["model"], **{key: which[key] for key in ("class_names", "category_ids")}}
        for which in (description, resumed.description)
    )
    for name in {"name": None} | wanted | found:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{resumed.checkpoint} holds another detector: its {name} is {found.get(name)!r}, but {CONFIG} and the "
                f"data say {wanted.get(name)!r}; put back the {CONFIG}, the data and the checkpoint of one run"
            )


def check_same_data(resumed: Resumed, data: Mapping[str, tuple[int, str]]) -> None:
    """Raises a ValueError if a set is not the one that the run has seen so far.

    Args:
        resumed: the run.
        data: as `Resumed.data`, of the data that there is now.
    """
    for kind, (images, content) in data.items():
        before, content_before = resumed.data[kind]
        if (images, content) != (before, content_before):
            change = "other images or boxes" if images == before else f"{images} images in place of {before}"
            raise ValueError(
                f"the {kind} set has changed since {resumed.checkpoint} was saved: it has {change}; put back the data "
                f"that the run began with, or start a new run"
            )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The run with paths that mean the same in every working folder, for it to be gone on with from any."""
    options = config.as_dict()
    paths = {name: str(Path(options[name]).absolute()) for name in PATHS if options[name] is not None}
    weights = config.model.weights
    if weights is not None and Path(weights).expanduser().is_file():  # otherwise they are torchvision's, by name
        paths["weights"] = str(Path(weights).expanduser().absolute())
    return TrainConfig.from_dict(options | paths)


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


def check_options(given: Mapping[str, Any], saved: TrainConfig, folder: Path) -> None:
    """Raises a ValueError if an option beside resume is to change what makes the run; it may repeat it.

    Args:
        given: the options, by name; names that no run has do not count.
        saved: the run's configuration.
        folder: its folder.
    """
    own = saved.as_dict() | {"resume": given.get("resume")}
    for name, value in given.items():
        if name in own.keys() - CHANGEABLE and value != own[name]:
            raise ValueError(
                f"{name} is {value!r}, but the run in {folder} has {own[name]!r} and goes on as it was; leave the "
                f"option out, or start a new run"
            )
