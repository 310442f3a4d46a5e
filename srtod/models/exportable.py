"""A detector as a function of one tensor, with outputs of fixed shapes: what `torch.export` takes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .detector import Detector

__all__ = ["ExportableDetector"]


class ExportableDetector(nn.Module):
    """A detector for a batch of images of one size, which are not resized.

    It finds what `detector(list(images))` finds whose transform leaves images at their size, up to the rounding of
    sums. The difference is the form of the detections.

    Args:
        detector: the detector, in evaluation mode; used and not copied.
    """

    detector: Detector
    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        mean, std = (
            Tensor(values)[:, None, None] for values in (detector.transform.image_mean, detector.transform.image_std)
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds objects; D is the detector's `detections_per_image`.

        Args:
            images: RGB `[N, 3, H, W]` in [0, 1], float32.

        Returns:
            Boxes `[N, D, 4]`, (x1, y1, x2, y2) in pixels, labels `[N, D]`, int64, and scores `[N, D]` in [0, 1], best
            first. Places behind the last detection of an image are 0.
        """
        detector = self.detector
        size = (images.shape[2], images.shape[3])
        divisor = detector.transform.size_divisible
        height, width = (divisor * ((side + divisor - 1) // divisor) for side in size)
        padding = (0, width - size[1], 0, height - size[0])
        pixels = F.pad(images, padding)
        batch = F.pad((images - self.mean) / self.std, padding)
        features = detector.neck(detector.backbone(batch))
        if detector.self_reconstruction is not None:
            finest = next(iter(features))
            features[finest] = detector.self_reconstruction.enhance(features[finest], pixels)
        head: Any = detector.head
        boxes, labels, scores = head.padded(features, size)
        return boxes, labels, scores
