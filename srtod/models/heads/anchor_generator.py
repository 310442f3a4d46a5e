"""Anchors at every place of the feature pyramid, exact to the fraction of a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

__all__ = ["ASPECT_RATIOS", "PyramidAnchors"]

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchors, in three things made exact enough for tiny objects.

    Their type is float32, not the features': bfloat16 rounds a coordinate of 1000 to a multiple of 4 pixels. Their
    sides are not rounded to even pixels. And they stand a stride apart, not the batch's size over the level's: at 800
    pixels P6 has 13 places, and 800 // 13 = 61 would shift its last anchor by 36 pixels.

    Args:
        strides: stride of each level, in pixels.
        sizes: sides of the square anchors of each level, in pixels.
        ratios: height by width of the anchors; their area is the square's.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float] = ASPECT_RATIOS
    ) -> None:
        super().__init__(tuple(tuple(of_level) for of_level in sizes), (tuple(ratios),) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image, `[A, 4]`, (x1, y1, x2, y2) in pixels; `feature_maps` are `[N, C, h, w]`."""
        anchors = torch.cat(self.of_levels(feature_maps))
        return [anchors for _ in image_list.image_sizes]

    def of_levels(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors of each level, `[h * w * A, 4]`; `feature_maps` are `[N, C, h, w]`."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes = [[level.shape[-2], level.shape[-1]] for level in feature_maps]
        levels: list[Tensor] = self.grid_anchors(sizes, [[stride, stride] for stride in self.strides])
        return levels

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008, torchvision's own default
    ) -> Tensor:
        """The anchors of one place, `[len(aspect_ratios) * len(scales), 4]`, around (0, 0), in pixels."""
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        half = torch.stack(((sides / roots).flatten(), (sides * roots).flatten()), dim=1) / 2
        return torch.cat((-half, half), dim=1)
