"""A reconstruction head that works at the resolution of the features alone (Shi et al., ESPCN, CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srtod.ops.conv3x3 import conv3x3
from srtod.ops.reference import nearest

__all__ = ["SubpixelHead"]

HIDDEN = 64


class SubpixelHead(nn.Module):
    """Reconstructs the image by `PixelShuffle(Conv(ReLU(Conv(P2))))`: a feature pixel makes scale x scale pixels.

    Both convolutions are 3x3 and run at the resolution of the features: 7 GMAC for an image of 800x800 and 256
    channels, where the paper's head takes 137. Its 3 * scale^2 output channels are the pixels of a block, colour by
    colour.

    The output layer starts with equal weights for all pixels of a block (ICNR, Aitken et al., 2017); otherwise the
    reconstruction is a checkerboard for hundreds of steps.

    Args:
        in_channels: channels of the feature map; any.
        scale: the stride of the feature map; 1 keeps its resolution.
        colours: channels of what is predicted: 3 for an image, 1 for a mask.

    Raises:
        ValueError: if `scale` or `in_channels` is not positive.
    """

    from_logits = True
    learns = True

    def __init__(self, in_channels: int = 256, scale: int = 4, colours: int = 3) -> None:
        super().__init__()
        if scale < 1 or in_channels < 1:
            raise ValueError(f"scale and in_channels must be positive, got {scale} and {in_channels}")
        self.in_channels = in_channels
        self.scale = scale
        self.conv = nn.Conv2d(in_channels, HIDDEN, kernel_size=3, padding=1)
        self.out = nn.Conv2d(HIDDEN, colours * scale**2, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.get_parameter("bias"))
        block = torch.empty(colours, HIDDEN, 3, 3)
        nn.init.kaiming_normal_(block, nonlinearity="linear")
        with torch.no_grad():
            self.out.weight.copy_(block.repeat_interleave(scale**2, dim=0))
        nn.init.zeros_(self.out.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructs the image.

        Args:
            features: `[N, in_channels, h, w]`.

        Returns:
            The reconstruction `I_r` in [0, 1], `[N, colours, scale * h, scale * w]`.

        Raises:
            ValueError: if `features` has another shape.
        """
        return self.logits(features).sigmoid()

    def logits(self, features: Tensor) -> Tensor:
        """The reconstruction before its sigmoid, float32 also under autocast; see `forward`."""
        return F.pixel_shuffle(self._decode(features, self.out.weight, self.out.bias), self.scale)

    def predict(self, features: Tensor, image: Tensor, *, recompute: bool = False) -> Tensor:
        """The logits of the image `[N, 3, H, W]`; as `ReconstructionHead.predict`, with nothing worth recomputing."""
        return self.logits(features)[:, :, : image.shape[2], : image.shape[3]]

    def predict_samples(self, features: Tensor, image: Tensor) -> Tensor:
        """The logits at the pixels that a nearest resize to the features' size takes, `[N, 3, h, w]`: for inference.

        Where the image is whole multiples of the features, those are the first pixel of each block: 3 of the output
        channels. See `ReconstructionHead.predict_samples`.
        """
        size = (features.shape[2], features.shape[3])
        if image.shape[-2:] != (self.scale * size[0], self.scale * size[1]):
            return nearest(self.predict(features, image), size)
        first, bias = slice(None, None, self.scale**2), self.out.get_parameter("bias")
        return self._decode(features, self.out.weight[first], bias[first])

    def _decode(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"SubpixelHead expects features [N, {self.in_channels}, h, w], got {list(features.shape)}; "
                f"build it with in_channels equal to the channels of the pyramid level"
            )
        if features.device.type == "cpu":  # where it makes convolutions faster than it costs
            features = features.contiguous(memory_format=torch.channels_last)
        x = conv3x3(features, self.conv.weight, self.conv.bias, relu=True)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.to(weight.dtype), weight, bias, padding=1)
