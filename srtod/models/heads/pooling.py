"""Pooling of regions from the feature pyramid, exact for regions smaller than a feature cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

__all__ = ["PyramidRoIAlign"]


class PyramidRoIAlign(nn.Module):
    """RoI align from the pyramid level that suits each region's size (He et al., "Mask R-CNN", 2017; Lin et al., 2017).

    torchvision's `MultiScaleRoIAlign` shifts regions by half a feature cell and widens those below one cell: on P2 that
    is 2 px and 4 px, as much as a tiny object. Here regions stay where they are and as large as they are
    (`roi_align(aligned=True)`), as in the framework that the paper's experiments ran in.

    Args:
        strides: stride of each level to pool from, finest first, in pixels; powers of two.
        output_size: side of the pooled maps.
        sampling_ratio: samples along each side of a bin; 0 for as many as the bin covers cells (at least 1).
    """

    def __init__(self, strides: Sequence[int], output_size: int = 7, sampling_ratio: int = 0) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        levels = [stride.bit_length() - 1 for stride in strides]
        self.names = [f"p{level}" for level in levels]
        self.map_levels = LevelMapper(min(levels), max(levels))

    def forward(
        self, features: Mapping[str, Tensor], boxes: list[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Pools every box.

        Args:
            features: the pyramid, each level `[N, C, h, w]`.
            boxes: boxes of each image, `[K_n, 4]`, (x1, y1, x2, y2) in pixels of the batch.
            image_sizes: not needed, as the strides are known; part of torchvision's calling convention.

        Returns:
            `[K_1 + ... + K_N, C, output_size, output_size]`.
        """
        images = torch.cat([torch.full_like(b[:, :1], index) for index, b in enumerate(boxes)])
        return self.pool(features, torch.cat([images, torch.cat(boxes)], dim=1))

    def pool(self, features: Mapping[str, Tensor], regions: Tensor) -> Tensor:
        """Pools regions `[K, 5]`, each the index of its image and its box, see `forward`: `[K, C, size, size]`."""
        level_of = self.map_levels([regions[:, 1:]])
        finest = features[self.names[0]]
        pooled = finest.new_zeros(regions.shape[0], finest.shape[1], self.output_size, self.output_size)
        for index, (name, stride) in enumerate(zip(self.names, self.strides, strict=True)):
            here = torch.where(level_of == index)[0]
            level = features[name].to(regions.dtype)  # not the other way round: bfloat16 would move boxes by 4 px
            maps = roi_align(level, regions[here], self.output_size, 1 / stride, self.sampling_ratio, aligned=True)
            pooled[here] = maps.to(pooled.dtype)
        return pooled
