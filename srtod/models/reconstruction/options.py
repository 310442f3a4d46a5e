"""The options of self-reconstruction: declared here, and read by models, command line, presets and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srtod._support.fields import option, redeclared
from srtod.ops import FiltrationOptions
from srtod.ops.dgfe import DEFAULT_REDUCTION
from srtod.ops.surrogate import Resize

__all__ = ["SelfReconstructionOptions"]


@dataclass(frozen=True)
class SelfReconstructionOptions(FiltrationOptions):
    """Self-reconstruction.

    Raises:
        ValueError: if a value is not one of its words or out of its range, or two do not go together.
    """

    # A training finds the value itself, where `DGFE` alone has to be given one.
    threshold: float | Literal["auto"] | None = redeclared(FiltrationOptions, "threshold", "auto")
    # The paper's nearest resize reads one pixel in 16, and tiny objects fall between those.
    resize: Resize = redeclared(FiltrationOptions, "resize", "max")
    reconstruction: Literal["paper", "subpixel", "resampled"] = option(
        "subpixel",
        "what rebuilds the image: the paper's head; two convolutions at P2's resolution and a pixel shuffle, at a "
        "twentieth of the cost; or no head, the image itself averaged down and interpolated up",
    )
    reconstruction_target: Literal["image", "weighted_image", "boxes"] = option(
        "image",
        "what the head learns: the image; the image with the errors inside the objects' boxes counted once more; or "
        "the mask of the boxes, which then takes the difference map's place",
    )
    reconstruction_weight: float = option(1.0, "weight of the reconstruction's loss", within="positive")
    reconstruction_start: float = option(
        0.0, "share of the training after which the reconstruction begins to learn", within="below_one"
    )
    detach_reconstruction: bool = option(
        False, "keep the reconstruction's gradient in its head: none of it reaches neck and backbone"
    )
    enhancement: Literal["dgfe", "soft", "none", "multiplication", "concatenation", "attention"] = option(
        "none",
        "what the difference map does to the features; none: nothing, so that the reconstruction's loss alone acts on "
        "them, and inference is the plain detector's; soft: DGFE with a sigmoid in place of the step",
    )
    identity_start: bool = option(
        True, "start with channel weights that leave P2 as it is, instead of about 0.5 as in the paper"
    )
    reduction: int = option(
        DEFAULT_REDUCTION, "ratio by which the MLP of the channel reweighting narrows", within="positive"
    )
    difference: Literal["pixel", "high_frequency"] = option(
        "pixel", "difference map of all of the image, or of its high frequencies alone"
    )
    cutoff: float = option(
        1 / 32,
        "frequency below which nothing counts for high_frequency, in cycles per pixel, up to 0.5; the default removes "
        "waves longer than 32 pixels",
        within="share",
    )
    padding_in_loss: bool = option(False, "count a batch's padding in the reconstruction loss, as the authors' code")
    recompute: bool = option(
        True,
        "keep no map of the paper's head for the backward pass: its gradient is computed in the forward pass, strip by "
        "strip; where it is not known then (difference-gradient, float16) the head runs once more",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cutoff > 0.5:
            raise ValueError(f"cutoff must be in [0, 0.5] cycles per pixel, such as 1 / 32, got {self.cutoff}")
        if self.reconstruction_target == "boxes" and (self.reconstruction, self.difference) != ("subpixel", "pixel"):
            raise ValueError(
                "reconstruction_target='boxes' predicts a mask and no image; set reconstruction='subpixel' and "
                f"difference='pixel', got {self.reconstruction!r} and {self.difference!r}"
            )
        if self.reconstruction == "resampled" and (self.enhancement == "none" or self.reconstruction_target != "image"):
            raise ValueError(
                "reconstruction='resampled' learns nothing; set reconstruction_target='image' and an enhancement, got "
                f"{self.reconstruction_target!r} and {self.enhancement!r}"
            )
        if self.reconstruction_start > 0 and self.threshold != "auto" and self.enhancement != "none":
            raise ValueError(
                "reconstruction_start needs a filter that lets nothing pass until then; set threshold='auto' or "
                f"enhancement='none', got threshold={self.threshold!r} and enhancement={self.enhancement!r}"
            )
