"""Checkpoints: written whole or not at all, and read back as a detector by `load_detector`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srtod._support.errors import first_line
from srtod._support.files import replacing
from srtod._support.hub import on_disk
from srtod._support.tensor_files import check_weights, read_tensors
from srtod._version import __version__
from srtod.models import Detector, build_detector
from srtod.models.build import check_options

__all__ = [
    "TrainedDetector",
    "describe",
    "load",
    "load_detector",
    "read_checkpoint",
    "restore_detector",
    "write_checkpoint",
]

DESCRIPTION = "srtod"
"""Where a Lightning checkpoint holds what `describe` says."""

CONTROL = "control"
"""What that says if the detector's filter was replaced for an experiment: what by."""

IMAGE_SIZE = "image_size"
"""And the most frequent (height, width) of the training images."""

INTENSITY_RANGE = "intensity_range"
"""And the values of images of more than 8 bits that are 0 and 1 to it; None: 0 and 65535."""

METRICS = "metrics"
"""Where it holds what the latest evaluation measured."""

BEFORE: dict[str, Any] = {"reconstruction": "paper", "resize": "nearest"}
"""The values of options that older checkpoints do not name, where the default has changed since."""

ANOTHER = "use another checkpoint of the run"
"""What to do about a damaged one."""

PREFIX = "detector."
"""What the names of the detector's weights begin with in a checkpoint."""


class TrainedDetector(NamedTuple):
    """A detector with what its labels mean.

    Attributes:
        detector: the detector, in evaluation mode.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
        metrics: what the evaluation that came with the checkpoint measured, empty if none did.
        image_size: (height, width) of most training images; None in checkpoints that do not know it.
        intensity_range: low and high, see `srtod.data.read_image`; None: 0 and 65535.
        name: what `build_detector` calls the detector.
    """

    detector: Detector
    class_names: list[str]
    category_ids: list[int]
    metrics: dict[str, float]
    image_size: tuple[int, int] | None = None
    intensity_range: tuple[float, float] | None = None
    name: str = ""


def load(path: str | PathLike[str], device: str | torch.device = "cpu", **options: Any) -> Detector:
    """The detector of a checkpoint in evaluation mode, ready for `detector([image])`.

    `load_detector` also gives the names of its classes, and `srtod.Predictor` reads pictures.

    Args:
        path: a checkpoint of `srtod train`; or its address on Hugging Face's hub, `hf://OWNER/NAME[@REVISION][/FILE]`,
            where FILE is best.ckpt if there is none. The file is kept in the hub's cache. It needs the extra `hub`.
        device: as in `load_detector`.
        options: as in `load_detector`.

    Raises:
        ImportError: if an address is given and `huggingface_hub` is not installed.
        FileNotFoundError, IsADirectoryError, TypeError, ValueError: as `load_detector`.
        OSError: if an address cannot be fetched.
    """
    return load_detector(path, device, **options).detector


def load_detector(path: str | PathLike[str], device: str | torch.device = "cpu", **options: Any) -> TrainedDetector:
    """Rebuilds a detector from a training checkpoint alone; nothing in the file is executed.

    Args:
        path: a checkpoint of `python -m srtod.train`, such as `runs/swarm/checkpoints/best.ckpt`; or its address, see
            `load`.
        device: where the detector goes.
        options: arguments of `build_detector` in place of the training run's, such as `score_threshold`.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        TypeError: if an option is unknown.
        ValueError: if the file is damaged, not a checkpoint of srtod's training, or of a control run of a study; if its
            weights are not finite; or if an option is of another type or out of its range.
    """
    checkpoint = read_checkpoint(path)
    if control := checkpoint[DESCRIPTION].get(CONTROL):
        raise ValueError(
            f"{path} is of a control run of a study (control: {control}), whose filter is not the detector's own; use "
            f"a checkpoint of another variant"
        )
    return restore_detector(checkpoint, path, device, **options)


def restore_detector(
    checkpoint: Mapping[str, Any], path: str | PathLike[str], device: str | torch.device = "cpu", **options: Any
) -> TrainedDetector:
    """As `load_detector`, from what `read_checkpoint` gave; of a control run it is the detector without the control.

    Args:
        checkpoint: the content of the checkpoint.
        path: where it comes from, for errors.
        device: as in `load_detector`.
        options: as in `load_detector`.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if an option is of another type or out of its range, or the detector cannot be built.
    """
    check_options(options)
    description = checkpoint[DESCRIPTION]
    state = {
        key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items() if key.startswith(PREFIX)
    }
    try:
        # Weights that are replaced at once are neither read nor downloaded, whatever the file says.
        model = BEFORE | description["model"] | {"weights": None} | options
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*no effect with enhancement='none'")  # its training said so
            detector = build_detector(**model)
        detector.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        written = description["version"]
        cure = "use another checkpoint" if written == __version__ else f"install srtod {written} to use it"
        raise ValueError(
            f"{path}, written by srtod {written}, holds a detector that srtod {__version__} cannot build "
            f"({first_line(error)}); {cure}"
        ) from error
    size, span = description.get(IMAGE_SIZE), description.get(INTENSITY_RANGE)
    return TrainedDetector(
        detector.eval().to(device),
        description["class_names"],
        description["category_ids"],
        checkpoint.get(METRICS, {}),
        None if size is None else (int(size[0]), int(size[1])),
        None if span is None else (float(span[0]), float(span[1])),
        model["name"],
    )


def describe(model: dict[str, Any], class_names: list[str], category_ids: list[int]) -> dict[str, Any]:
    """What a checkpoint says about its detector, in plain values.

    Args:
        model: the arguments of `build_detector`.
        class_names: see `TrainedDetector`.
        category_ids: see `TrainedDetector`.
    """
    return {"version": __version__, "model": model, "class_names": class_names, "category_ids": category_ids}


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint of srtod's training, on the CPU; `path` is a file, or an address as in `load`.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        MemoryError: if memory runs out; torch raises a RuntimeError for it.
        ValueError: if the file is damaged, not a checkpoint of srtod's training, or its weights are not finite.
    """
    path = on_disk(path, default="best.ckpt")
    if path.is_dir():
        best = Path(path, "checkpoints", "best.ckpt")
        cure = f"pass {best}" if best.is_file() else "pass a .ckpt file of a training run"
        raise IsADirectoryError(f"the checkpoint {path} is a folder; {cure}")
    if not path.exists():
        raise FileNotFoundError(f"the checkpoint {path} does not exist; pass a .ckpt file of a training run")
    checkpoint = read_tensors(path, f"is damaged or not a checkpoint; {ANOTHER}")
    if not _is_ours(checkpoint):
        raise ValueError(f"{path} is not a checkpoint of srtod's training; pass a .ckpt file that it wrote")
    check_weights(checkpoint["state_dict"], path, ANOTHER)
    return checkpoint


def _is_ours(checkpoint: Any) -> bool:
    """Whether there are weights and all that `describe` says, of the types that it has there."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        return False
    description = checkpoint.get(DESCRIPTION)
    metrics = checkpoint.get(METRICS, {})
    if not isinstance(description, dict) or not isinstance(metrics, dict):
        return False
    model, names, ids = (description.get(name) for name in ("model", "class_names", "category_ids"))
    if not (isinstance(description.get("version"), str) and isinstance(model, dict)):
        return False
    if not (isinstance(names, list) and isinstance(ids, list) and len(names) == len(ids)):
        return False
    size = description.get(IMAGE_SIZE)
    if size is not None and not (isinstance(size, list | tuple) and list(map(type, size)) == [int, int]):
        return False
    numbers = all(isinstance(number, int) for number in ids) and all(
        isinstance(value, int | float) for value in metrics.values()
    )
    return numbers and all(isinstance(name, str) for name in (*model, *names, *metrics))


def write_checkpoint(checkpoint: Mapping[Any, Any], path: str | Path) -> None:
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk.

    A full disk, a kill or a power cut leaves what was there before.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, binary=True) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        raise OSError(
            f"the checkpoint {path} could not be written ({_reason(error)}); the one before it is kept"
        ) from error


def _reason(error: BaseException) -> str:
    """What the operating system said, where that is how it began, otherwise what the error says."""
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, OSError) and origin.strerror:
            return origin.strerror
        origin = origin.__context__
    return first_line(error)
