"""The paper's reconstruction head: from the lowest pyramid level back to the image (SR-TOD, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srtod.ops import reference
from srtod.ops.conv3x3 import conv3x3
from srtod.ops.reference import nearest

from .strips import Strip, strips

__all__ = ["ReconstructionHead", "Up"]

Convolve = Callable[..., Tensor]
"""`reference.conv3x3`, or `conv3x3`, which is faster on some CPUs and rounds otherwise."""


class Up(nn.Module):
    """Doubles the resolution and halves the channels: `ReLU(Conv2(ReLU(Conv1(TranConv(X)))))` (SR-TOD, Eq. 1).

    The 3x3 convolutions have no bias, and nothing stands between the transposed convolution and `Conv1`.

    Args:
        in_channels: channels of the input; even.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        channels = in_channels // 2
        self.transpose = nn.ConvTranspose2d(in_channels, channels, kernel_size=4, stride=2, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        # PyTorch's default shrinks the signal in every layer, and there is no norm to restore it: the head would stay
        # at a grey image for thousands of steps. These keep its scale (He et al., 2015); an output pixel of the
        # transposed convolution sees 2x2 of its 4x4 kernel, and no ReLU follows.
        nn.init.normal_(self.transpose.weight, std=(4 * in_channels) ** -0.5)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")

    def forward(self, x: Tensor, convolve: Convolve = reference.conv3x3) -> Tensor:
        """Maps `[N, C, H, W]` to `[N, C/2, 2H, 2W]`."""
        x = convolve(self.transpose(x), self.conv1.weight, relu=True)
        return convolve(x, self.conv2.weight, relu=True)


class ReconstructionHead(nn.Sequential):
    """Reconstructs the image from a feature map: `I_r = sigmoid(Conv(Up(Up(P2))))` (SR-TOD, Eq. 2).

    One `Up` block for each doubling: two for P2 (stride 4) as in the paper. Three for P3 (stride 8), which the paper
    mentions for one-stage detectors without giving a structure, are this library's design. Parameters come in the order
    up1 (transpose weight, transpose bias, conv1, conv2), up2, ..., out (weight, bias).

    Args:
        in_channels: channels of the feature map, divisible by `scale`.
        scale: the stride of the feature map, a power of two.

    Raises:
        ValueError: if `scale` is not a power of two above 1, or does not divide `in_channels`.
    """

    from_logits = True
    learns = True

    out: nn.Conv2d

    def __init__(self, in_channels: int = 256, scale: int = 4) -> None:
        super().__init__()
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"scale must be a power of two above 1 (4 for P2, 8 for P3), got {scale}")
        if in_channels < scale or in_channels % scale:
            raise ValueError(
                f"in_channels must be a positive multiple of scale={scale}, because each Up block halves the channels, "
                f"got {in_channels}"
            )
        self.in_channels = in_channels
        self.scale = scale
        channels = in_channels
        for index in range(1, scale.bit_length()):
            self.add_module(f"up{index}", Up(channels))
            channels //= 2
        self.add_module("out", nn.Conv2d(channels, 3, kernel_size=3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructs the image.

        Args:
            features: `[N, in_channels, h, w]`.

        Returns:
            The reconstruction `I_r` in [0, 1], `[N, 3, scale * h, scale * w]`.

        Raises:
            ValueError: if `features` has another shape.
        """
        return self.logits(features).sigmoid()

    def logits(self, features: Tensor) -> Tensor:
        """The reconstruction before its sigmoid, `[N, 3, scale * h, scale * w]`; see `forward`.

        Under autocast they are float32 all the same, so that a difference of a few grey levels is not rounded.
        """
        self._check(features)
        return self.predict_strip(features, Strip.whole(features.shape[2]), reference.conv3x3)

    def predict(self, features: Tensor, image: Tensor, *, recompute: bool = False) -> Tensor:
        """The logits of the image, `[N, 3, H, W]`, up to rounding.

        Args:
            features: `[N, in_channels, h, w]`.
            image: `[N, 3, H, W]`, the top-left part of what is reconstructed; its size alone counts.
            recompute: whether the backward pass computes the head's maps anew, strip by strip, instead of keeping them.

        Raises:
            ValueError: as `forward`.
        """
        self._check(features)
        height, width = image.shape[-2:]
        if not (recompute and torch.is_grad_enabled()):
            return self.predict_strip(features, Strip.whole(features.shape[2]))[:, :, :height, :width]
        parts: list[Tensor] = [
            checkpoint(
                self.predict_strip,
                features[:, :, strip.first : strip.last],
                strip,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing here is random
            )
            for strip in strips(features)
        ]
        return torch.cat(parts, dim=2)[:, :, :height, :width]

    def predict_strip(self, features: Tensor, strip: Strip, convolve: Convolve = conv3x3) -> Tensor:
        """The logits of a strip, `[N, 3, scale * (bottom - top), scale * w]`; see `logits`.

        Args:
            features: the strip's rows from `first` to `last`, `[N, in_channels, last - first, w]`.
            strip: which rows of the features those are.
            convolve: how the 3x3 convolutions run.
        """
        x = self._to_last(features)
        for up in self._ups:
            x = up(x, convolve)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.out(x.to(self.out.weight.dtype))
        first, scale = strip.first, self.scale
        return logits[:, :, scale * (strip.top - first) : scale * (strip.bottom - first)]

    def predict_samples(self, features: Tensor, image: Tensor) -> Tensor:
        """The logits at the pixels that a nearest resize to the features' size takes, and at no others: for inference.

        Those are one in `scale * scale`, and the output convolution runs on these alone.

        Args:
            features: as in `forward`.
            image: as in `predict`.

        Returns:
            `[N, 3, h, w]`.

        Raises:
            ValueError: as `forward`.
        """
        scale, (h, w) = self.scale, (features.shape[2], features.shape[3])
        if image.shape[-2:] != (scale * h, scale * w):
            return nearest(self.predict(features, image), (h, w))
        x = self._to_last(features)
        for up in self._ups:
            x = up(x, conv3x3)
        out = self.out
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.to(out.weight.dtype), out.weight, out.bias, stride=scale, padding=1)

    @property
    def _ups(self) -> Sequence[Up]:
        *ups, _ = self
        return cast("Sequence[Up]", ups)

    def _to_last(self, features: Tensor) -> Tensor:
        """The features in the layout that convolutions are fastest in, on both kinds of device; it stays so."""
        self._check(features)
        return features.contiguous(memory_format=torch.channels_last)

    def _check(self, features: Tensor) -> None:
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"ReconstructionHead expects features [N, {self.in_channels}, h, w], got {list(features.shape)}; "
                f"build it with in_channels equal to the channels of the pyramid level"
            )
