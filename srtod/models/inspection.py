"""What pictures of a detector's self-reconstruction are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .reconstruction import SelfReconstruction

__all__ = ["ImageReconstruction", "reconstruct_images"]


class ImageReconstruction(NamedTuple):
    """The self-reconstruction of one image, without padding, at the size the detector works at.

    Attributes:
        image: the image in [0, 1], `[3, h, w]`.
        reconstruction: the reconstruction in [0, 1], `[3, h, w]`.
        difference: the difference map in [0, 1], `[1, h, w]`.
        filter: the filter on the pyramid level, values 1 to 2, `[1, ceil(h / stride), ceil(w / stride)]`; None with
            `enhancement="none"`.
        features: how strongly the level responds before its enhancement, of the filter's size: the mean over channels
            of its absolute values. The level has no activation, so that its positive and negative values both carry
            signal and would cancel in a plain mean. What the paper's Fig. 1 and 4 show of P2, it does not say.
        enhanced: the same after the enhancement; None without one.
        stride: stride of the pyramid level: 4 for P2, 8 for P3.
    """

    image: Tensor
    reconstruction: Tensor
    difference: Tensor
    filter: Tensor | None
    features: Tensor
    enhanced: Tensor | None
    stride: int


def reconstruct_images(
    self_reconstruction: SelfReconstruction, features: Tensor, images: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[ImageReconstruction]:
    """Reconstructs the images of a batch as a whole, which inference does not.

    Args:
        self_reconstruction: the module, in evaluation mode.
        features: the pyramid level, `[N, C, h, w]`; the enhancement may overwrite it.
        images: the un-normalised batch `[N, 3, H, W]` in [0, 1].
        sizes: (height, width) of each image without its padding.
    """
    before = _strength(features)  # measured before the enhancement, which may overwrite the features
    enhanced, output = self_reconstruction(features, images, sizes)
    reconstructions = output.reconstruction
    filters = after = None
    if self_reconstruction.enhancer is not None:
        filters = self_reconstruction.filter(output.difference, (features.shape[2], features.shape[3]))
        after = _strength(enhanced)
    stride = self_reconstruction.scale
    results = []
    for index, (height, width) in enumerate(sizes):
        pixel = (index, slice(None), slice(height), slice(width))
        cell = (index, slice(None), slice(-(-height // stride)), slice(-(-width // stride)))
        results.append(
            ImageReconstruction(
                image=images[pixel],
                reconstruction=reconstructions[pixel],
                difference=output.difference[pixel],
                filter=None if filters is None else filters[cell],
                features=before[cell],
                enhanced=None if after is None else after[cell],
                stride=stride,
            )
        )
    return results


def _strength(features: Tensor) -> Tensor:
    """The mean over the channels of the absolute values, `[N, C, h, w]` to `[N, 1, h, w]`, float32."""
    return torch.linalg.vector_norm(features, 1, dim=1, keepdim=True, dtype=torch.float32) / features.shape[1]
