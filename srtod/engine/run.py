"""A run's folder: what happens when a run starts, is resumed, or is queued again by SLURM, and every check of that."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from srtod.data import DetectionDataset
from srtod.models import ANCHORS
from srtod.models.anchors import fit_anchor_scale
from srtod.models.checkpoint import CONTROL, DESCRIPTION

from .callbacks.checkpoints import LAST
from .config import TrainConfig
from .data import DetectionData, object_sizes, objects_per_image
from .distributed import is_main_process
from .folder import CONFIG, JOB, NewFolder, new_folder, resumed_folder
from .presets import read_config
from .report import SUMMARY
from .restoring import read_last

__all__ = ["Run", "check_options", "read_run", "requeued_run", "with_saved_options"]

PATHS = ("data", "train_json", "train_images", "test_json", "test_images")
CHANGEABLE = frozenset({*PATHS, "threads", "workers", "panels", "recompute"})
"""Options that may change on resume; they do not alter the training."""


@dataclass(frozen=True)
class Run:
    """A training run: a new one, or one that is resumed.

    Attributes:
        folder: its folder; `begun` makes that of a new run.
        config: its configuration.
        fingerprints: `fingerprint` of its "training" and its "test" set.
        checkpoint: the file to resume from; None in a new run.
        step: optimizer steps done; None in a new run.
        finished: whether it has trained its last epoch, or stopped early.
        detector: description of the checkpoint's detector, see `srtod.models.checkpoint.describe`.
        new: its folder, where this process has made it.
    """

    folder: Path
    config: TrainConfig
    fingerprints: dict[str, tuple[int, str]]
    checkpoint: Path | None = None
    step: int | None = None
    finished: bool = False
    detector: Mapping[str, Any] = field(default_factory=dict)
    new: NewFolder | None = None

    @classmethod
    @contextmanager
    def open(cls, config: TrainConfig, data: DetectionData) -> Iterator[Run]:
        """Opens the run that `config` asks for; no file of it is written yet.

        With `resume`, or in a job that SLURM has queued again, this is a run with a checkpoint. Its folder is locked
        inside, by the process of rank 0.

        Raises:
            FileNotFoundError: if the run to resume has no checkpoint.
            ValueError: if a file of the run to resume is damaged, its data has changed, it has finished, or another
                process trains it; or if the anchor scale cannot be fitted.
        """
        path = Path(config.output or f"runs/{data.name}")
        if config.resume is None and (requeued := requeued_run(path)):
            config = read_run(requeued)
        fingerprints = {"training": fingerprint(data.train_set), "test": fingerprint(data.test_set)}
        if is_main_process():
            _warn_of_more_objects_than_detections(config, data)
        if config.resume is None:
            yield cls(path, _with_absolute_paths(_with_fitted_anchors(config, data)), fingerprints)
            return
        folder = Path(config.resume)
        with resumed_folder(folder) if is_main_process() else nullcontext():
            yield cls._resume(folder, config, fingerprints)

    @classmethod
    def _resume(cls, folder: Path, config: TrainConfig, fingerprints: dict[str, tuple[int, str]]) -> Run:
        checkpoint = folder / LAST
        content = read_last(checkpoint)
        state = content["callbacks"]["Checkpoints"]
        _check_same_data(checkpoint, state["data"], fingerprints)
        if state["finished"] and (folder / SUMMARY).exists():
            raise ValueError(
                f"the run in {folder} has finished, see {folder / SUMMARY}; to train longer, start another with more "
                f"epochs"
            )
        return cls(
            folder,
            config,
            fingerprints,
            checkpoint=checkpoint,
            step=content["global_step"],
            finished=state["finished"],
            detector=content[DESCRIPTION],
        )

    @contextmanager
    def begun(self, detector: Mapping[str, Any]) -> Iterator[Run]:
        """Makes the folder of a new run, see `new_folder`; checks the detector of one that is resumed.

        Args:
            detector: description of the detector to train, see `srtod.models.checkpoint.describe`.

        Raises:
            OSError: if the folder cannot be made.
            ValueError: if the checkpoint holds another detector.
        """
        if self.checkpoint is None and is_main_process():
            with new_folder(self.folder, self.config) as new:
                yield replace(self, folder=new.path, new=new)
            return
        if self.checkpoint is not None:
            _check_same_detector(self.checkpoint, self.detector, detector)
        yield self


def read_run(folder: Path) -> TrainConfig:
    """The configuration of the run in a folder, with `resume` set.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if its configuration is not valid.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}; pass the one to go on with")
    return replace(TrainConfig.from_dict(read_config(folder / CONFIG)), resume=str(folder))


def with_saved_options(config: TrainConfig) -> TrainConfig:
    """The configuration of the run that `config.resume` names, with the changes that `CHANGEABLE` allows.

    Without `resume` it is `config` itself.

    Args:
        config: every option but `resume` must have its default, or the run's value, or be in `CHANGEABLE`.

    Raises:
        FileNotFoundError: if there is no such run.
        ValueError: if an option differs from the run's.
    """
    if config.resume is None:
        return config
    folder = Path(config.resume)
    saved = read_run(folder)
    defaults = TrainConfig().as_dict()  # an option that equals its default looks as if nobody had set it
    wanted, own = config.as_dict() | {"resume": saved.resume}, saved.as_dict()
    given = {name: value for name, value in wanted.items() if value != defaults[name]}
    check_options(given, saved, folder)
    if all(wanted[name] == own[name] for name in own.keys() - CHANGEABLE):  # then every option was set
        given |= {name: wanted[name] for name in ("workers", "panels", "recompute")}
    return TrainConfig.from_dict(own | {name: value for name, value in given.items() if name in CHANGEABLE})


def check_options(given: Mapping[str, Any], saved: TrainConfig, folder: Path) -> None:
    """Raises a ValueError if an option beside `resume` differs from the run's and may not change.

    Args:
        given: the options, by name; names that no run has are ignored.
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


def fingerprint(dataset: DetectionDataset) -> tuple[int, str]:
    """The number of images of a set, and a hash of their names, ids, boxes and categories, in their order."""
    truth = dataset.ground_truth
    rows = [
        [[image["file_name"], image["id"]] for image in truth["images"]],
        [
            [entry["image_id"], entry["category_id"], entry["bbox"], entry.get("iscrowd", 0)]
            for entry in truth["annotations"]
        ],
    ]
    # `float` converts NumPy's numbers.
    return len(truth["images"]), hashlib.sha256(json.dumps(rows, default=float).encode()).hexdigest()


def requeued_run(path: Path) -> Path | None:
    """The folder of the run that this SLURM job was training when it was stopped and queued again, if there is one.

    SLURM starts the job's command once more, unchanged. The run then continues in its folder from `last.ckpt`. It does
    not use the checkpoint that Lightning saves when SLURM ends a job, which may lie within a step or an evaluation.

    Args:
        path: the folder that the command asks for; if it existed, the run took `path-2`, `path-3`, ...
    """
    if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return None
    for record in sorted(path.parent.glob(f"{path.name}*/{JOB}")):
        if record.read_text() == os.environ.get("SLURM_JOB_ID") and (record.parent / LAST).is_file():
            return record.parent
    return None


def _check_same_data(
    checkpoint: Path, before: Mapping[str, tuple[int, str]], now: Mapping[str, tuple[int, str]]
) -> None:
    """Raises a ValueError if a set is not the one that the run has trained on, by their fingerprints."""
    for kind, (images, content) in now.items():
        images_before, content_before = before[kind]
        if (images, content) != (images_before, content_before):
            changed = images != images_before
            change = f"{images} images in place of {images_before}" if changed else "other images or boxes"
            raise ValueError(
                f"the {kind} set has changed since {checkpoint} was saved: it has {change}; put back the data that the "
                f"run began with, or start a new run"
            )


def _check_same_detector(checkpoint: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises a ValueError if the checkpoint's detector is not the wanted one, by their descriptions."""
    expected, found = (
        {**which["model"], **{key: which.get(key) for key in ("class_names", "category_ids", CONTROL)}}
        for which in (wanted, saved)
    )
    for name in {"name": None} | expected | found:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{checkpoint} holds another detector: its {name} is {found.get(name)!r}, but {CONFIG} and the data "
                f"say {expected.get(name)!r}; put back the {CONFIG}, the data and the checkpoint of one run"
            )


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with absolute paths, so that the run can be resumed from any working folder."""
    options = config.as_dict()
    paths = {name: str(Path(options[name]).absolute()) for name in PATHS if options[name] is not None}
    weights = config.model.weights
    if weights is not None and Path(weights).expanduser().is_file():  # otherwise it is the name of torchvision's
        paths["weights"] = str(Path(weights).expanduser().absolute())
    return TrainConfig.from_dict(options | paths)


def _with_fitted_anchors(config: TrainConfig, data: DetectionData) -> TrainConfig:
    """The configuration with its anchor scale, which is fitted to the training set and printed if it is "auto"."""
    name = config.model.detector
    if config.model.anchor_scale != "auto":
        return config
    if name not in ANCHORS:
        raise ValueError(
            f"anchor_scale='auto' needs a detector whose anchors have a scale ({', '.join(ANCHORS)}), got {name!r}; "
            f"leave anchor_scale as it is"
        )
    layout = ANCHORS[name]
    fit = fit_anchor_scale(
        object_sizes(data.train_set.ground_truth, config.model),
        layout.strides,
        ratios=layout.ratios,
        octaves=layout.octaves,
    )
    rank_zero_only(print)(
        f"anchor scale {fit.scale:g} fits the training set best: an object's best anchor has an IoU of "
        f"{fit.mean_iou:.2f} on average, and of 0.5 or more for {fit.covered:.0%} of the objects"
    )
    return replace(config, model=replace(config.model, anchor_scale=fit.scale))


def _warn_of_more_objects_than_detections(config: TrainConfig, data: DetectionData) -> None:
    limit = config.model.detections_per_image
    found, most = [], 0
    for kind, dataset in (("training", data.train_set), ("test", data.test_set)):
        counts = objects_per_image(dataset.ground_truth)
        above = sum(count > limit for count in counts)
        most = max([most, *counts])
        if above:
            found.append(f"{above} of {len(counts)} {kind} images")
    if found:
        warnings.warn(
            f"{' and '.join(found)} hold more objects than the {limit} detections an image may have, up to {most}: the "
            f"rest can never be found; raise detections_per_image",
            stacklevel=5,  # the caller of `train`
        )
