"""Self-reconstruction: the plug between a detector's neck and its head (SR-TOD, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srtod.ops import DGFE, filtration, reconstruction_difference

from .checks import check_unit_range
from .reconstruction import ReconstructionHead

__all__ = ["SelfReconstruction", "SelfReconstructionOutput"]


class SelfReconstructionOutput(NamedTuple):
    """What the reconstruction yields beside the enhanced features.

    Attributes:
        loss: mean squared error between reconstruction and image, `[]`; joins the detector's losses with weight 1.
        difference: the difference map `D` in [0, 1], `[N, 1, H, W]` (SR-TOD, Eq. 3).
        logits: the reconstruction before its sigmoid, `[N, 3, H, W]`.
    """

    loss: Tensor
    difference: Tensor
    logits: Tensor

    @property
    def reconstruction(self) -> Tensor:
        """The reconstructed image `I_r` in [0, 1], `[N, 3, H, W]`, computed on request: only pictures need it."""
        return self.logits.sigmoid()


class SelfReconstruction(nn.Module):
    """Reconstructs the image from the lowest pyramid level and enhances that level where the reconstruction fails.

    Works with any detector that has a feature pyramid: the enhanced features replace the level they came from, and the
    loss joins the detector's.

        features["p2"], reconstruction = self_reconstruction(features["p2"], image)
        losses["loss_reconstruction"] = reconstruction.loss

    Args:
        channels: channels of the pyramid level, divisible by `scale` and `reduction`.
        scale: stride of the pyramid level: 4 for P2, 8 for P3.
        threshold: initial threshold `t` of the filtration, in the unit of the image (4/255 is four grey levels).
        learn_threshold: whether the threshold is a trained parameter.
        resize: how the filter comes to the level's size: "nearest" (the paper), "max", "area" or "bilinear".
        surrogate: gradient of the step: "sigmoid", "ste", "atan", "triangle", "rect", or "none" (the authors' code).
        alpha: sharpness of the surrogate; None for one that suits differences of a few grey levels.
        reduction: ratio by which the channel reweighting's MLP narrows.
        padding_in_loss: whether a batch's padding counts in the loss, as in the authors' code, or is left out.
        inplace: whether the features may be overwritten where no gradient is recorded.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        scale: int = 4,
        threshold: float = 4 / 255,
        learn_threshold: bool = True,
        resize: str = "nearest",
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        reduction: int = 16,
        padding_in_loss: bool = False,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.padding_in_loss = padding_in_loss
        self.reconstruction_head = ReconstructionHead(channels, scale)
        self.dgfe = DGFE(
            channels,
            reduction,
            threshold=threshold,
            learn_threshold=learn_threshold,
            resize=resize,
            surrogate=surrogate,
            alpha=alpha,
            inplace=inplace,
        )

    def forward(
        self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, SelfReconstructionOutput]:
        """Enhances a pyramid level.

        Args:
            features: the pyramid level, `[N, channels, h, w]`, `h = ceil(H / scale)`, `w = ceil(W / scale)`.
            image: the un-normalised batch `[N, 3, H, W]`, values in [0, 1], padding 0.
            image_sizes: (height, width) of each image without its padding; None if there is no padding.

        Returns:
            The enhanced features `[N, channels, h, w]` and the `SelfReconstructionOutput`.

        Raises:
            ValueError: if shapes do not fit together, or (on the CPU) values of `image` lie outside [0, 1].
        """
        self._check(features, image, image_sizes)
        height, width = image.shape[-2:]
        logits = self.reconstruction_head.logits(features)[..., :height, :width]
        valid_size = None
        is_padded = image_sizes is not None and any(tuple(size) != (height, width) for size in image_sizes)
        if is_padded and not self.padding_in_loss:
            valid_size = torch.tensor(image_sizes, dtype=torch.int64).to(image.device, non_blocking=True)
        difference, loss = reconstruction_difference(logits, image, from_logits=True, valid_size=valid_size)
        return self.dgfe(features, difference), SelfReconstructionOutput(loss, difference, logits)

    def filter(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The filter that a difference map `[N, 1, H, W]` makes of `size` (h, w): `[N, 1, h, w]`, values 1, 1.5 and 2.

        For pictures and logs; resize "area" and "bilinear" give values in between.
        """
        return filtration(difference, self.dgfe.threshold, size, resize=self.dgfe.resize)

    def _check(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> None:
        if features.dim() != 4 or image.dim() != 4 or image.shape[1] != 3 or len(image) != len(features):
            raise ValueError(
                f"SelfReconstruction expects features [N, C, h, w] and image [N, 3, H, W] with the same N, "
                f"got {list(features.shape)} and {list(image.shape)}"
            )
        scale = self.reconstruction_head.scale
        expected = [-(-side // scale) for side in image.shape[-2:]]
        if list(features.shape[-2:]) != expected:
            raise ValueError(
                f"features of a {list(image.shape[-2:])} image at stride {scale} must have the size {expected}, "
                f"got {list(features.shape[-2:])}; set scale to the stride of the pyramid level"
            )
        if image_sizes is not None and len(image_sizes) != len(image):
            raise ValueError(
                f"image_sizes must have one (height, width) per image, got {len(image_sizes)} for {len(image)}"
            )
        check_unit_range(image, "image")
