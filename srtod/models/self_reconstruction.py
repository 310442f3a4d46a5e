"""Self-reconstruction: the plug between a detector's neck and its head (SR-TOD, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srtod.ops import DGFE, filtration, high_frequency_difference_map

from .checks import check_unit_range
from .enhancement import Attention, Concatenation, GuidedEnhancement, Multiplication
from .reconstruction import ReconstructionHead

__all__ = ["DIFFERENCES", "ENHANCEMENTS", "SelfReconstruction", "SelfReconstructionOutput"]

ENHANCEMENTS = ("dgfe", "none", "multiplication", "concatenation", "attention")
"""Ways to enhance the level (SR-TOD, Tab. 4 and 6)."""

DIFFERENCES = ("pixel", "high_frequency")
"""Kinds of difference map (SR-TOD, Tab. 7)."""


class SelfReconstructionOutput(NamedTuple):
    """What the reconstruction yields beside the enhanced features.

    Attributes:
        loss: mean squared error between reconstruction and image, `[]`; joins the detector's losses with weight 1.
        difference: the difference map `D` that guides the enhancement, `[N, 1, H, W]`: in [0, 1] (SR-TOD, Eq. 3), or
            of high frequencies, not negative.
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

    The defaults are the paper's method. Its ablations are options, each of them for any detector:

    ======================================  ==========================================================================
    Tab. 4, reconstruction head alone       `enhancement="none"`: P2' = P2; the loss alone acts on the detector
    Tab. 5, without a threshold             `threshold=None`: Filtration(D) = Resize(D) + 1 in place of Eq. 4
    Tab. 5, fixed threshold                 `learn_threshold=False`
    Tab. 6, element-wise multiplication     `enhancement="multiplication"`: P2' = B * P2
    Tab. 6, concatenation                   `enhancement="concatenation"`: P2' = Conv1x1([P2, B])
    Tab. 6, element-wise attention          `enhancement="attention"`: the paper's name for DGFE there; the same module
    Tab. 7, high-frequency difference map   `difference="high_frequency"`: see `srtod.ops`
    ======================================  ==========================================================================

    B is the binary difference map at the level's size (without a threshold: D), see `srtod.models.enhancement`, which
    also says how the tables were read where the paper is silent.

    Args:
        channels: channels of the pyramid level, divisible by `scale` and, for DGFE, by `reduction`.
        scale: stride of the pyramid level: 4 for P2, 8 for P3.
        enhancement: "dgfe", "none", "multiplication", "concatenation" or "attention".
        threshold: initial threshold `t` of the filtration, in the unit of the image (4/255 is four grey levels); None
            for no threshold.
        learn_threshold: whether the threshold is a trained parameter.
        resize: how the filter comes to the level's size: "nearest" (the paper), "max", "area" or "bilinear".
        surrogate: gradient of the step: "sigmoid", "ste", "atan", "triangle", "rect", or "none" (the authors' code).
        alpha: sharpness of the surrogate; None for one that suits differences of a few grey levels.
        reduction: ratio by which the channel reweighting's MLP narrows.
        difference: "pixel" (SR-TOD, Eq. 3) or "high_frequency".
        cutoff: frequencies below it do not count for "high_frequency", in cycles per pixel, 0 to 0.5. The paper gives
            none; the default removes waves longer than 32 pixels, the largest objects that it calls tiny.
        padding_in_loss: whether a batch's padding counts in the loss, as in the authors' code, or is left out.
        inplace: whether the features may be overwritten where no gradient is recorded (DGFE alone does).
        recompute: whether the backward pass computes the reconstruction anew, strip by strip, instead of keeping its
            maps: far less memory, one more forward pass of the head (docs/performance.md).

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        scale: int = 4,
        enhancement: str = "dgfe",
        threshold: float | None = 4 / 255,
        learn_threshold: bool = True,
        resize: str = "nearest",
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        reduction: int = 16,
        difference: str = "pixel",
        cutoff: float = 1 / 32,
        padding_in_loss: bool = False,
        inplace: bool = False,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if enhancement not in ENHANCEMENTS:
            raise ValueError(f"enhancement must be one of {', '.join(ENHANCEMENTS)}, got {enhancement!r}")
        if difference not in DIFFERENCES:
            raise ValueError(f"difference must be one of {', '.join(DIFFERENCES)}, got {difference!r}")
        if not 0.0 <= cutoff <= 0.5:
            raise ValueError(f"cutoff must be in [0, 0.5] cycles per pixel, such as 1 / 32, got {cutoff}")
        self.difference, self.cutoff = difference, cutoff
        self.padding_in_loss = padding_in_loss
        self.recompute = recompute
        self.reconstruction_head = ReconstructionHead(channels, scale)
        self.enhancement = enhancement
        if enhancement == "none":
            return
        options: dict[str, Any] = {
            "threshold": threshold,
            "learn_threshold": learn_threshold,
            "resize": resize,
            "surrogate": surrogate,
            "alpha": alpha,
        }
        enhancer: DGFE | GuidedEnhancement
        if enhancement == "multiplication":
            enhancer = Multiplication(channels, **options)
        elif enhancement == "concatenation":
            enhancer = Concatenation(channels, **options)
        elif threshold is None:
            enhancer = Attention(channels, reduction, **options)
        else:
            enhancer = DGFE(channels, reduction, inplace=inplace, **options)
        self.add_module(self._enhancer_name, enhancer)  # in checkpoints `dgfe.threshold`, `concatenation.conv.weight`

    @property
    def enhancer(self) -> DGFE | GuidedEnhancement | None:
        """The module that enhances the features, the submodule named as `enhancement`; None for "none"."""
        return self._modules.get(self._enhancer_name)  # type: ignore[return-value]

    @property
    def _enhancer_name(self) -> str:
        return "dgfe" if self.enhancement == "attention" else self.enhancement

    @property
    def threshold(self) -> Tensor | None:
        """The threshold `t`, `[]`, a parameter if it is learned; None where there is none."""
        return None if self.enhancer is None else self.enhancer.threshold

    def clamp_threshold_(self) -> None:
        """Brings the threshold, if there is one, back into [0, 1]; call it after each optimizer step."""
        if self.enhancer is not None:
            self.enhancer.clamp_threshold_()

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
        valid_size = None
        is_padded = image_sizes is not None and any(tuple(size) != (height, width) for size in image_sizes)
        if is_padded and (self.difference == "high_frequency" or not self.padding_in_loss):
            valid_size = torch.tensor(image_sizes, dtype=torch.int64).to(image.device, non_blocking=True)
        difference, loss, logits = self.reconstruction_head.compare(
            features,
            image,
            valid_size=None if self.padding_in_loss else valid_size,
            recompute=self.recompute,
        )
        if self.difference == "high_frequency":
            difference = high_frequency_difference_map(
                logits, image.to(logits.dtype), cutoff=self.cutoff, from_logits=True, valid_size=valid_size
            )
        enhanced = features if self.enhancer is None else self.enhancer(features, difference)
        return enhanced, SelfReconstructionOutput(loss, difference, logits)

    def enhance(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """The enhanced features alone, as `forward` computes them up to rounding, at the least cost: for inference.

        Under resize "nearest" only one pixel of the difference map in `scale * scale` matters, and the reconstruction's
        last layers run for these alone. Without an enhancement nothing runs. Call it under `torch.no_grad()`: where
        gradients are recorded, plain PyTorch does what the fused op would.

        Args:
            features: as in `forward`.
            image: as in `forward`.
            image_sizes: as in `forward`.

        Returns:
            `[N, channels, h, w]`.

        Raises:
            ValueError: as `forward`.
        """
        enhancer = self.enhancer
        if enhancer is None:
            self._check(features, image, image_sizes)
            return features
        if self.difference != "pixel" or enhancer.resize != "nearest":
            return self(features, image, image_sizes)[0]
        self._check(features, image, image_sizes)
        difference = self.reconstruction_head.sampled_difference(features, image)
        return enhancer(features, difference)

    def filter(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The filter that a difference map `[N, 1, H, W]` makes of `size` (h, w): `[N, 1, h, w]`, values 1, 1.5 and 2.

        For pictures and logs; resize "area" and "bilinear" give values in between. It is `B + 1` for every way of
        enhancement, that is `Resize(D) + 1` without a threshold, and 1 everywhere for "none", which filters nothing.
        """
        enhancer = self.enhancer
        if enhancer is None:
            return difference.new_ones(len(difference), 1, *size)
        if isinstance(enhancer, DGFE):
            return filtration(difference, enhancer.threshold, size, resize=enhancer.resize)
        return enhancer.guide(difference, size) + 1

    def _check(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> None:
        if features.dim() != 4 or image.dim() != 4 or image.shape[1] != 3 or len(image) != len(features):
            is_grey = image.dim() == 4 and image.shape[1] == 1
            raise ValueError(
                f"SelfReconstruction expects features [N, C, h, w] and image [N, 3, H, W] with the same N, "
                f"got {list(features.shape)} and {list(image.shape)}"
                f"{'; image.expand(-1, 3, -1, -1) makes grey RGB' if is_grey else ''}"
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
        height, width = image.shape[-2:]
        for index, size in enumerate(image_sizes or ()):
            if not (0 < size[0] <= height and 0 < size[1] <= width):
                raise ValueError(f"image_sizes[{index}] must lie in the batch's {(height, width)}, got {tuple(size)}")
        check_unit_range(image, "image")
