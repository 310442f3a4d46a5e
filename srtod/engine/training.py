"""A training run from its configuration to its folder."""

from __future__ import annotations

import json
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from srtod import __version__
from srtod.checkpoint import load_detector, read_checkpoint
from srtod.models.anchors import ANCHORS, fit_anchor_scale
from srtod.visualization import save_panels

from .callbacks import AtomicCheckpointIO, Evaluation, ProgressBar, best_checkpoint, last_checkpoint
from .config import TrainConfig
from .data import DetectionData, object_sizes, objects_per_image
from .module import DetectionModule

__all__ = ["TrainedRun", "train"]


class TrainedRun(NamedTuple):
    """What a run leaves.

    Attributes:
        folder: `config.yaml`, `checkpoints/best.ckpt` and `last.ckpt`, `logs/` (CSV and TensorBoard), `panels/` and
            `metrics.json`.
        metrics: the metrics of the best checkpoint, see `srtod.evaluation.evaluate_detections`.
    """

    folder: Path
    metrics: dict[str, float]


def train(config: TrainConfig) -> TrainedRun:
    """Trains a detector, evaluating it as it goes.

    Under one seed, runs with and without self-reconstruction start from the same weights in all that they share and see
    the same images in the same order. Warns where images hold more objects than the detector may detect in one.

    Args:
        config: the run.

    Raises:
        FileNotFoundError: if a file of the data is missing.
        FloatingPointError: if the loss is no longer finite.
        KeyboardInterrupt: if Ctrl-C was pressed; says which checkpoint there is.
        OSError: if the run's folder cannot be written to.
        ValueError: if the configuration or the data are not as they should be.
    """
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("accelerator is 'cuda', but PyTorch finds no CUDA device; use 'cpu' or 'auto'")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = DetectionData(config.data, config.seed)
    if config.model.anchor_scale == "auto":
        config = _with_fitted_anchors(config, data)
    _warn_of_more_objects_than_detections(config, data)
    L.seed_everything(config.seed, verbose=False)
    module = DetectionModule(config, data.train_set.class_names, data.train_set.category_ids)
    folder = create_folder(Path(config.output or f"runs/{data.name}"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
    trainer = _trainer(config, folder, data)
    for logger in trainer.loggers:
        logger.log_hyperparams(config.as_dict())
    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, data)
    except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves switched off
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kept = f"the last finished epoch is in {last}" if last.exists() else f"{folder} has no finished epoch"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    except ValueError as error:
        if "Original Traceback" not in str(error):
            raise
        # A loader's process sends its traceback as the message; the sentence is at its end.
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from None
    return _finish(config, folder, data)


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
    print(
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


def create_folder(path: Path) -> Path:
    """Makes the folder `path`, or the first of `path-2`, `path-3`, ... that does not exist yet.

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
            raise OSError(
                f"the run's folder {folder} cannot be made ({error.strerror}); choose another output"
            ) from error
        else:
            return folder


def _trainer(config: TrainConfig, folder: Path, data: DetectionData) -> L.Trainer:
    limit = 1.0 if config.limit_batches is None else config.limit_batches
    batches = -(-len(data.train_set) // config.data.batch_size)
    return L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        max_epochs=config.epochs,
        check_val_every_n_epoch=config.eval_every,
        num_sanity_val_steps=0,
        limit_train_batches=limit,
        limit_val_batches=limit,
        gradient_clip_val=config.clip_grad_norm,
        log_every_n_steps=min(10, config.limit_batches or batches, batches),
        logger=[CSVLogger(folder, name="", version="logs"), TensorBoardLogger(folder, name="", version="logs")],
        callbacks=[
            ProgressBar(),
            Evaluation(data.test_set.ground_truth, data.test_set.category_ids),
            best_checkpoint(folder / "checkpoints"),
            last_checkpoint(folder / "checkpoints"),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
    )


def _finish(config: TrainConfig, folder: Path, data: DetectionData) -> TrainedRun:
    """Writes the metrics and the pictures of the best checkpoint."""
    best = folder / "checkpoints" / "best.ckpt"
    trained = load_detector(best)
    summary = {
        "metrics": trained.metrics,
        "checkpoint": str(best.relative_to(folder)),
        "epoch": read_checkpoint(best)["epoch"] + 1,
        "seed": config.seed,
        "versions": {"srtod": __version__, "torch": torch.__version__},
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    samples = [data.test_set[index] for index in range(min(config.panels, len(data.test_set)))]
    save_panels(trained.detector, samples, trained.class_names, folder / "panels")
    return TrainedRun(folder, trained.metrics)
