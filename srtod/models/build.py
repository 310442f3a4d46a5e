"""Detectors by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .backbones import build_backbone
from .detector import Detector
from .heads import TwoStageHead
from .necks import FPN
from .self_reconstruction import SelfReconstruction
from .transform import DetectionTransform

__all__ = ["DETECTORS", "build_detector"]

DETECTORS = ("faster_rcnn",)


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
    anchor_scale: float = 4,
    detections_per_image: int = 100,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    min_size: int | Sequence[int] | None = 800,
    max_size: int | None = 1333,
    scale: float = 1.0,
    threshold: float = 4 / 255,
    learn_threshold: bool = True,
    resize: str = "nearest",
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    reduction: int = 16,
    padding_in_loss: bool = False,
) -> Detector:
    """Builds a detector, with or without self-reconstruction.

    Under the same `torch.manual_seed` both start from the same weights in all parts they share and leave the random
    generator in the same state, so that two runs differ in self-reconstruction alone.

    Args:
        name: one of `DETECTORS`.
        num_classes: number of classes, background included (one kind of object: 2).
        self_reconstruction: whether to add `SelfReconstruction` on P2.
        backbone, weights, trainable_layers, norm: see `build_backbone`.
        channels: channels of the pyramid.
        anchor_scale, detections_per_image, score_threshold, nms_threshold: see `TwoStageHead`.
        min_size, max_size, scale: see `DetectionTransform`.
        threshold, learn_threshold, resize, surrogate, alpha, reduction, padding_in_loss: see `SelfReconstruction`.

    Raises:
        ValueError: if the name is unknown or an option out of its range.
        ConnectionError: if the weights cannot be downloaded.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; choose one of {', '.join(DETECTORS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background and must be at least 2, got {num_classes}")
    transform = DetectionTransform(min_size, max_size, scale=scale)
    body = build_backbone(backbone, weights=weights, trainable_layers=trainable_layers, norm=norm)
    neck = FPN(body.channels, channels)
    head = TwoStageHead(
        channels,
        num_classes,
        anchor_scale=anchor_scale,
        detections_per_image=detections_per_image,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
    )
    reconstruction = None
    if self_reconstruction:
        with torch.random.fork_rng(devices=[]):  # leaves the generator as the plain detector does
            reconstruction = SelfReconstruction(
                channels,
                threshold=threshold,
                learn_threshold=learn_threshold,
                resize=resize,
                surrogate=surrogate,
                alpha=alpha,
                reduction=reduction,
                padding_in_loss=padding_in_loss,
                inplace=True,  # nothing else reads the P2 that is overwritten
            )
    return Detector(transform, body, neck, head, num_classes, reconstruction)
