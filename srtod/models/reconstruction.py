"""The reconstruction head: from the lowest pyramid level back to the image (SR-TOD, Sec. 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ReconstructionHead", "Up"]


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
        x = F.relu(self.conv1(self.transpose(x)), inplace=True)
        return F.relu(self.conv2(x), inplace=True)


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
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"ReconstructionHead expects features [N, {self.in_channels}, h, w], got {list(features.shape)}; "
                f"build it with in_channels equal to the channels of the pyramid level"
            )
        return super().forward(features)
