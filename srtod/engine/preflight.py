"""What a detector would miss of a data set, told before it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from srtod.data.problems import Problem
from srtod.models import ANCHORS
from srtod.models.anchors import AnchorFit, best_overlaps, fit_anchor_scale

from .config import ModelConfig
from .data import object_sizes, objects

__all__ = ["fit_anchors", "misfits"]

SMALLEST = 2.0
"""Objects below this, the square root of their area in pixels, are not what the detectors are made for."""

BACKGROUND = 0.3
"""The IoU below which the proposals of two-stage detectors take an anchor for background."""


def fit_anchors(ground_truth: Mapping[str, Any], model: ModelConfig) -> AnchorFit | None:
    """The anchor scale that suits a set; None where the detector's anchors have none, or the set has no objects."""
    sizes = object_sizes(ground_truth, model)
    if model.detector not in ANCHORS or not len(sizes):
        return None
    layout = ANCHORS[model.detector]
    return fit_anchor_scale(sizes, layout.strides, ratios=layout.ratios, octaves=layout.octaves)


def misfits(ground_truth: Mapping[str, Any], model: ModelConfig, fit: AnchorFit | None) -> Iterator[Problem]:
    """Objects that are too small at the size that the detector works at, and those that its anchors miss.

    Args:
        ground_truth: the set as a COCO dict.
        model: the detector; where its anchor scale is `auto`, or the head's own, anchors are not looked at.
        fit: what `fit_anchors` gave for the training set.
    """
    sizes = object_sizes(ground_truth, model)
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    files = [names[entry["image_id"]] for entry in objects(ground_truth)]
    roots = sizes.prod(dim=1).sqrt()
    if small := [f"{file} ({root:.1f})" for file, root in zip(files, roots.tolist(), strict=True) if root < SMALLEST]:
        yield Problem(
            f"objects of less than {SMALLEST:g} pixels at the size that the detector works at; raise --min-size", small
        )
    if fit is None or not isinstance(model.anchor_scale, float):
        return
    layout = ANCHORS[model.detector]
    own, best = (best_overlaps(sizes, scale, layout) for scale in (model.anchor_scale, fit.scale))
    missed: Tensor = (own < BACKGROUND) & (best >= BACKGROUND)
    if bool(missed.any()):
        yield Problem(
            f"objects that anchors of scale {model.anchor_scale:g} miss (IoU below {BACKGROUND:g}) and those of scale "
            f"{fit.scale:g} do not; train with --anchors auto",
            [files[index] for index in missed.nonzero().flatten().tolist()],
        )
