"""Evaluation on the test set during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from srtod.data import Target
from srtod.evaluation import Curve, coco_results, detailed_evaluation
from srtod.models.checkpoint import METRICS

from ..distributed import gather, is_main_process

__all__ = ["Evaluation", "as_coco"]

Detections: TypeAlias = dict[int, dict[str, Tensor]]


class Evaluation(Callback):
    """Collects the detections of an evaluation, logs their metrics and saves the latest metrics in every checkpoint.

    Each process contributes the detections of its images. Rank 0 computes the metrics and sends them to the others, so
    that all processes agree on the best checkpoint.

    Args:
        ground_truth: the test set as a COCO dict. Images that the run leaves out (`limit_batches`,
            `skip_bad_images`) do not count.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.

    Attributes:
        detections: `boxes`, `labels` and `scores` of the latest evaluation, on the CPU, by image id.
        metrics: its metrics, see `srtod.evaluation.evaluate_detections`.
        curves: its precision-recall curves by size bin; in the process of rank 0 only.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: list[int]) -> None:
        self.ground_truth = ground_truth
        self.category_ids = category_ids
        self.detections: Detections = {}  # an image that two processes evaluated is in it once
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


def as_coco(
    ground_truth: Mapping[str, Any], detections: Detections, category_ids: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ground truth of the images that were evaluated, and their detections as COCO results.

    Args:
        ground_truth: the test set as a COCO dict.
        detections: see `Evaluation`; images that are missing in it do not count.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
    """
    evaluated = {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in detections],
        "annotations": [entry for entry in ground_truth["annotations"] if entry["image_id"] in detections],
    }
    # Sorted, so that the order does not depend on which process evaluated an image.
    results = [
        result
        for image_id in sorted(detections)
        for result in coco_results(detections[image_id], image_id, category_ids)
    ]
    return evaluated, results
