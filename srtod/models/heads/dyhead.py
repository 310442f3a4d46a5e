"""The dynamic head (Dai et al., "Dynamic Head: Unifying Object Detection Heads with Attentions", CVPR 2021) on ATSS."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from ..layers import deformable_conv2d
from .atss import ATSSHead
from .dense import make_group_norm
from .padded import PaddedDetections

__all__ = ["DyHead", "DyHeadBlock"]


class DyHead(ATSSHead):
    """The head of ATSS with dynamic blocks, shared by classes and boxes, in the place of its towers.

    Args:
        channels: channels of the pyramid.
        num_classes: number of classes, background included.
        blocks: how many blocks one after the other (paper: 6).
        options: of `ATSSHead`.

    Raises:
        ValueError: if there is no block.
    """

    def __init__(self, channels: int, num_classes: int, *, blocks: int = 6, **options: Any) -> None:
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        super().__init__(channels, num_classes, tower_depth=0, **options)
        self.blocks = nn.Sequential(*(DyHeadBlock(channels) for _ in range(blocks)))

    def forward(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """See `srtod.models.heads` and `DenseHead`."""
        return super().forward(batch, self._attended(features), targets)

    def padded(self, features: dict[str, Tensor], size: tuple[int, int]) -> PaddedDetections:
        """See `srtod.models.heads`."""
        return super().padded(self._attended(features), size)

    def _attended(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(features, self.blocks(list(features.values())), strict=True))


class DyHeadBlock(nn.Module):
    """Three attentions over a pyramid, of one channel count, one after the other as in the authors' code:

    1. over space: a deformable convolution with a mask, of the level itself and of its neighbours, all with the offsets
       and the mask that the level gives;
    2. over scales: each of the three is weighted by the hard sigmoid of its mean over the map, and the mean of them is
       taken;
    3. over tasks: a ReLU whose slopes and offsets depend on the mean over the map, for each channel (`DynamicReLU`).

    Not as in the authors' code: the coarser neighbour takes the offsets and the mask of every second place, which is
    its own. There it takes those of the level's upper left quarter.

    Args:
        channels: channels of every level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own, self.finer, self.coarser = (ModulatedConv2d(channels, stride=stride) for stride in (1, 2, 1))
        self.offsets = nn.Conv2d(channels, 3 * 9, 3, padding=1)  # a row, a column and a weight for each place
        self.scale = nn.Conv2d(channels, 1, 1)
        self.activation = DynamicReLU(channels)
        nn.init.zeros_(self.offsets.weight)
        nn.init.normal_(self.scale.weight, std=0.01)
        for conv in (self.offsets, self.scale):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Maps the levels `[N, C, h, w]`, finest first and each half as large as the last, rounded up, to the same."""
        outputs = []
        for index, level in enumerate(levels):
            moves = self.offsets(level)
            terms = [self._weighted(self.own(level, moves))]
            if index > 0:
                terms.append(self._weighted(self.finer(levels[index - 1], moves)))
            if index < len(levels) - 1:
                coarser = self.coarser(levels[index + 1], moves[..., ::2, ::2])
                coarser = F.interpolate(coarser, level.shape[-2:], mode="bilinear", align_corners=False)
                terms.append(self._weighted(coarser))
            outputs.append(self.activation(torch.stack(terms).mean(dim=0)))
        return outputs

    def _weighted(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.scale(x.mean((2, 3), keepdim=True)).relu())


class ModulatedConv2d(nn.Module):
    """A deformable 3x3 convolution with a mask, and group norm.

    Args:
        channels: channels, in and out.
        stride: of the convolution.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = (stride, stride)
        self.weight = nn.Conv2d(channels, channels, 3).weight
        self.norm = make_group_norm(channels, groups=16)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        moves: Tensor,  # [N, 27, H', W'], of which 18 are offsets and 9 the logits of the mask
    ) -> Tensor:
        """`[N, C, H', W']`."""
        mask = moves[:, 18:].sigmoid()
        y = deformable_conv2d(x, moves[:, :18], self.weight, mask=mask, stride=self.stride, padding=(1, 1))
        return self.norm(y)


class DynamicReLU(nn.Module):
    """`max(a1 x + b1, a2 x + b2)` with values for each image and channel (Chen et al., "Dynamic ReLU", ECCV 2020).

    They follow from the mean over the map by two layers. At the start they are close to those of ReLU: 1, 0, 0 and 0.

    Args:
        channels: channels, in and out.
        reduction: ratio by which the layers narrow.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.layers = nn.Sequential(nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, 4 * channels, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, C, h, w]` to the same."""
        values = F.hardsigmoid(self.layers(x.mean((2, 3), keepdim=True))) - 0.5
        a1, b1, a2, b2 = values.chunk(4, dim=1)
        return torch.maximum(x * (1 + 2 * a1) + b1, x * (2 * a2) + b2)
