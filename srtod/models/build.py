"""Detectors by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from srtod._support.suggestions import did_you_mean

from .anchors import ANCHORS
from .backbones import build_backbone
from .boxes import receptive_fields
from .detector import Detector
from .heads import ATSSHead, CascadeHead, FCOSHead, RetinaNetHead, TwoStageHead, rfla_region_proposal_network
from .necks import FPN, RecursiveFeaturePyramid, RetinaFPN
from .reconstruction import SelfReconstruction, SelfReconstructionOptions
from .transform import DetectionTransform

__all__ = ["DETECTORS", "build_detector"]


class _Recipe(NamedTuple):
    """What a detector is made of.

    Attributes:
        head: its head.
        neck: its neck, given the backbone's channels and the pyramid's; a second backbone first if it is recursive.
        stride: stride of the pyramid's finest level.
    """

    head: Callable[..., nn.Module]
    neck: Callable[..., nn.Module] = FPN
    stride: int = 4


_RECIPES = {
    "retinanet": _Recipe(RetinaNetHead, partial(RetinaFPN, p6_from="c5"), stride=8),
    "faster_rcnn": _Recipe(TwoStageHead),
    "cascade_rcnn": _Recipe(CascadeHead),
    "detectors": _Recipe(CascadeHead, RecursiveFeaturePyramid),
    "rfla": _Recipe(CascadeHead),
    "fcos": _Recipe(FCOSHead, partial(RetinaFPN, p6_from="p5"), stride=8),
    "atss": _Recipe(ATSSHead, partial(RetinaFPN, p6_from="p5"), stride=8),
}

DETECTORS = tuple(_RECIPES)


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
    sac: bool = True,
    rfla_paper: bool = False,
    **self_reconstruction_options: Any,
) -> Detector:
    """Builds a detector, with or without self-reconstruction.

    | name         | pyramid          | head                                               |
    |--------------|------------------|----------------------------------------------------|
    | retinanet    | P3-P7            | `RetinaNetHead`                                    |
    | faster_rcnn  | P2-P6            | `TwoStageHead`                                     |
    | cascade_rcnn | P2-P6            | `CascadeHead`                                      |
    | detectors    | P2-P6, recursive | `CascadeHead`                                      |
    | rfla         | P2-P6            | `CascadeHead` with proposals from receptive fields |
    | fcos         | P3-P7            | `FCOSHead`                                         |
    | atss         | P3-P7            | `ATSSHead`                                         |

    Self-reconstruction stands on the finest level of the pyramid. On P3 (RetinaNet, FCOS, ATSS) the reconstruction head
    has three `Up` blocks instead of two: our own design, as the paper mentions P3 for RetinaNet without giving a
    structure.

    Under the same `torch.manual_seed` both start from the same weights in all parts they share and leave the random
    generator in the same state, so that two runs differ in self-reconstruction alone.

    Args:
        name: one of `DETECTORS`.
        num_classes: number of classes, background included (one kind of object: 2).
        self_reconstruction: whether to add `SelfReconstruction` on the finest level of the pyramid.
        backbone, weights, trainable_layers, norm: see `build_backbone`; DetectoRS needs a ResNet.
        channels: channels of the pyramid.
        anchor_scale: side of a square anchor, in strides; None for the head's default. FCOS and RFLA have no such scale
            and leave it aside.
        detections_per_image, score_threshold, nms_threshold: see the heads.
        min_size, max_size, scale: see `DetectionTransform`.
        sac: of DetectoRS: whether its backbones have switchable atrous convolution, as the paper; without it they are
            those of the configuration that SR-TOD's authors released.
        rfla_paper: of RFLA: whether to train as the code that its authors released, see `rfla_region_proposal_network`.
        self_reconstruction_options: see `SelfReconstructionOptions`.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if the name is unknown or an option out of its range.
        ConnectionError: if the weights cannot be downloaded.
    """
    _check_known(self_reconstruction_options)
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; choose one of {', '.join(DETECTORS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background and must be at least 2, got {num_classes}")
    if name == "detectors" and not backbone.startswith("resnet"):
        raise ValueError(f"DetectoRS changes the blocks of a ResNet; choose such a backbone, got {backbone!r}")
    recipe = _RECIPES[name]
    transform = DetectionTransform(min_size, max_size, scale=scale)
    backbone_options: dict[str, Any] = {"weights": weights, "trainable_layers": trainable_layers, "norm": norm}
    if name == "detectors":
        backbone_options |= {"conv_aws": True, "sac": sac}
        body = build_backbone(backbone, **backbone_options, output_image=True)
        second = build_backbone(backbone, **backbone_options)
        neck = recipe.neck(second, body.channels, channels)
    else:
        body = build_backbone(backbone, **backbone_options)
        neck = recipe.neck(body.channels, channels)
    head_options: dict[str, Any] = {
        "detections_per_image": detections_per_image,
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
    }
    if anchor_scale is not None and name in ANCHORS:
        head_options["anchor_scale"] = anchor_scale
    if name == "rfla":
        head_options["rpn"] = rfla_region_proposal_network(
            channels,
            strides=(4, 8, 16, 32, 64),
            receptive_fields=receptive_fields(body.layers),
            proposals_per_image=max(1000, detections_per_image),
            paper=rfla_paper,
        )
    head = recipe.head(channels, num_classes, **head_options)
    reconstruction = None
    if self_reconstruction:
        with torch.random.fork_rng(devices=[]):  # leaves the generator as the plain detector does
            reconstruction = SelfReconstruction(
                channels,
                scale=recipe.stride,
                inplace=True,  # nothing else reads the level that is overwritten
                **self_reconstruction_options,
            )
    return Detector(transform, body, neck, head, num_classes, reconstruction)


def _check_known(options: Mapping[str, Any]) -> None:
    """Raises a TypeError for an option that `build_detector` does not have, with the nearest names."""
    own = list(inspect.signature(build_detector).parameters)[:-1]
    known = [*own, *(field.name for field in dataclasses.fields(SelfReconstructionOptions))]
    for name in options.keys() - set(known):
        hint = did_you_mean(name, known) or f"it has {', '.join(known)}"
        raise TypeError(f"build_detector has no option {name!r}; {hint}")
