"""The options of a detector: declared here, and read by models, command line, presets and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srtod._support.fields import check_values, option

from .backbones import BACKBONES, NORMS
from .heads.two_stage import BETAS, REPRESENTATION_SIZE
from .recipes import DETECTORS

__all__ = ["DetectorOptions"]


@dataclass(frozen=True)
class DetectorOptions:
    """A detector without its self-reconstruction.

    Types and ranges hold for `build_detector` and for training. The defaults are those of training;
    `build_detector` has the paper's.

    Raises:
        ValueError: if a value is of another type or out of its range.
    """

    detector: Literal[DETECTORS] = option(  # type: ignore[valid-type]  # type checkers cannot read the tuples
        "faster_rcnn", "what the detector is; docs/models.md describes each", near=("model",)
    )
    self_reconstruction: bool = option(True, "reconstruct the image and enhance P2 where that fails (SR-TOD)")
    backbone: Literal[tuple(BACKBONES)] = option(  # type: ignore[valid-type]
        "mobilenet_v2", "torchvision's classifier that the features come from"
    )
    weights: str | None = option(
        None,
        "torchvision's name of the backbone's weights (DEFAULT), or a file, or hf://OWNER/NAME/FILE; none: random",
        near=("pretrained",),
    )
    trainable_layers: int | None = option(
        None,
        "how many of the backbone's 5 layers train, from the last backwards; none: 3 with weights, else 5",
        within="natural",
        near=("freeze",),
    )
    norm: Literal[NORMS] | None = option(  # type: ignore[valid-type]
        None,
        "the backbone's normalisation; none: frozen_batch with weights, else group, which suits batches of few images",
    )
    channels: int = option(
        64, "channels of the feature pyramid; the paper has 256, at 16 times the cost", within="positive"
    )
    anchor_scale: float | None = option(
        2.0,
        "side of a square anchor, in strides (paper: DroneSwarms 2, AI-TOD 4, VisDrone 6); auto: fitted to the "
        "training set; none: the detector's own; fcos, rfla and detectors_rfla have no such scale",
        alias="anchors",
        within="positive",
    )
    detections_per_image: int = option(100, "the most detections an image", within="positive", near=("max_det",))
    score_threshold: float = option(
        0.05, "detections must score above this", within="below_one", near=("conf", "conf_thres")
    )
    nms_threshold: float = option(
        0.5,
        "IoU above which the lower-scoring of two detections of a class is dropped",
        within="share",
        near=("iou", "iou_thres"),
    )
    min_size: tuple[int, ...] | None = option(
        None,
        "resize images to this shorter side, in pixels; of several, one is drawn for each training image and the last "
        "is used otherwise; none: keep their own size",
        within="positive",
        near=("img", "imgsz", "img_size", "image_size"),
    )
    max_size: int | None = option(
        None, "the longer side never exceeds this, in pixels; none: no limit", within="positive"
    )
    scale: float = option(1.0, "factor on the images' own size; not together with min-size", within="positive")
    proposals: int | None = option(
        None,
        "two-stage detectors: the most proposals an image; none: 2000 in training, and 1000 or detections-per-image in "
        "evaluation",
        within="positive",
    )
    allowed_border: float | None = option(
        None,
        "two-stage detectors: train proposals on anchors that reach at most so far beyond the image, in pixels; none: "
        "on all",
        within="natural",
    )
    representation_size: int = option(
        REPRESENTATION_SIZE,
        "two-stage detectors: width of the two layers that classify a proposal and place its box",
        within="positive",
    )
    box_loss: Literal[tuple(BETAS)] = option(  # type: ignore[valid-type]
        "smooth_l1", "faster_rcnn and tridentnet: loss of its boxes; l1: as the authors of SR-TOD"
    )
    sac: bool = option(
        True, "detectors: switchable atrous convolution, as its paper; no-sac: as released by the authors of SR-TOD"
    )
    rfla_paper: bool = option(
        False, "rfla: train proposals as its authors' code, such as against anchors shrunk to 0.9; docs/models.md"
    )

    scale_aware: bool = option(
        True, "tridentnet: branches learn objects of their sizes; no-scale-aware: all objects, as the authors of SR-TOD"
    )

    def __post_init__(self) -> None:
        check_values(self)
