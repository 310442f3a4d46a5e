"""The other ways to enhance a pyramid level by a difference map, which SR-TOD compares with DGFE (Tab. 5 and 6).

They share DGFE's calling convention, `enhance(features [N, C, h, w], difference [N, 1, H, W]) -> [N, C, h, w]`, and a
guide `B` of the level's size, `[N, 1, h, w]` in [0, 1]:

    B = Resize((sign(D - t) + 1) / 2)    with a threshold, learnable or fixed: the binary difference map D_b of Eq. 4
    B = Resize(D)                        without ("w/o T" in Tab. 5)

What the paper leaves open is marked as "our reading".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from srtod.ops import DGFE, channel_reweighting
from srtod.ops.threshold import Threshold

__all__ = ["Concatenation", "GuidedEnhancement", "Multiplication", "SoftDGFE"]


class GuidedEnhancement(Threshold):
    """What multiplication and concatenation share: the guide made by the threshold."""

    def guide(self, features: Tensor, difference: Tensor, valid: Tensor | None) -> Tensor:
        """The guide `B` `[N, 1, h, w]`, in the dtype of `features` `[N, C, h, w]`; see `DGFE.forward`."""
        size = (features.shape[2], features.shape[3])
        self.observe(difference, size, valid)
        return (self.filter(difference, size) - 1).to(features.dtype)


class Multiplication(GuidedEnhancement):
    """Element-wise multiplication, "EM" in Tab. 6: `P2' = B * P2`.

    Our reading: without the 1 of Eq. 4, since the paper blames this variant that "inactive areas in the difference map
    can cause the obliteration of original features".

    Args:
        channels: C of the features; any, there is nothing to learn but the threshold.
        options: see `srtod.ops.FiltrationOptions`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(**options)

    def forward(self, features: Tensor, difference: Tensor, valid: Tensor | None = None) -> Tensor:
        """Enhances `features` `[N, C, h, w]` by `difference` `[N, 1, H, W]`; same shape and dtype."""
        return features * self.guide(features, difference, valid)


class Concatenation(GuidedEnhancement):
    """Concatenation, "Concat" in Tab. 6: `P2' = Conv([P2, B])`, a 1x1 convolution of C + 1 channels to C with bias.

    Our reading: the paper says no more than that the binary map is concatenated with the features. Something has to
    bring the channels back to C, and this is the least. It starts as `P2' = P2`: the detector starts as the plain one
    and learns what to add.

    Args:
        channels: C of the features.
        options: see `srtod.ops.FiltrationOptions`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(**options)
        self.conv = nn.Conv2d(channels + 1, channels, kernel_size=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.constant_(self.conv.get_parameter("bias"), 0)

    def forward(self, features: Tensor, difference: Tensor, valid: Tensor | None = None) -> Tensor:
        """Enhances `features` `[N, C, h, w]` by `difference` `[N, 1, H, W]`; same shape."""
        enhanced: Tensor = self.conv(torch.cat([features, self.guide(features, difference, valid)], dim=1))
        return enhanced


class SoftDGFE(DGFE):
    """DGFE with `1 + sigmoid(alpha (D - t))` in place of the filtration's step; not of the paper.

    It has a gradient of its own, so that the surrogate's name has no effect. Without a threshold it is DGFE.
    """

    def filter(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The filter `[N, 1, h, w]`, values between 1 and 2; see `Threshold.filter`."""
        resized = self.resized(difference, size)
        if self.threshold is None:
            return 1 + resized
        return 1 + torch.sigmoid(self.alpha * (resized - self.used_threshold))

    def forward(self, features: Tensor, difference: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `DGFE.forward`."""
        size = (features.shape[2], features.shape[3])
        self.observe(difference, size, valid)
        mlp = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return features * channel_reweighting(features, *mlp) * self.filter(difference, size).to(features.dtype)
