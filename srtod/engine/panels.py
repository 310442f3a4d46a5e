"""Panels of test images with what was missed in them: the same in the logs and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from srtod.data import Sample
from srtod.models import Detector
from srtod.visualization import SCORE, panel

__all__ = ["NO_DETECTIONS", "sample_panel"]

NO_DETECTIONS = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "scores": torch.zeros(0),
}


def sample_panel(
    detector: Detector,
    sample: Sample,
    detections: dict[str, Tensor],
    missed: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    score: float = SCORE,
) -> Image.Image:
    """The panel of one image, see `srtod.visualization.panel`; costs a reconstruction of it.

    Args:
        detector: the detector, in evaluation mode.
        sample: the image and its objects.
        detections: what the detector found in it: `boxes` `[K, 4]`, (x1, y1, x2, y2) in pixels, `labels` and `scores`.
        missed: the annotations that were missed, see `srtod.evaluation.missed_objects`.
        class_names: name of each class; label k is `class_names[k - 1]`.
        score: detections must score at least this to be drawn.
    """
    image, target = sample
    reconstruction = None
    if detector.self_reconstruction is not None:
        [reconstruction] = detector.reconstruct([image.to(next(detector.parameters()).device)])
    boxes = torch.tensor([annotation["bbox"] for annotation in missed], dtype=torch.float32).reshape(-1, 4)
    return panel(
        image,
        target,
        detections,
        reconstruction,
        class_names=class_names,
        score=score,
        missed=box_convert(boxes, "xywh", "xyxy"),
    )
