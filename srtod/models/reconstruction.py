"""The reconstruction head: from the lowest pyramid level back to the image (SR-TOD, Sec. 3.2)."""

from __future__ import annotations

import contextlib
import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srtod.ops import is_fused, reconstruction_difference, reconstruction_tail, sampled_difference_map, use_reference
from srtod.ops.reference import nearest_index

from .composition import composed, pays, relu_

__all__ = ["ReconstructionHead", "Up"]

_STRIP = 128
"""Rows of features that are recomputed at once, at most."""

_SEEN = 3
"""How many rows of features the reconstruction of a row depends on beyond its own, in either direction."""


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

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, C, H, W]` to `[N, C/2, 2H, 2W]`."""
        return F.relu(self.conv2(self.expand(x)), inplace=True)

    def expand(self, x: Tensor) -> Tensor:
        """What the last convolution, and nothing else, works on; the same shapes as `forward`.

        Where gradients are recorded, without the map between transposed convolution and `Conv1`, a third of what the
        block would keep for the backward pass.
        """
        # Not compiled: torch 2.11 gets the gradients wrong then.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and pays(self.conv1, x):
            return composed(self.transpose, self.conv1, x)
        return relu_(self.conv1(self.transpose(x)))


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
        """The reconstruction before its sigmoid, `[N, 3, scale * h, scale * w]`; see `forward`."""
        return cast("Tensor", self.out(self._decode(features)))

    def _decode(self, features: Tensor) -> Tensor:
        """What the output convolution, and nothing else, works on, `[N, in_channels / scale, scale * h, scale * w]`."""
        return relu_(self._last_up.conv2(self._expand_last(features)))

    def compare(
        self, features: Tensor, image: Tensor, *, valid_size: Tensor | None = None, recompute: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructs the image and compares it with the real one: difference map, mean squared error and logits.

        Args:
            features: as in `forward`.
            image: `[N, 3, H, W]` in [0, 1], the top-left part of what is reconstructed.
            valid_size: where the error counts, see `srtod.ops.reconstruction_tail`, which also says what is returned.
            recompute: whether the backward pass computes the head's maps anew, strip by strip, instead of keeping them;
                the logits are then compared in a pass of their own.

        Raises:
            ValueError: as `forward`.
        """
        if not (recompute and torch.is_grad_enabled()):
            return self._compare(features, image, valid_size)
        self._check(features)
        logits = _joined(
            [self._logits_in_strips(*pair) for pair in zip(features.split(1), image.split(1), strict=True)]
        )
        difference, mse = reconstruction_difference(
            logits, image.to(logits.dtype), from_logits=True, valid_size=valid_size
        )
        return difference.to(image.dtype), mse, logits

    def _compare(self, features: Tensor, image: Tensor, valid_size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return reconstruction_tail(self._decode(features), self.out.weight, self._bias, image, valid_size=valid_size)

    def _logits_in_strips(self, features: Tensor, image: Tensor) -> Tensor:
        """The logits of one image, of which the backward pass recomputes one strip of rows after the other."""
        form = contextlib.nullcontext if is_fused(features.device) else use_reference  # the backward pass may ask again

        def logits(x: Tensor, y: Tensor) -> Tensor:
            with form():
                return self._compare(x, y, None)[2]

        height, strips = -(-image.shape[2] // self.scale), []
        count = -(-height // _STRIP)
        edges = [height * index // count for index in range(count + 1)]
        for top, bottom in itertools.pairwise(edges):
            first, last = max(top - _SEEN, 0), min(bottom + _SEEN, features.shape[2])
            strip: Tensor = checkpoint(
                logits,
                features[:, :, first:last],
                image[:, :, self.scale * first : self.scale * last],
                use_reentrant=False,
                preserve_rng_state=False,  # nothing here is random
            )
            strips.append(strip[:, :, self.scale * (top - first) : self.scale * (bottom - first)])
        return _joined(strips, dim=2)

    def sampled_difference(self, features: Tensor, image: Tensor) -> Tensor:
        """The difference map at the pixels that a nearest resize to the features' size looks at, and at no others.

        Those are one in `scale * scale`. The output convolution, the sigmoid and the difference run for them alone, and
        the last 3x3 convolution, at scale 4, on the 9 pixels of 16 around them: on a GPU nine strided convolutions. On
        the CPU three strided by rows, over 12 of 16: there nine are no faster than one over all pixels.

        Args:
            features: as in `forward`.
            image: `[N, 3, H, W]` in [0, 1], the top-left part of what the head reconstructs.

        Returns:
            `[N, 1, h, w]` in float32 (float64 for float64 features): logits are not rounded to half precision, so that
            a comparison with a threshold is exact.

        Raises:
            ValueError: as `forward`.
        """
        x, conv = self._expand_last(features), self._last_up.conv2
        h, w = features.shape[-2:]
        if self.scale < 4 or image.shape[-2:] != (self.scale * h, self.scale * w):
            maps = _around(F.relu(conv(x), inplace=True), (h, w), (image.shape[2], image.shape[3]))
        else:
            maps = [
                beside_samples(x, conv.weight, self.scale, dy, dx)
                for dy in (-1, 0, 1)
                for dx in ((-1, 0, 1) if x.is_cuda else (None,))
            ]
        return sampled_difference_map(maps, self.out.weight, self._bias, image)

    @property
    def _last_up(self) -> Up:
        return cast("Up", self[-2])

    @property
    def _bias(self) -> Tensor:
        return cast("Tensor", self.out.bias)

    def _expand_last(self, features: Tensor) -> Tensor:
        self._check(features)
        # The layout that convolutions are fastest in, on both kinds of device; all that follows stays in it.
        features = features.contiguous(memory_format=torch.channels_last)
        *ups, _, _ = self
        for up in ups:
            features = up(features)
        return self._last_up.expand(features)

    def _check(self, features: Tensor) -> None:
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"ReconstructionHead expects features [N, {self.in_channels}, h, w], got {list(features.shape)}; "
                f"build it with in_channels equal to the channels of the pyramid level"
            )


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def beside_samples(x: Tensor, weight: Tensor, scale: int, dy: int, dx: int | None) -> Tensor:
    """`ReLU(Conv3x3(x))` at the pixels (scale * i + dy, scale * j + dx), zeros where they are outside; dx None: at all
    pixels of the rows `scale * i + dy`."""
    h, w = x.shape[2] // scale, x.shape[3] // scale
    if dx is None:
        out = F.conv2d(x, weight, stride=(scale, 1), padding=(1 - dy, 1))[:, :, :h]
    else:
        out = F.conv2d(x, weight, stride=scale, padding=(1 - dy, 1 - dx))[:, :, :h, :w]
    if dy == -1:
        out[:, :, 0] = 0  # above the map there is the output convolution's padding
    if dx == -1:
        out[..., 0] = 0
    return F.relu(out, inplace=True)


def _around(x: Tensor, sampled: tuple[int, int], size: tuple[int, int]) -> list[Tensor]:
    """The nine pixels around each sample of a nearest resize from `size` to `sampled`, row by row, wherever it is."""
    x = F.pad(x, (1, 1, 1, 1))
    rows, columns = (nearest_index(to, of, x.device) for to, of in zip(sampled, size, strict=True))
    return [x.index_select(2, rows + dy).index_select(3, columns + dx) for dy in range(3) for dx in range(3)]
