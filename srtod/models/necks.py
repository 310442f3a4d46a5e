"""Necks: from the backbone's maps C2-C5 to the feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

__all__ = ["FPN"]


class FPN(FeaturePyramidNetwork):
    """Feature pyramid P2-P6, strides 4 to 64 (Lin et al., "Feature Pyramid Networks for Object Detection", 2017).

    torchvision's pyramid with its levels named "p2" to "p6"; P6 is every second pixel of P5.

    Args:
        in_channels: channels of C2 to C5.
        channels: channels of every level.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(list(in_channels), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, features: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps C2-C5, each `[N, in_channels, h, w]`, to P2-P6, each `[N, channels, h, w]`, finest level first."""
        levels = super().forward(features)
        return OrderedDict((f"p{index}", level) for index, level in enumerate(levels.values(), start=2))
