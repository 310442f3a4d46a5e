"""Callbacks of a run: the evaluation on the test set, averaged weights, and a list of images that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, TQDMProgressBar
from torch import Tensor

from srtod.data import Target
from srtod.data.coco import name_some
from srtod.evaluation import Curve, coco_results, detailed_evaluation
from srtod.models.checkpoint import METRICS

from .data import DetectionData
from .distributed import gather, is_main_process

__all__ = ["AveragedWeights", "Evaluation", "ProgressBar", "UnreadableImages", "as_coco"]

Detections: TypeAlias = dict[int, dict[str, Tensor]]


class Evaluation(Callback):
    """Collects the detections of an evaluation, logs their metrics and puts the latest into every checkpoint.

    Each process brings the detections of its images. Rank 0 measures and tells the others, so that all agree on what
    is best.

    Args:
        ground_truth: the test set as a COCO dict. Images that the run leaves out (`limit_batches`,
            `skip_bad_images`) do not count.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.

    Attributes:
        detections: `boxes`, `labels` and `scores` of the latest evaluation, on the CPU, by image id.
        metrics: its metrics, see `srtod.evaluation.evaluate_detections`.
        curves: its precision-recall curves by size bin, in the process of rank 0 alone.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: list[int]) -> None:
        self.ground_truth = ground_truth
        self.category_ids = category_ids
        self.detections: Detections = {}  # what two processes both saw is there once
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, Curve] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.detections = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: tuple[list[Tensor], list[Target]],
        batch_index: int,
        dataloader_index: int = 0,
    ) -> None:
        for detections, target in zip(outputs["detections"], batch[1], strict=True):
            self.detections[target["image_id"]] = {name: value.cpu() for name, value in detections.items()}

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for detections in gather(self.detections):
            self.detections |= detections
        if is_main_process():
            measured = detailed_evaluation(*as_coco(self.ground_truth, self.detections, self.category_ids))
            self.metrics, self.curves = measured.metrics, measured.curves
        self.metrics = gather(self.metrics)[0]
        for name, value in self.metrics.items():
            module.log(name, value, prog_bar=name == "AP")

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[METRICS] = self.metrics

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.metrics = checkpoint[METRICS]


class AveragedWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, which evaluations and checkpoints then hold.

    After a step, average = decay * average + (1 - decay) * weights, from the weights after the first step on. Buffers
    are taken over as they are: frozen statistics would pick up rounding errors, and running ones are averages already.

    Args:
        decay: share of the average that a step keeps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)


class UnreadableImages(Callback):
    """Counts the images that were left out because they cannot be decoded, warns of new ones, and lists them in a file.

    Args:
        data: the run's data.
        path: the list, which is written when there is something to list.
    """

    def __init__(self, data: DetectionData, path: Path) -> None:
        self.data = data
        self.path = path
        self.known: dict[str, list[str]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._report()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._report()

    def state_dict(self) -> dict[str, Any]:
        return {kind: flags.nonzero().flatten().tolist() for kind, flags in self.data.unreadable.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for kind, indices in state_dict.items():
            self.data.unreadable[kind][indices] = 1

    def _report(self) -> None:
        found: dict[str, list[str]] = {}
        sets = {"training": self.data.train_set, "test": self.data.test_set}
        for kind, flags in self.data.unreadable.items():
            flags |= torch.stack(gather(flags)).amax(0)
            images = sets[kind].ground_truth["images"] if flags.any() else []
            found[kind] = [images[index]["file_name"] for index in flags.nonzero().flatten().tolist()]
            if len(found[kind]) > len(self.known.get(kind, [])) and is_main_process():
                warnings.warn(
                    f"{len(found[kind])} of {len(flags)} {kind} images cannot be decoded and are left out: "
                    f"{name_some(found[kind])}; {self.path} lists them",
                    stacklevel=2,
                )
        if found != self.known and any(found.values()) and is_main_process():
            self.path.write_text("".join(f"{kind}: {name}\n" for kind, names in found.items() for name in names))
        self.known = found


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the version of the logs, which is the same in every run.

    It ends its line before an error is told.
    """

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()


def as_coco(
    ground_truth: Mapping[str, Any], detections: Detections, category_ids: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an evaluation saw, to be measured: the ground truth of its images, and their detections as COCO results.

    Args:
        ground_truth: the test set as a COCO dict.
        detections: see `Evaluation`; images that are not in it do not count.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
    """
    seen = {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in detections],
        "annotations": [entry for entry in ground_truth["annotations"] if entry["image_id"] in detections],
    }
    # In the order of the images' ids, whichever process found them.
    results = [
        result
        for image_id in sorted(detections)
        for result in coco_results(detections[image_id], image_id, category_ids)
    ]
    return seen, results
