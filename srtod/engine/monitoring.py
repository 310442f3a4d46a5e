"""What the logs of a run show beside losses and metrics: what the filter passes, pictures, and Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from srtod.data import DetectionDataset
from srtod.evaluation import coco_results, missed_objects, plot_curves
from srtod.models import SelfReconstruction
from srtod.visualization import SCORE

from .callbacks import Evaluation
from .distributed import is_main_process, mean
from .module import DetectionModule
from .panels import sample_panel

__all__ = ["FilterShare", "Pictures", "check_wandb", "wandb_logger"]

MOST = 4  # panels of an evaluation
LONGEST = 4096  # pixels: the longer side of a logged picture
WANDB_ID = "wandb_id"


class FilterShare(Callback):
    """Logs as `filter_share` how much of the test images passes the filter: the share of its pixels above 1.

    Looks at the difference maps that an evaluation computes anyway. Padding does not count. Without a threshold nearly
    all passes, and a detector whose enhancement has no filter logs nothing.
    """

    def __init__(self) -> None:
        self._passed = torch.zeros((), dtype=torch.float64)
        self._total = 0
        self._sizes: list[tuple[int, int]] = []  # of the batch's images, without padding
        self._hooks: list[RemovableHandle] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        plug = module.detector.self_reconstruction
        if plug is not None and plug.enhancer is not None:
            # float32 would count no further than 2**24
            self._passed = torch.zeros((), dtype=torch.float64, device=module.device)
            self._total = 0
            self._hooks = [  # of the enhancer: inference does not go through the plug's forward
                module.detector.transform.register_forward_hook(self._note_sizes),
                plug.enhancer.register_forward_hook(partial(self._count, plug)),
            ]

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        passed, total = mean(torch.stack([self._passed, self._passed.new_tensor(self._total)])).tolist()
        if total:
            module.log("filter_share", passed / total)

    def _note_sizes(self, transform: nn.Module, arguments: tuple[Any, ...], result: tuple[Any, ...]) -> None:
        """Called after the forward of `DetectionTransform`."""
        self._sizes = result[0].image_sizes

    @torch.compiler.disable
    def _count(
        self, plug: SelfReconstruction, enhancer: nn.Module, arguments: tuple[Tensor, Tensor], enhanced: Tensor
    ) -> None:
        """Adds a batch; called after `enhancer(features, difference)`, at whatever size the difference map is."""
        scale = plug.reconstruction_head.scale
        filters = plug.filter(arguments[1], (enhanced.shape[-2], enhanced.shape[-1]))
        for part, (height, width) in zip(filters, self._sizes, strict=True):
            passes = part[:, : -(-height // scale), : -(-width // scale)] > 1
            self._passed += passes.sum()
            self._total += passes.numel()


class Pictures(Callback):
    """Logs panels of a few test images, always the same ones, and the precision-recall curves of each evaluation.

    They go to TensorBoard and Weights & Biases, from the process of rank 0 alone.

    Args:
        evaluation: the evaluation, which comes before this among the callbacks.
        test_set: the test set.
        class_names: name of each class; label k is `class_names[k - 1]`.
        count: number of images, spread over the test set; at most 4, for every evaluation adds as many.
    """

    def __init__(
        self, evaluation: Evaluation, test_set: DetectionDataset, class_names: Sequence[str], count: int
    ) -> None:
        self.evaluation = evaluation
        self.test_set = test_set
        self.class_names = class_names
        self.count = count
        self._positions: list[int] | None = None  # of the images in the test set

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if is_main_process() and not trainer.sanity_checking:
            for name, picture in self._pictures(module):
                for logger in trainer.loggers:
                    _log_picture(logger, name, picture, trainer.global_step)

    def _pictures(self, module: L.LightningModule) -> Iterator[tuple[str, Image.Image]]:
        """The name and the picture of all that is to be shown."""
        assert isinstance(module, DetectionModule)
        found = self.evaluation.detections
        truth = self.test_set.ground_truth
        if self._positions is None:
            evaluated = [index for index, image in enumerate(truth["images"]) if image["id"] in found]
            count = min(self.count, MOST, len(evaluated))
            self._positions = [evaluated[number * len(evaluated) // count] for number in range(count)]
        for position in self._positions:
            image_id = truth["images"][position]["id"]
            if image_id not in found:  # it could be decoded once
                continue
            sample = self.test_set[position]
            [missed] = missed_objects(
                truth
                | {
                    "images": [truth["images"][position]],
                    "annotations": [entry for entry in truth["annotations"] if entry["image_id"] == image_id],
                },
                coco_results(found[image_id], image_id, self.evaluation.category_ids),
                score=SCORE,
            ).values()
            picture = sample_panel(module.detector, sample, found[image_id], missed, self.class_names)
            picture.thumbnail((LONGEST, LONGEST))
            yield f"panels/{Path(sample[1]['file_name']).stem}", picture
        canvas = FigureCanvasAgg(plot_curves(self.evaluation.curves))
        canvas.draw()
        yield "precision_recall", Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def check_wandb(project: str | None) -> None:
    """Looks whether Weights & Biases is there, if a run is to log to it: before the run begins.

    Raises:
        ValueError: if it is not installed.
    """
    if project is not None:
        try:
            WandbLogger(project=project)  # which begins no run yet
        except ModuleNotFoundError as error:
            raise ValueError(
                "wandb is set, but Weights & Biases is not installed; install it (pip install wandb) or leave wandb out"
            ) from error


def wandb_logger(folder: Path, project: str) -> WandbLogger:
    """The logger of a run at Weights & Biases, under the name of its folder; a resumed run goes on in the same place.

    Its own settings count: with `WANDB_MODE=offline` it writes to `logs/wandb` alone, for a later `wandb sync`.

    Args:
        folder: the run's folder.
        project: the project's name.
    """
    logs = folder / "logs"
    identity = logs / WANDB_ID
    if is_main_process() and not identity.is_file():
        logs.mkdir(exist_ok=True)
        identity.write_text(secrets.token_hex(4))
    run = identity.read_text() if identity.is_file() else None  # which only rank 0 needs
    return WandbLogger(name=folder.name, save_dir=logs, project=project, version=run)


def _log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step)
