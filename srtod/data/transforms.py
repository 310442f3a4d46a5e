"""Transforms of `(image, target)` samples, on torchvision.transforms.v2."""

from __future__ import annotations

from torchvision.transforms import v2

__all__ = ["training_transforms"]


def training_transforms(horizontal_flip: float = 0.5) -> v2.Transform:
    """The paper's only augmentation: a horizontal flip of image and boxes, x to W - x, which keeps every box valid.

    Whoever adds a crop: torchvision's `SanitizeBoundingBoxes` drops boxes thinner than 1 px, which are objects here.

    Args:
        horizontal_flip: probability of the flip.

    Raises:
        ValueError: if the probability is outside [0, 1].
    """
    if not 0.0 <= horizontal_flip <= 1.0:
        raise ValueError(f"horizontal_flip must be a probability in [0, 1], got {horizontal_flip}")
    return v2.RandomHorizontalFlip(horizontal_flip)
