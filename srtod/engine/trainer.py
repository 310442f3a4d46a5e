"""Lightning's trainer of a run, with its callbacks."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from .callbacks import (
    AveragedWeights,
    Checkpoints,
    Evaluation,
    FilterShare,
    Pictures,
    ProgressBar,
    RandomState,
    UnreadableImages,
)
from .callbacks.checkpoints import AtomicCheckpointIO
from .data import DetectionData, steps_per_epoch
from .logs import make_loggers
from .module import DetectionModule
from .restoring import check_restorable
from .run import Run

__all__ = ["make_trainer"]


def make_trainer(run: Run, module: DetectionModule, data: DetectionData) -> L.Trainer:
    """Builds the trainer; the log of a new run begins with its configuration.

    Raises:
        ValueError: if a run to resume cannot go on from its checkpoint; nothing of the run is changed then.
    """
    config = run.config
    limit = 1.0 if config.limit_batches is None else config.limit_batches
    trainer = L.Trainer(
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
        use_distributed_sampler=False,  # the data module has its own samplers for several processes
        log_every_n_steps=min(10, steps_per_epoch(config, len(data.train_set))),
        logger=False,
        callbacks=_callbacks(run, data),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.folder / "slurm",  # where Lightning saves a checkpoint when SLURM ends the job
        enable_model_summary=False,
    )
    if run.checkpoint is not None and not run.finished:
        check_restorable(run.checkpoint, trainer, module, data)
    trainer.loggers = make_loggers(run.folder, config.wandb, run.step)  # now, for this cuts the logs of a resumed run
    if run.checkpoint is None:
        for logger in trainer.loggers:
            logger.log_hyperparams(config.as_dict())
    return trainer


def _callbacks(run: Run, data: DetectionData) -> list[Callback]:
    """The callbacks in the order in which Lightning calls them; it moves `Checkpoints` to the end."""
    config, test_set = run.config, data.test_set
    evaluation = Evaluation(test_set.ground_truth, test_set.category_ids)
    random_state = RandomState()
    callbacks: list[Callback] = [
        ProgressBar(),
        evaluation,
        FilterShare(),
        Pictures(evaluation, test_set, test_set.class_names, config.panels),
        UnreadableImages(data, run.folder / "unreadable_images.txt"),
    ]
    if config.early_stop is not None:
        callbacks.append(EarlyStopping("AP", mode="max", patience=config.early_stop, check_on_train_epoch_end=False))
    if config.ema is not None:
        callbacks.append(AveragedWeights(config.ema))  # after the callbacks that need the weights that were evaluated
    checkpoints = Checkpoints(run.folder, evaluation, config.save_every, random_state, run.fingerprints)
    return [*callbacks, random_state, checkpoints]
