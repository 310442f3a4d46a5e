"""The image in place of a reconstruction: averaged down to the features' resolution and interpolated up again."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from srtod.ops.reference import nearest

__all__ = ["ResampledImage"]


class ResampledImage(nn.Module):
    """What a high-pass of the image gives without any learning: no parameters, and the features play no part.

    It stands where a reconstruction head does and shows whether *self*-reconstruction matters. There is no loss.

    Args:
        scale: the stride of the feature map.
    """

    from_logits = False
    learns = False

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale

    def predict(self, features: Tensor, image: Tensor, *, recompute: bool = False) -> Tensor:
        """The resampled image in [0, 1], `[N, 3, H, W]`; the other arguments are those of the learning heads."""
        size = (image.shape[2], image.shape[3])
        coarse = F.adaptive_avg_pool2d(image, (-(-size[0] // self.scale), -(-size[1] // self.scale)))
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)

    def predict_samples(self, features: Tensor, image: Tensor) -> Tensor:
        """The same at the pixels that a nearest resize to the features' size takes, `[N, 3, h, w]`."""
        return nearest(self.predict(features, image), (features.shape[2], features.shape[3]))
