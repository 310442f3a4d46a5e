"""A training run from its configuration to its folder."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from srtod._support.files import replacing
from srtod.models import ANCHORS
from srtod.models.anchors import fit_anchor_scale
from srtod.models.checkpoint import load_detector, read_checkpoint

from .callbacks import AveragedWeights, Evaluation, ProgressBar, UnreadableImages, as_coco
from .checkpointing import BEST, LAST, AtomicCheckpointIO, Checkpoints, RandomState, best_detections, fingerprint
from .config import TrainConfig
from .data import DetectionData, object_sizes, objects_per_image, steps_per_epoch
from .distributed import is_main_process
from .failures import check_machine, explained
from .logs import make_loggers
from .module import DetectionModule
from .monitoring import FilterShare, Pictures, check_wandb
from .report import REPORT, source_commit, write_report
from .resume import (
    CONFIG,
    check_same_data,
    check_same_detector,
    open_run,
    read_run,
    record_job,
    requeued_run,
    with_absolute_paths,
)

__all__ = ["TrainedRun", "train"]

SUMMARY = f"{REPORT}/metrics.json"


class TrainedRun(NamedTuple):
    """What a run leaves.

    Attributes:
        folder: `config.yaml`, `checkpoints/` (`best.ckpt` with its detections, `last.ckpt`), `logs/` (CSV and
            TensorBoard) and `report/`, see `srtod.engine.report.write_report`; under SLURM also `slurm_job_id` and
            `slurm/`, what Lightning saves at the end of a job, which no run goes on from.
        metrics: the metrics of the best checkpoint, see `srtod.evaluation.evaluate_detections`.
    """

    folder: Path
    metrics: dict[str, float]


def train(config: TrainConfig) -> TrainedRun:
    """Trains a detector, evaluating it as it goes.

    Under one seed, runs with and without self-reconstruction start from the same weights in all that they share and see
    the same images in the same order. Warns where images hold more objects than the detector may detect in one.

    With `resume`, a run that was stopped in whatever way goes on in its folder and ends as if it had not been.

    Args:
        config: the run.

    Returns:
        The run; of several processes the first alone writes to its folder, and the others return no metrics.

    Raises:
        FileNotFoundError: if a file of the data, or of the run to resume, is missing.
        FloatingPointError: if the loss or its gradient is no longer finite.
        KeyboardInterrupt: if Ctrl-C was pressed; says which checkpoint there is.
        MemoryError: if the memory of the device or the machine does not suffice; says what to lower.
        OSError: if the run's folder cannot be written to.
        ValueError: if the configuration, the data or the run to resume are not as they should be.
    """
    resumed = None if config.resume is None else open_run(config)
    config = config if resumed is None else resumed.config
    check_machine(config)
    check_wandb(config.wandb)
    commit = source_commit()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = DetectionData(config.data, config.seed)
    path = Path(config.output or f"runs/{data.name}")
    if resumed is None and (requeued := requeued_run(path)):
        resumed = open_run(read_run(requeued))
        config = resumed.config
    if config.model.anchor_scale == "auto":
        config = _with_fitted_anchors(config, data)
    if is_main_process():
        _warn_of_more_objects_than_detections(config, data)
    L.seed_everything(config.seed, verbose=False)
    module = DetectionModule(config, data.train_set.class_names, data.train_set.category_ids)
    fingerprints = {"training": fingerprint(data.train_set), "test": fingerprint(data.test_set)}
    if resumed is not None:
        check_same_data(resumed, fingerprints)
        check_same_detector(resumed, module.description)
        if resumed.finished and (resumed.folder / SUMMARY).exists():
            raise ValueError(
                f"the run in {resumed.folder} has finished, see {resumed.folder / SUMMARY}; to train longer, start "
                f"another with more epochs"
            )
        folder = resumed.folder
    else:
        config = with_absolute_paths(config)
        folder = start_folder(path, config) if is_main_process() else path
    trainer = _trainer(config, folder, data, fingerprints, None if resumed is None else resumed.step)
    if resumed is None:
        for logger in trainer.loggers:
            logger.log_hyperparams(config.as_dict())
    if resumed is None or not resumed.finished:
        with explained(config, folder / "checkpoints" / LAST), warnings.catch_warnings():
            # Lightning cannot know that the samplers go on where the run stopped.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
            trainer.fit(module, data, ckpt_path=None if resumed is None else resumed.checkpoint, weights_only=True)
        folder = Path(trainer.strategy.broadcast(str(folder)))
    if not is_main_process():
        return TrainedRun(folder, {})
    return _finish(config, folder, data, commit, trainer.strategy.root_device)


def _with_fitted_anchors(config: TrainConfig, data: DetectionData) -> TrainConfig:
    """The run with the anchor scale that suits the training set's objects; prints it."""
    name = config.model.detector
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
            stacklevel=3,
        )


def start_folder(path: Path, config: TrainConfig) -> Path:
    """Makes the folder `path`, or the first of `path-2`, `path-3`, ... that does not exist yet, with the configuration.

    Raises:
        OSError: if it cannot be made.
    """
    number = 1
    while True:
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _no_folder(folder, error) from error
        else:
            break
    try:
        with replacing(folder / CONFIG) as file:
            yaml.safe_dump(config.as_dict(), file, sort_keys=False)
        record_job(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # otherwise the next try would be the second run
        if isinstance(error, OSError):
            raise _no_folder(folder, error) from error
        raise
    return folder


def _no_folder(folder: Path, error: OSError) -> OSError:
    return OSError(f"the run's folder {folder} cannot be made ({error.strerror or error}); choose another output")


def _trainer(
    config: TrainConfig, folder: Path, data: DetectionData, fingerprints: dict[str, tuple[int, str]], step: int | None
) -> L.Trainer:
    """The trainer of a run that goes on at an optimizer step, or is new where that is None."""
    limit = 1.0 if config.limit_batches is None else config.limit_batches
    evaluation = Evaluation(data.test_set.ground_truth, data.test_set.category_ids)
    random_state = RandomState()
    checkpoints = Checkpoints(folder / "checkpoints", evaluation, config.save_every, random_state, fingerprints)
    callbacks: list[Callback] = [
        ProgressBar(),
        evaluation,
        FilterShare(),
        Pictures(evaluation, data.test_set, data.test_set.class_names, config.panels),
        UnreadableImages(data, folder / "unreadable_images.txt"),
    ]
    if config.early_stop is not None:
        callbacks.append(EarlyStopping("AP", mode="max", patience=config.early_stop, check_on_train_epoch_end=False))
    if config.ema is not None:
        callbacks.append(AveragedWeights(config.ema))  # behind all that looks at the weights of an evaluation
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="auto" if config.devices * config.nodes == 1 else "ddp",
        precision=config.precision,
        deterministic=config.deterministic,
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.eval_every,
        num_sanity_val_steps=0,
        limit_train_batches=limit,
        limit_val_batches=limit,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_grad_norm,
        use_distributed_sampler=False,  # the data's own samplers share the images out
        log_every_n_steps=min(10, steps_per_epoch(config, len(data.train_set))),
        logger=make_loggers(folder, config.wandb, step),
        callbacks=[*callbacks, random_state, checkpoints],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder / "slurm",  # where Lightning saves a checkpoint when SLURM ends the job
        enable_model_summary=False,
    )


def _finish(
    config: TrainConfig, folder: Path, data: DetectionData, commit: str | None, device: torch.device
) -> TrainedRun:
    """Writes the report on the best checkpoint, whose pictures are made on the device."""
    best = folder / "checkpoints" / BEST
    checkpoint = read_checkpoint(best)
    found = torch.load(best_detections(best, checkpoint["global_step"]), weights_only=True)
    evaluation = write_report(
        folder,
        load_detector(best, device),
        data.test_set,
        *as_coco(data.test_set.ground_truth, found, data.test_set.category_ids),
        config=config,
        checkpoint=str(best.relative_to(folder)),
        epoch=checkpoint["epoch"] + 1,
        commit=commit,
    )
    return TrainedRun(folder, evaluation.metrics)
