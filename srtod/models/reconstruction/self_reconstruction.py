"""Self-reconstruction: the module between a detector's neck and its head (SR-TOD, Sec. 3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srtod._support.suggestions import did_you_mean
from srtod.models.checks import check_unit_range
from srtod.ops import (
    DGFE,
    FiltrationOptions,
    difference_map,
    high_frequency_difference_map,
)
from srtod.ops.reference import nearest, valid_mask
from srtod.ops.threshold import Threshold

from .enhancement import Concatenation, Multiplication, SoftDGFE
from .options import SelfReconstructionOptions
from .paper_head import ReconstructionHead
from .resampled import ResampledImage
from .strips import loss_in_strips
from .subpixel_head import SubpixelHead
from .targets import ImageError, mask_loss, object_mask

__all__ = ["SelfReconstruction", "SelfReconstructionOutput"]

SETTLE_BY = 0.2
"""Share of the reconstruction's part of a training after which an automatic threshold is set in any case."""


class SelfReconstructionOutput(NamedTuple):
    """What the reconstruction yields beside the enhanced features.

    Attributes:
        loss: the weighted loss of the reconstruction, `[]`; joins the detector's losses. For the image it is the mean
            squared error (SR-TOD, Sec. 3.2).
        difference: the difference map `D` that guides the enhancement, `[N, 1, H, W]`: in [0, 1] (SR-TOD, Eq. 3), or
            of high frequencies, not negative. For the target "boxes" the predicted mask in [0, 1].
        prediction: the reconstruction `[N, 3, H, W]`, before its sigmoid if `from_logits`.
        from_logits: see `prediction`.

    The loss carries a gradient. With `recompute`, which computes it early, the other two do not unless
    `difference_gradient` is set.
    """

    loss: Tensor
    difference: Tensor
    prediction: Tensor
    from_logits: bool = True

    @property
    def reconstruction(self) -> Tensor:
        """The reconstructed image `I_r` in [0, 1], `[N, 3, H, W]`, computed on request: only pictures need it."""
        return self.prediction.sigmoid() if self.from_logits else self.prediction


class SelfReconstruction(nn.Module):
    """Reconstructs the image from the lowest pyramid level and enhances that level where the reconstruction fails.

    Works with any detector that has a feature pyramid: the loss joins the detector's, and the enhanced features replace
    the level they came from. By default the loss acts alone, and the features stay: see `enhancement`.

        features["p2"], reconstruction = self_reconstruction(features["p2"], image)
        losses["loss_reconstruction"] = reconstruction.loss

    The paper's method and its ablations are options, each of them for any detector:

    ======================================  ==========================================================================
    Sec. 3, the method as released          `enhancement="dgfe", reconstruction="paper", resize="nearest",
                                            threshold=4 / 255, identity_start=False, surrogate="none"`
    Tab. 4, reconstruction head alone       `enhancement="none"`: P2' = P2; the loss alone acts on the detector
    Tab. 5, without a threshold             DGFE with `threshold=None`: Filtration(D) = Resize(D) + 1 in place of Eq. 4
    Tab. 5, fixed threshold                 DGFE with `learn_threshold=False`
    Tab. 6, element-wise multiplication     `enhancement="multiplication"`: P2' = B * P2
    Tab. 6, concatenation                   `enhancement="concatenation"`: P2' = Conv1x1([P2, B])
    Tab. 6, element-wise attention          `enhancement="attention"`: the paper's name for DGFE there; the same module
    Tab. 7, high-frequency difference map   DGFE with `difference="high_frequency"`: see `srtod.ops`
    ======================================  ==========================================================================

    B is the binary difference map at the level's size (without a threshold: D), see
    `srtod.models.reconstruction.enhancement`, which also says how the tables were read where the paper is silent.

    Args:
        channels: channels of the pyramid level; for the paper's head divisible by `scale`, for DGFE by `reduction`.
        scale: stride of the pyramid level: 4 for P2, 8 for P3.
        inplace: whether the features may be overwritten where no gradient is recorded (DGFE alone does).
        options: fields of `SelfReconstructionOptions`, by name.

    Attributes:
        observer: called with the filter `[N, 1, h, w]` and the images' sizes (None without padding) at each forward
            pass that makes one, in training and inference; None for nobody.
        replacement: gives the map `[N, 1, h, w]` that guides the enhancement in place of the resized difference map,
            from that map and the images' sizes: for experiments with other filters. None: itself.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if an option is not as `SelfReconstructionOptions` says, or does not go with `channels`.
    """

    observer: Callable[[Tensor, Sequence[tuple[int, int]] | None], None] | None
    replacement: Callable[[Tensor, Sequence[tuple[int, int]] | None], Tensor] | None

    def __init__(self, channels: int = 256, *, scale: int = 4, inplace: bool = False, **options: Any) -> None:
        super().__init__()
        known = [field.name for field in fields(SelfReconstructionOptions)]
        for name in options.keys() - set(known):
            hint = did_you_mean(name, known) or f"it has {', '.join(known)}"
            raise TypeError(f"SelfReconstruction has no option {name!r}; {hint}")
        self.options = SelfReconstructionOptions(**options)
        _warn_of_idle(self.options)
        self.scale = scale
        self.started = True
        self.observer = None
        self.replacement = None
        self._is_set = False  # the threshold, as far as `set_progress` knows
        self.reconstruction_head = _make_head(channels, scale, self.options)
        enhancer = _make_enhancer(channels, inplace, self.options)
        if enhancer is not None:
            self.add_module(self._enhancer_name, enhancer)  # in checkpoints `dgfe.threshold`, `concatenation.conv`
        self.register_load_state_dict_pre_hook(_check_head)

    @property
    def enhancer(self) -> Threshold | None:
        """The module that enhances the features, the submodule named as `enhancement`; None for "none"."""
        return self._modules.get(self._enhancer_name)  # type: ignore[return-value]

    @property
    def _enhancer_name(self) -> str:
        enhancement = self.options.enhancement
        return "dgfe" if enhancement in ("attention", "soft") else enhancement

    @property
    def threshold(self) -> Tensor | None:
        """The threshold `t`, `[]`, a parameter if it is learned; None where there is none."""
        return None if self.enhancer is None else self.enhancer.threshold

    @property
    def learns(self) -> bool:
        """Whether there is a head to train, and its part of the training has begun."""
        return bool(self.reconstruction_head.learns) and self.started

    def clamp_threshold_(self) -> None:
        """Brings the threshold, if there is one, back into [0, 1]; call it after each optimizer step."""
        if self.enhancer is not None:
            self.enhancer.clamp_threshold_()

    def set_progress(self, share: float) -> None:
        """Says how much of the training is done, from 0 to 1; a training calls it before each step.

        Until `reconstruction_start` the head does not run and its loss is 0. An automatic threshold that has not
        settled by itself is set after a fifth of the rest. Without this call the reconstruction starts at once, and an
        automatic threshold waits until it has settled.
        """
        start = self.options.reconstruction_start
        self.started = share >= start
        # Asked until it is set and no more: each time the processor waits for the GPU.
        if self.enhancer is not None and not self._is_set and share >= start + SETTLE_BY * (1 - start):
            self._is_set = self.enhancer.settle()

    def forward(
        self,
        features: Tensor,
        image: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        boxes: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, SelfReconstructionOutput]:
        """Enhances a pyramid level.

        Args:
            features: the pyramid level, `[N, channels, h, w]`, `h = ceil(H / scale)`, `w = ceil(W / scale)`.
            image: the un-normalised batch `[N, 3, H, W]`, values in [0, 1], padding 0.
            image_sizes: (height, width) of each image without its padding; None if there is no padding.
            boxes: the objects of each image, `[M, 4]`, (x1, y1, x2, y2) in pixels; the targets "weighted_image" and
                "boxes" need them in training.

        Returns:
            The enhanced features `[N, channels, h, w]` and the `SelfReconstructionOutput`.

        Raises:
            ValueError: if shapes do not fit together, boxes are missing, or (on the CPU) values of `image` lie outside
                [0, 1].
        """
        self._check(features, image, image_sizes)
        options, head, size = self.options, self.reconstruction_head, (image.shape[2], image.shape[3])
        if self.training and options.reconstruction_target != "image" and boxes is None:
            raise ValueError(f"reconstruction_target={options.reconstruction_target!r} needs boxes in training")
        if self.training and not self.started:
            return self._not_started(features, image)
        sizes = _padded_sizes(image, image_sizes)
        source = features.detach() if options.detach_reconstruction else features
        if options.reconstruction_target == "boxes":
            mask, output = self._predict_mask(source, image, sizes, boxes)
            return self._enhance_by(features, mask, sizes, image_sizes), output
        measure = ImageError(
            image,
            from_logits=head.from_logits,
            sizes=None if options.padding_in_loss or sizes is None else image_sizes,
            mask=None
            if boxes is None or options.reconstruction_target != "weighted_image"
            else object_mask(boxes, size),
        )
        if self._learns_in_strips(features):
            loss, difference, prediction = loss_in_strips(head, source, image, measure)
        else:
            prediction = head.predict(source, image, recompute=options.recompute)
            difference, loss = measure(prediction)
        loss = options.reconstruction_weight * loss if head.learns else torch.zeros_like(loss)
        if options.difference == "high_frequency":
            difference = high_frequency_difference_map(
                prediction, image.to(prediction.dtype), cutoff=options.cutoff, from_logits=head.from_logits,
                valid_size=sizes,
            )  # fmt: skip
        enhanced = self._enhance_by(features, difference, sizes, image_sizes)
        return enhanced, SelfReconstructionOutput(loss, difference, prediction, head.from_logits)

    def enhance(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """The enhanced features alone, as `forward` computes them up to rounding, at the least cost: for inference.

        Under resize "nearest" only one pixel of the difference map in `scale * scale` matters, and the reconstruction's
        last layers run for these alone. Without an enhancement nothing runs, and no loss is computed.

        Args:
            features: as in `forward`.
            image: as in `forward`.
            image_sizes: as in `forward`.

        Returns:
            `[N, channels, h, w]`.

        Raises:
            ValueError: as `forward`.
        """
        enhancer, head = self.enhancer, self.reconstruction_head
        if enhancer is not None and self.options.difference != "pixel":
            return self(features, image, image_sizes)[0]
        self._check(features, image, image_sizes)
        if enhancer is None:
            return features
        if self.options.reconstruction_target == "boxes":
            return self._enhance_by(features, head(features), None, image_sizes)
        if enhancer.resize == "nearest":
            prediction = head.predict_samples(features, image)
            image = nearest(image, (features.shape[2], features.shape[3]))
        else:
            prediction = head.predict(features, image)
        difference = difference_map(prediction, image, from_logits=head.from_logits)
        return self._enhance_by(features, difference, None, image_sizes)

    def filter(self, difference: Tensor, size: tuple[int, int]) -> Tensor:
        """The filter that a difference map `[N, 1, H, W]` makes of `size` (h, w): `[N, 1, h, w]`, values 1, 1.5 and 2.

        For pictures and logs; resize "area" and "bilinear" give values in between. It is `B + 1` for every way of
        enhancement, that is `Resize(D) + 1` without a threshold, and 1 everywhere for "none", which filters nothing.
        """
        if self.enhancer is None:
            return difference.new_ones(len(difference), 1, *size)
        return self.enhancer.filter(difference, size)

    def _learns_in_strips(self, features: Tensor) -> bool:
        """Whether the head's gradient is computed in the forward pass: where it is known there, and worth it."""
        return (
            isinstance(self.reconstruction_head, ReconstructionHead)
            and self.options.recompute
            and torch.is_grad_enabled()
            and (self.enhancer is None or not self.enhancer.difference_gradient)
            # In float16 it would vanish without the factor that the backward pass brings.
            and torch.float16 not in (features.dtype, _autocast_dtype(features.device))
            and not torch.compiler.is_compiling()
        )

    def _enhance_by(
        self,
        features: Tensor,
        difference: Tensor,
        padded: Tensor | None,
        image_sizes: Sequence[tuple[int, int]] | None,
    ) -> Tensor:
        """Enhances the features by the difference map; `padded` are sizes that an automatic threshold keeps to."""
        enhancer = self.enhancer
        if enhancer is None:
            return features
        if self.replacement is not None:
            difference = self.replacement(
                enhancer.resized(difference, (features.shape[2], features.shape[3])), image_sizes
            )
        valid = None if padded is None or not enhancer.is_auto else self._valid_cells(features, padded)
        enhanced: Tensor = enhancer(features, difference, valid)
        if self.observer is not None:
            self._report(difference.detach(), (enhanced.shape[2], enhanced.shape[3]), image_sizes)
        return enhanced

    @torch.compiler.disable
    @torch.no_grad()
    def _report(self, difference: Tensor, size: tuple[int, int], image_sizes: Sequence[tuple[int, int]] | None) -> None:
        assert self.observer is not None
        self.observer(self.filter(difference, size), image_sizes)

    def _not_started(self, features: Tensor, image: Tensor) -> tuple[Tensor, SelfReconstructionOutput]:
        """The features with a filter of 1, and a loss of 0 that reaches every parameter of the head."""
        difference = image.new_zeros(len(image), 1, *image.shape[-2:])
        enhanced = features
        if self.enhancer is not None:
            nowhere = torch.zeros(len(features), 1, *features.shape[-2:], dtype=torch.bool, device=features.device)
            enhanced = self.enhancer(features, difference, nowhere)
        zeros = [0.0 * parameter.sum() for parameter in self.reconstruction_head.parameters()]
        loss = torch.stack(zeros).sum() if zeros else image.new_zeros(())
        return enhanced, SelfReconstructionOutput(loss, difference, torch.zeros_like(image))

    def _predict_mask(
        self, features: Tensor, image: Tensor, sizes: Tensor | None, boxes: Sequence[Tensor] | None
    ) -> tuple[Tensor, SelfReconstructionOutput]:
        """The mask in [0, 1] at the level's size, `[N, 1, h, w]`, and what it yields, at the image's."""
        logits = self.reconstruction_head.logits(features)
        loss = logits.new_zeros(())
        if boxes is not None:
            mask = object_mask(boxes, (logits.shape[2], logits.shape[3]), self.scale)
            valid = None if sizes is None else self._valid_cells(features, sizes)
            loss = self.options.reconstruction_weight * mask_loss(logits, mask, valid)
        shown = nearest(logits.detach(), (image.shape[2], image.shape[3])).expand(-1, 3, -1, -1)
        return logits.sigmoid(), SelfReconstructionOutput(loss, shown[:, :1].sigmoid(), shown)

    def _valid_cells(self, features: Tensor, sizes: Tensor) -> Tensor:
        """Which pixels of the level belong to images of these sizes `[N, 2]`, bool `[N, 1, h, w]`."""
        cells = (sizes + self.scale - 1) // self.scale
        return valid_mask(cells, features.shape[2], features.shape[3])

    def _check(self, features: Tensor, image: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> None:
        if features.dim() != 4 or image.dim() != 4 or image.shape[1] != 3 or image.shape[0] != features.shape[0]:
            is_grey = image.dim() == 4 and image.shape[1] == 1
            raise ValueError(
                f"SelfReconstruction expects features [N, C, h, w] and image [N, 3, H, W] with the same N, "
                f"got {list(features.shape)} and {list(image.shape)}"
                f"{'; image.expand(-1, 3, -1, -1) makes grey RGB' if is_grey else ''}"
            )
        scale = self.scale
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


def _padded_sizes(image: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Tensor | None:
    """The images' sizes as int64 `[N, 2]`, None if none of them is padded."""
    if sizes is None or all(tuple(size) == (image.shape[2], image.shape[3]) for size in sizes):
        return None
    return torch.tensor(sizes, dtype=torch.int64).to(image.device, non_blocking=True)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _check_head(module: SelfReconstruction, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raises a ValueError if a state dict has the weights of another reconstruction head; without any it is silent."""
    start = f"{prefix}reconstruction_head."
    found = {name.removeprefix(start) for name in state if name.startswith(start)}
    own = module.reconstruction_head.state_dict().keys()
    if found and found.isdisjoint(own - {"out.weight", "out.bias"}):  # which both heads have
        kind = "paper" if "up1.conv1.weight" in found else "subpixel"
        raise ValueError(
            f"the weights are of reconstruction={kind!r}, but this is reconstruction="
            f"{module.options.reconstruction!r}; build it with the first"
        )


def _warn_of_idle(options: SelfReconstructionOptions) -> None:
    """Warns of options that shape a filter where there is none."""
    if options.enhancement != "none":
        return
    given = [
        field.name
        for field in fields(FiltrationOptions)
        if getattr(options, field.name) != getattr(SelfReconstructionOptions, field.name)
    ]
    if given:
        warnings.warn(
            f"{', '.join(given)}: no effect with enhancement='none', which has no filter; enhancement='dgfe' has one",
            stacklevel=3,
        )


def _make_head(channels: int, scale: int, options: SelfReconstructionOptions) -> Any:
    if options.reconstruction_target == "boxes":
        return SubpixelHead(channels, scale=1, colours=1)
    if options.reconstruction == "resampled":
        return ResampledImage(scale)
    return (ReconstructionHead if options.reconstruction == "paper" else SubpixelHead)(channels, scale)


def _make_enhancer(channels: int, inplace: bool, options: SelfReconstructionOptions) -> Threshold | None:
    every = asdict(options)
    filtering = {field.name: every[field.name] for field in fields(FiltrationOptions)}
    if options.enhancement == "none":
        return None
    if options.enhancement == "multiplication":
        return Multiplication(channels, **filtering)
    if options.enhancement == "concatenation":
        return Concatenation(channels, **filtering)
    kind = SoftDGFE if options.enhancement == "soft" else DGFE
    return kind(channels, options.reduction, inplace=inplace, identity_start=options.identity_start, **filtering)
