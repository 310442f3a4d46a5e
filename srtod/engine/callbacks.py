"""Callbacks: the evaluation on the test set, and checkpoints that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torchvision.ops import box_convert

from srtod.checkpoint import METRICS, write_checkpoint
from srtod.data import Target
from srtod.evaluation import evaluate_detections

__all__ = ["AtomicCheckpointIO", "Evaluation", "ProgressBar", "best_checkpoint", "coco_results", "last_checkpoint"]


class Evaluation(Callback):
    """Collects the detections of an evaluation, logs their metrics and puts the latest into every checkpoint.

    Args:
        ground_truth: the test set as a COCO dict. Images that the run leaves out (`limit_batches`) do not count.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
    """

    def __init__(self, ground_truth: dict[str, Any], category_ids: list[int]) -> None:
        self.ground_truth = ground_truth
        self.category_ids = category_ids
        self.image_ids: set[int] = set()
        self.detections: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.image_ids, self.detections = set(), []

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
            self.image_ids.add(target["image_id"])
            self.detections += coco_results(detections, target["image_id"], self.category_ids)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        images = [image for image in self.ground_truth["images"] if image["id"] in self.image_ids]
        annotations = [entry for entry in self.ground_truth["annotations"] if entry["image_id"] in self.image_ids]
        seen = self.ground_truth | {"images": images, "annotations": annotations}
        self.metrics = evaluate_detections(seen, self.detections)
        for name, value in self.metrics.items():
            module.log(name, value, prog_bar=name == "AP")

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[METRICS] = self.metrics


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the version of the logs, which is the same in every run."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written by `srtod.checkpoint.write_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)


def best_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps `best.ckpt` in `folder`: the highest AP."""
    return ModelCheckpoint(
        folder, "best", monitor="AP", mode="max", save_on_train_epoch_end=False, enable_version_counter=False
    )


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps `last.ckpt` in `folder`: the last finished epoch."""
    return ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def coco_results(detections: dict[str, Tensor], image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format.

    Args:
        detections: `boxes` `[K, 4]`, (x1, y1, x2, y2) in pixels, `labels` `[K]` and `scores` `[K]`.
        image_id: the image's id in the ground truth.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
    """
    boxes = box_convert(detections["boxes"], "xyxy", "xywh").tolist()
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
