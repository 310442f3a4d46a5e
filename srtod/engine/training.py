"""A training run from its configuration to its report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import lightning as L
import torch

from srtod._support.files import replacing
from srtod.models.checkpoint import read_checkpoint, restore_detector

from .callbacks.checkpoints import BEST, LAST, read_best_detections
from .callbacks.evaluation import as_coco
from .card import CARD, model_card
from .config import TrainConfig
from .data import DetectionData
from .distributed import is_main_process
from .failures import check_machine, explained
from .logs import check_wandb
from .module import DetectionModule
from .report import source_commit, write_report
from .run import Run, with_saved_options
from .trainer import make_trainer
from .waiting import waiting_watched

__all__ = ["TrainedRun", "train"]

MakeModule: TypeAlias = Callable[[TrainConfig, Sequence[str], Sequence[int]], DetectionModule]


class TrainedRun(NamedTuple):
    """What a run leaves.

    Attributes:
        folder: `config.yaml`, `checkpoints/` (`best.ckpt` with its detections and its model card, `last.ckpt`), `logs/`
            (CSV and TensorBoard) and `report/`, see `srtod.engine.report.write_report`. `lock` is locked while a
            process trains the run. Under SLURM it also holds `slurm_job_id` and `slurm/`, which Lightning saves at the
            end of a job and no run is resumed from.
        metrics: the metrics of the best checkpoint, see `srtod.evaluation.evaluate_detections`.
    """

    folder: Path
    metrics: dict[str, float]

    @property
    def best(self) -> Path:
        """The checkpoint with the highest AP."""
        return self.folder / BEST


def train(config: TrainConfig, make_module: MakeModule | None = None) -> TrainedRun:
    """Trains a detector and evaluates it during training.

    Under one seed, runs with and without self-reconstruction start from the same weights in all that they share. They
    see the same images in the same order. Warns if images hold more objects than the detector may detect in one.

    With `resume`, a run that was stopped, in whatever way, continues in its folder and ends as an unbroken one.

    Args:
        config: the run.
        make_module: makes the module that is trained, from what `DetectionModule` takes; None: that one.

    Returns:
        The run. If there are several processes, only the first writes to its folder; the others return no metrics.

    Raises:
        FileNotFoundError: if a file of the data, or of the run to resume, is missing.
        FloatingPointError: if the loss or its gradient is no longer finite.
        KeyboardInterrupt: if Ctrl-C was pressed; names the last checkpoint.
        MemoryError: if the memory of the device or the machine is not enough; says what to lower.
        OSError: if the run's folder cannot be written to.
        ValueError: if the configuration, the data or the run to resume is not valid.
    """
    config = with_saved_options(config)
    check_machine(config)
    check_wandb(config.wandb)
    commit = source_commit()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = DetectionData(config.data, config.seed)
    with Run.open(config, data) as opened:
        L.seed_everything(opened.config.seed, verbose=False)
        make = make_module or DetectionModule
        module = make(opened.config, data.train_set.class_names, data.train_set.category_ids)
        with opened.begun(module.description) as run:
            return _fit(run, module, data, commit)


def _fit(run: Run, module: DetectionModule, data: DetectionData, commit: str | None) -> TrainedRun:
    """Trains the run, or the rest of it, and writes its report."""
    with explained(run.config, run.folder / LAST):
        trainer = make_trainer(run, module, data)
        if not run.finished:
            with warnings.catch_warnings(), waiting_watched(run.config.devices * run.config.nodes, run.new):
                # Lightning does not know that the samplers start where the run stopped.
                warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
                trainer.fit(module, data, ckpt_path=run.checkpoint, weights_only=True)
            run = replace(run, folder=trainer.strategy.broadcast(run.folder))
    if not is_main_process():
        return TrainedRun(run.folder, {})
    return _report(run, data, commit, trainer)


def _report(run: Run, data: DetectionData, commit: str | None, trainer: L.Trainer) -> TrainedRun:
    """Writes the report on the best checkpoint; its pictures are made on the trainer's device."""
    best = run.folder / BEST
    checkpoint = read_checkpoint(best)
    detections = read_best_detections(best, checkpoint["global_step"])
    evaluation = write_report(
        run.folder,
        restore_detector(checkpoint, best, trainer.strategy.root_device),
        data.test_set,
        *as_coco(data.test_set.ground_truth, detections, data.test_set.category_ids),
        config=run.config,
        checkpoint=BEST,
        epoch=checkpoint["epoch"] + 1,
        commit=commit,
    )
    with replacing(run.folder / CARD) as card:
        card.write(model_card(checkpoint, best))
    return TrainedRun(run.folder, evaluation.metrics)
