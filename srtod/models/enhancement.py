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
import torch.nn.functional as F
from torch import Tensor, nn

from srtod.ops import channel_reweighting, filtration
from srtod.ops.surrogate import resize_code, resolve_alpha, surrogate_code

__all__ = ["Attention", "Concatenation", "GuidedEnhancement", "Multiplication"]


class GuidedEnhancement(nn.Module):
    """What the enhancements share: the threshold, and the guide made with it.

    Args:
        threshold: initial threshold `t` in the unit of the difference map, in [0, 1]; None for no threshold.
        learn_threshold: whether the threshold is a trained parameter.
        resize: how the guide comes to the level's size: "nearest" (the paper), "max", "area" or "bilinear".
        surrogate: gradient of the step, see `srtod.ops.filtration`.
        alpha: sharpness of the surrogate.

    Raises:
        ValueError: if an argument is not as above.
    """

    threshold: Tensor | None

    def __init__(
        self,
        *,
        threshold: float | None = 4 / 255,
        learn_threshold: bool = True,
        resize: str = "nearest",
        surrogate: str = "sigmoid",
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], such as 4 / 255, or None for no threshold, got {threshold}")
        resize_code(resize)
        surrogate_code(surrogate)
        self.resize, self.surrogate, self.alpha = resize, surrogate, resolve_alpha(surrogate, alpha)
        if threshold is None:
            self.register_parameter("threshold", None)
        elif learn_threshold:
            self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        else:
            self.register_buffer("threshold", torch.tensor(float(threshold)))

    def guide(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The guide `B` `[N, 1, h, w]` that a difference map `[N, 1, H, W]` makes for a level of `size` (h, w)."""
        if self.threshold is not None:
            filter_ = filtration(
                difference, self.threshold, size, resize=self.resize, surrogate=self.surrogate, alpha=self.alpha
            )
            return filter_ - 1
        if self.resize == "max":
            return F.adaptive_max_pool2d(difference, size)
        if self.resize == "area":
            return F.adaptive_avg_pool2d(difference, size)
        return F.interpolate(difference, size=size, mode=self.resize)

    @torch.no_grad()
    def clamp_threshold_(self) -> None:
        """Brings the threshold, if there is one, back into [0, 1]; call it after each optimizer step."""
        if self.threshold is not None:
            self.threshold.clamp_(0, 1)

    def extra_repr(self) -> str:
        return f"resize={self.resize}, surrogate={self.surrogate}, alpha={self.alpha:g}"


class Attention(GuidedEnhancement):
    """Element-wise attention, "EA" in Tab. 6: `P2' = Reweighting(P2) * (B + 1) * P2` (SR-TOD, Eq. 6).

    With a threshold this is DGFE in plain PyTorch, with the same names of parameters; it is here for DGFE without a
    threshold, `Filtration(D) = Resize(D) + 1`. Our reading of Tab. 5: the 1 of Eq. 4, which keeps the features where
    the map is zero, stays.

    Args:
        channels: C of the features.
        reduction: C / reduction is the width of the MLP's hidden layer.
        options: see `GuidedEnhancement`.

    Raises:
        ValueError: if `channels` is not a positive multiple of `reduction`, or an option is out of its range.
    """

    def __init__(self, channels: int, reduction: int = 16, **options: Any) -> None:
        super().__init__(**options)
        if channels < 1 or reduction < 1 or channels % reduction:
            raise ValueError(f"channels must be a positive multiple of reduction, got {channels} and {reduction}")
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, features: Tensor, difference: Tensor) -> Tensor:
        """Enhances `features` `[N, C, h, w]` by `difference` `[N, 1, H, W]`; same shape and dtype."""
        guide = self.guide(difference, (features.shape[2], features.shape[3]))
        mlp = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return features * channel_reweighting(features, *mlp) * (guide + 1).to(features.dtype)


class Multiplication(GuidedEnhancement):
    """Element-wise multiplication, "EM" in Tab. 6: `P2' = B * P2`.

    Our reading: without the 1 of Eq. 4, since the paper blames this variant that "inactive areas in the difference map
    can cause the obliteration of original features".

    Args:
        channels: C of the features; any, there is nothing to learn but the threshold.
        options: see `GuidedEnhancement`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(**options)

    def forward(self, features: Tensor, difference: Tensor) -> Tensor:
        """Enhances `features` `[N, C, h, w]` by `difference` `[N, 1, H, W]`; same shape and dtype."""
        guide = self.guide(difference, (features.shape[2], features.shape[3]))
        return features * guide.to(features.dtype)


class Concatenation(GuidedEnhancement):
    """Concatenation, "Concat" in Tab. 6: `P2' = Conv([P2, B])`, a 1x1 convolution of C + 1 channels to C with bias.

    Our reading: the paper says no more than that the binary map is concatenated with the features; something has to
    bring the channels back to C, and this is the least. It starts as `P2' = P2`, so that the detector starts as the
    plain one and learns what to add.

    Args:
        channels: C of the features.
        options: see `GuidedEnhancement`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(**options)
        self.conv = nn.Conv2d(channels + 1, channels, kernel_size=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.constant_(self.conv.get_parameter("bias"), 0)

    def forward(self, features: Tensor, difference: Tensor) -> Tensor:
        """Enhances `features` `[N, C, h, w]` by `difference` `[N, 1, H, W]`; same shape."""
        guide = self.guide(difference, (features.shape[2], features.shape[3]))
        enhanced: Tensor = self.conv(torch.cat([features, guide.to(features.dtype)], dim=1))
        return enhanced
