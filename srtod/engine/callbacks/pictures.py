"""Pictures of test images with what the detector found and missed, for the logs and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from srtod._support.names import utf8
from srtod.data import DetectionDataset, Sample
from srtod.evaluation import Outcomes, coco_results, outcomes, plot_curves
from srtod.models import Detector
from srtod.visualization import drawn_from, panel

from ..distributed import is_main_process
from ..module import DetectionModule
from .evaluation import Evaluation

__all__ = ["NO_DETECTIONS", "Pictures", "sample_panel"]

MOST = 4  # panels of an evaluation
LONGEST = 4096  # pixels: the longer side of a logged picture
NO_DETECTIONS = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "scores": torch.zeros(0),
}


class Pictures(Callback):
    """Logs panels of a few test images, always the same ones, and the precision-recall curves of each evaluation.

    They go to TensorBoard and Weights & Biases. Only the process of rank 0 makes them.

    Args:
        evaluation: the evaluation, which must come before this callback.
        test_set: the test set.
        class_names: name of each class; label k is `class_names[k - 1]`.
        count: number of images, spread over the test set. It is at most 4, since every evaluation adds as many.
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
        """Each picture with its name."""
        assert isinstance(module, DetectionModule)
        found = self.evaluation.detections
        truth = self.test_set.ground_truth
        if self._positions is None:
            evaluated = [index for index, image in enumerate(truth["images"]) if image["id"] in found]
            count = min(self.count, MOST, len(evaluated))
            self._positions = [evaluated[number * len(evaluated) // count] for number in range(count)]
        score = drawn_from(self.evaluation.metrics)
        for position in self._positions:
            image_id = truth["images"][position]["id"]
            if image_id not in found:  # the image cannot be decoded any more
                continue
            sample = self.test_set[position]
            [judged] = outcomes(
                truth
                | {
                    "images": [truth["images"][position]],
                    "annotations": [entry for entry in truth["annotations"] if entry["image_id"] == image_id],
                },
                coco_results(found[image_id], image_id, self.evaluation.category_ids),
                score=score,
            ).values()
            picture = sample_panel(module.detector, sample, found[image_id], judged, self.class_names, score=score)
            picture.thumbnail((LONGEST, LONGEST))
            yield f"panels/{utf8(Path(sample[1]['file_name']).stem)}", picture
        canvas = FigureCanvasAgg(plot_curves(self.evaluation.curves))
        canvas.draw()
        yield "precision_recall", Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def sample_panel(
    detector: Detector,
    sample: Sample,
    detections: dict[str, Tensor],
    outcomes: Outcomes,
    class_names: Sequence[str],
    *,
    score: float,
) -> Image.Image:
    """The panel of one image, see `srtod.visualization.panel`; it costs one reconstruction of the image.

    Args:
        detector: the detector, in evaluation mode.
        sample: the image and its objects.
        detections: what the detector found in it: `boxes` `[K, 4]`, (x1, y1, x2, y2) in pixels, `labels` and `scores`.
        outcomes: what became of its objects and detections at this score, see `srtod.evaluation.outcomes`.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
    """
    image, target = sample
    reconstruction = None
    if detector.self_reconstruction is not None:
        [reconstruction] = detector.reconstruct([image.to(next(detector.parameters()).device)])
    return panel(image, target, detections, reconstruction, class_names=class_names, score=score, outcomes=outcomes)


def _log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step)
