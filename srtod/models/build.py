"""Detectors by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from srtod._support.fields import check_named
from srtod._support.suggestions import did_you_mean

from .backbones import build_backbone
from .detector import Detector
from .heads.two_stage import REPRESENTATION_SIZE
from .options import DetectorOptions
from .recipes import RECIPES, PartOptions
from .reconstruction import SelfReconstruction, SelfReconstructionOptions
from .transform import DetectionTransform

__all__ = ["build_detector", "check_options"]


def build_detector(
    name: str,
    num_classes: int,
    *,
    self_reconstruction: bool = True,
    backbone: str = "resnet50",
    weights: str | Path | None = None,
    trainable_layers: int | None = None,
    norm: str | None = None,
    channels: int = 256,
    anchor_scale: float | None = None,
    detections_per_image: int = 100,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    min_size: int | Sequence[int] | None = 800,
    max_size: int | None = 1333,
    scale: float = 1.0,
    proposals: int | None = None,
    allowed_border: float | None = None,
    representation_size: int = REPRESENTATION_SIZE,
    box_loss: str = "smooth_l1",
    sac: bool = True,
    rfla_paper: bool = False,
    scale_aware: bool = True,
    **self_reconstruction_options: Any,
) -> Detector:
    """Builds a detector, with or without self-reconstruction.

    `srtod.models.recipes` has what each is made of.

    Self-reconstruction stands on the finest level of the pyramid. On P3 (RetinaNet, FCOS, ATSS, DyHead) the
    reconstruction head has three `Up` blocks instead of two: our own design, as the paper mentions P3 for RetinaNet
    without giving a structure.

    Under the same `torch.manual_seed` both start from the same weights in all parts they share and leave the random
    generator in the same state, so that two runs differ in self-reconstruction alone.

    Args:
        name: one of `DETECTORS`.
        num_classes: number of classes, background included (one kind of object: 2).
        self_reconstruction: whether to add `SelfReconstruction` on the finest level of the pyramid.
        backbone, weights, trainable_layers, norm: see `build_backbone`; DetectoRS needs a ResNet.
        channels: channels of the pyramid.
        anchor_scale: side of a square anchor, in strides; None for the head's default. FCOS and the detectors with
            RFLA's anchors have no such scale and leave it aside.
        detections_per_image, score_threshold, nms_threshold: see the heads.
        min_size, max_size, scale: see `DetectionTransform`.
        proposals, allowed_border: of the detectors with proposals (all but RetinaNet, FCOS, ATSS and DyHead): see
            `ProposalNetwork`. The others leave them aside.
        representation_size: of the same: width of the two layers that classify a proposal and place its box.
        box_loss: of Faster R-CNN and TridentNet: see `TwoStageHead`.
        sac: of DetectoRS: whether its backbones have switchable atrous convolution, as the paper; without it they are
            those of the configuration that SR-TOD's authors released.
        rfla_paper: of RFLA's proposals: whether to train as the code that its authors released, see
            `rfla_region_proposal_network`.
        scale_aware: of TridentNet: whether its branches learn objects of different sizes, see `TridentHead`.
        self_reconstruction_options: see `SelfReconstructionOptions`.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if the name is unknown, or an option of another type or out of its range: see `DetectorOptions`.
        ConnectionError: if the weights cannot be downloaded.
    """
    _check_known(self_reconstruction_options)
    _check_num_classes(num_classes)
    DetectorOptions(
        detector=name,
        self_reconstruction=self_reconstruction,
        backbone=backbone,
        weights=str(weights) if isinstance(weights, Path) else weights,
        trainable_layers=trainable_layers,
        norm=norm,
        channels=channels,
        anchor_scale=anchor_scale,
        detections_per_image=detections_per_image,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        min_size=min_size,  # type: ignore[arg-type]  # one number stands for a list of one
        max_size=max_size,
        scale=scale,
        proposals=proposals,
        allowed_border=allowed_border,
        representation_size=representation_size,
        box_loss=box_loss,
        sac=sac,
        rfla_paper=rfla_paper,
        scale_aware=scale_aware,
    )
    SelfReconstructionOptions(**self_reconstruction_options)  # checked even where they have no effect
    parts = RECIPES[name](
        PartOptions(
            num_classes,
            channels,
            partial(build_backbone, backbone, weights=weights, trainable_layers=trainable_layers, norm=norm),
            anchors={} if anchor_scale is None else {"anchor_scale": anchor_scale},
            detections={
                "detections_per_image": detections_per_image,
                "score_threshold": score_threshold,
                "nms_threshold": nms_threshold,
            },
            proposals={"proposals": proposals, "allowed_border": allowed_border},
            regions={"representation_size": representation_size},
            box_loss=box_loss,
            sac=sac,
            rfla_paper=rfla_paper,
            scale_aware=scale_aware,
        )
    )
    transform = DetectionTransform(min_size, max_size, scale=scale, copies=parts.copies)
    reconstruction = None
    if self_reconstruction:
        with torch.random.fork_rng(devices=[]):  # leaves the generator as the plain detector does
            reconstruction = SelfReconstruction(
                channels,
                scale=parts.stride,
                inplace=True,  # nothing else reads the level that is overwritten
                **self_reconstruction_options,
            )
    return Detector(transform, parts.backbone, parts.neck, parts.head, num_classes, reconstruction)


def check_options(options: Mapping[str, Any]) -> None:
    """Checks arguments of `build_detector`, by name, one by one.

    Raises:
        TypeError: if one is unknown.
        ValueError: if one is of another type or out of its range.
    """
    _check_known(options)
    if "num_classes" in options:
        _check_num_classes(options["num_classes"])
    check_named(DetectorOptions, options)
    check_named(SelfReconstructionOptions, options)


def _check_known(options: Mapping[str, Any]) -> None:
    """Raises a TypeError for an option that `build_detector` does not have, with the nearest names."""
    own = list(inspect.signature(build_detector).parameters)[:-1]
    known = [*own, *(field.name for field in dataclasses.fields(SelfReconstructionOptions))]
    for name in options.keys() - set(known):
        hint = did_you_mean(name, known) or f"it has {', '.join(known)}"
        raise TypeError(f"build_detector has no option {name!r}; {hint}")


def _check_num_classes(number: Any) -> None:
    if type(number) is not int or number < 2:
        raise ValueError(f"num_classes counts the background and must be a whole number of at least 2, got {number!r}")
