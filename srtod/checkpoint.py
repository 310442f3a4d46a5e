"""Checkpoints: written whole or not at all, and read back as a detector by `load_detector`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srtod._version import __version__
from srtod.models import Detector, build_detector

__all__ = ["TrainedDetector", "describe", "load_detector", "read_checkpoint", "write_checkpoint"]

DESCRIPTION = "srtod"
"""Where a Lightning checkpoint holds what `describe` says."""

METRICS = "metrics"
"""Where it holds what the latest evaluation measured."""

PREFIX = "detector."
"""What the names of the detector's weights begin with in a checkpoint."""


class TrainedDetector(NamedTuple):
    """A detector with what its labels mean.

    Attributes:
        detector: the detector, in evaluation mode.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
        metrics: what the evaluation that came with the checkpoint measured, empty if none did.
    """

    detector: Detector
    class_names: list[str]
    category_ids: list[int]
    metrics: dict[str, float]


def load_detector(path: str | Path, device: str | torch.device = "cpu", **options: Any) -> TrainedDetector:
    """Rebuilds a detector from a training checkpoint alone; nothing in the file is executed.

    Args:
        path: a checkpoint of `python -m srtod.train`, such as `runs/swarm/checkpoints/best.ckpt`.
        device: where the detector goes.
        options: arguments of `build_detector` in place of the training run's, such as `score_threshold`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or not a checkpoint of srtod's training.
    """
    checkpoint = read_checkpoint(path)
    description = checkpoint[DESCRIPTION]
    state = {
        key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items() if key.startswith(PREFIX)
    }
    try:
        detector = build_detector(**description["model"] | options)
        detector.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        written = description["version"]
        raise ValueError(
            f"{path}, written by srtod {written}, holds a detector that srtod {__version__} cannot build "
            f"({str(error).splitlines()[0]}); install srtod {written} to use it"
        ) from error
    return TrainedDetector(
        detector.eval().to(device), description["class_names"], description["category_ids"], checkpoint.get(METRICS, {})
    )


def describe(model: dict[str, Any], class_names: list[str], category_ids: list[int]) -> dict[str, Any]:
    """What a checkpoint says about its detector, in plain values.

    Args:
        model: the arguments of `build_detector`.
        class_names: see `TrainedDetector`.
        category_ids: see `TrainedDetector`.
    """
    return {"version": __version__, "model": model, "class_names": class_names, "category_ids": category_ids}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of srtod's training, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or not a checkpoint of srtod's training.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"the checkpoint {path} does not exist; pass a .ckpt file of a training run")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint; use another checkpoint of the run") from error
    if not isinstance(checkpoint, dict) or DESCRIPTION not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of srtod's training; pass a .ckpt file that it wrote")
    return checkpoint


def write_checkpoint(checkpoint: Mapping[Any, Any], path: str | Path) -> None:
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk.

    A full disk, a kill or a power cut leaves what was there before.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch turns a full disk into a RuntimeError
            reason = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint {path} could not be written ({reason}); the one before it is kept"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Puts a folder's names on the disk: until then a power cut may bring back what a file replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
