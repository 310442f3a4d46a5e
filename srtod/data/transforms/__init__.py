"""Transforms of `(image, target)` samples, on torchvision.transforms.v2."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.transforms import v2

from .copy_paste import CopyPaste
from .geometry import ObjectCrop, RandomScale

__all__ = ["CopyPaste", "ObjectCrop", "RandomScale", "training_transforms"]


def training_transforms(
    horizontal_flip: float = 0.5,
    scale_jitter: Sequence[float] | None = None,
    crop: int | None = None,
    photometric: float = 0.0,
    copy_paste: int = 0,
) -> v2.Transform:
    """The augmentation of training samples; by default the paper's, a horizontal flip alone.

    Boxes stay exact to the rounding of float32, images float32 in [0, 1], and `labels` and `ignore` go along. Every
    random number comes from torch's generator.

    Args:
        horizontal_flip: probability of the flip, x to W - x.
        scale_jitter: lowest and highest factor on the image's size, see `RandomScale`; None leaves it.
        crop: side of the window that is cut out, in pixels, see `ObjectCrop`; None keeps the whole image.
        photometric: probability of a distortion of brightness, contrast, saturation, hue and the order of the channels,
            torchvision's `RandomPhotometricDistort`.
        copy_paste: the most tiny objects that are copied to other places of their image, see `CopyPaste`.

    Raises:
        ValueError: if a probability is outside [0, 1], or an option out of its range.
    """
    for name, probability in (("horizontal_flip", horizontal_flip), ("photometric", photometric)):
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"{name} must be a probability in [0, 1], got {probability}")
    # The scale first, so that the window of the crop has its size in pixels that the detector is given. Objects are
    # copied after both: every copy lies in the window, none is resampled, and objects that the crop cut count as
    # ignore regions already. The distortion last, on the fewest pixels and on copies and their surroundings alike.
    steps: list[v2.Transform] = []
    if scale_jitter is not None:
        steps.append(RandomScale(scale_jitter))
    if crop is not None:
        steps.append(ObjectCrop(crop))
    steps.append(v2.RandomHorizontalFlip(horizontal_flip))
    if copy_paste:
        steps.append(CopyPaste(copy_paste))
    if photometric:
        steps.append(v2.RandomApply([v2.RandomPhotometricDistort()], photometric))
    return v2.Compose(steps)
