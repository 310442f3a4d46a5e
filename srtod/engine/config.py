"""What a training run can be told: plain dataclasses, from which `python -m srtod.train` also makes its options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from srtod.models.anchors import ANCHORS
from srtod.models.backbones import default_trainable_layers

__all__ = ["DataConfig", "ModelConfig", "TrainConfig", "option"]


def option(default: Any, doc: str, *, alias: str | None = None) -> Any:
    """A dataclass field whose documentation is at hand when the program runs: `--help` prints it.

    `alias` is a second name of the field on the command line.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "alias": alias})


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    detector: Literal["retinanet", "faster_rcnn", "cascade_rcnn", "detectors", "rfla", "fcos", "atss"] = option(
        "faster_rcnn", "what the detector is; docs/models.md describes each"
    )
    self_reconstruction: bool = option(True, "reconstruct the image and enhance P2 where that fails (SR-TOD)")
    backbone: Literal["mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = option(
        "mobilenet_v2", "torchvision's classifier that the features come from"
    )
    weights: str | None = option(
        None, "torchvision's name of the backbone's weights (DEFAULT), or a file; none: random"
    )
    trainable_layers: int | None = option(
        None, "how many of the backbone's 5 layers train, from the last backwards; none: 3 with weights, else 5"
    )
    norm: Literal["frozen_batch", "batch", "group"] | None = option(
        None,
        "the backbone's normalisation; none: frozen_batch with weights, else group, which suits batches of few images",
    )
    channels: int = option(64, "channels of the feature pyramid; the paper has 256, at 16 times the cost")
    anchor_scale: float | Literal["auto"] | None = option(
        2.0,
        "side of a square anchor, in strides (paper: DroneSwarms 2, AI-TOD 4, VisDrone 6); auto: fitted to the "
        "training set; none: the detector's own; fcos and rfla have no such scale",
        alias="anchors",
    )
    detections_per_image: int = option(100, "the most detections an image")
    score_threshold: float = option(0.05, "detections must score above this")
    nms_threshold: float = option(0.5, "IoU above which the lower-scoring of two detections of a class is dropped")
    min_size: int | None = option(None, "resize images to this shorter side, in pixels; none: keep their own size")
    max_size: int | None = option(None, "the longer side never exceeds this, in pixels; none: no limit")
    scale: float = option(1.0, "factor on the images' own size where min-size is none")
    sac: bool = option(
        True, "detectors: switchable atrous convolution, as its paper; no-sac: as released by the authors of SR-TOD"
    )
    rfla_paper: bool = option(False, "rfla: train proposals against anchors shrunk to 0.9, as its authors' code does")
    enhancement: Literal["dgfe", "none", "multiplication", "concatenation", "attention"] = option(
        "dgfe", "what the difference map does to the features; none: the reconstruction's loss alone acts on them"
    )
    difference: Literal["pixel", "high_frequency"] = option(
        "pixel", "difference map of all of the image, or of its high frequencies alone"
    )
    cutoff: float = option(1 / 32, "frequency below which nothing counts for high_frequency, in cycles per pixel")
    threshold: float | None = option(
        4 / 255, "initial threshold of the difference map, grey levels of [0, 1], such as 4/255; none: no threshold"
    )
    learn_threshold: bool = option(True, "train the threshold")
    surrogate: Literal["sigmoid", "ste", "atan", "triangle", "rect", "none"] = option(
        "sigmoid", "gradient of the threshold's step; none is the authors' code, where the threshold never learns"
    )
    alpha: float | None = option(None, "sharpness of the surrogate; none: one that suits a few grey levels")
    reduction: int = option(16, "ratio by which the MLP of the channel reweighting narrows")
    resize: Literal["nearest", "max", "area", "bilinear"] = option("nearest", "how the filter comes to the size of P2")
    padding_in_loss: bool = option(False, "count a batch's padding in the reconstruction loss, as the authors' code")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `srtod.models.build_detector`, but for the number of classes.

        Raises:
            ValueError: if the anchor scale is still to be fitted; `srtod.engine.train` does that.
        """
        if self.anchor_scale == "auto":
            raise ValueError("anchor_scale='auto' is fitted by srtod.engine.train to its training set; pass a number")
        arguments = dataclasses.asdict(self)
        layers = self.trainable_layers
        return arguments | {
            "name": arguments.pop("detector"),
            "anchor_scale": self.anchor_scale if self.detector in ANCHORS else None,
            "trainable_layers": default_trainable_layers(self.weights) if layers is None else layers,
            "norm": self.norm or ("group" if self.weights is None else "frozen_batch"),
        }


@dataclass(frozen=True)
class DataConfig:
    """The data: COCO files, or else the generated swarm set."""

    train_json: str | None = option(None, "COCO annotations to train on; none: the generated swarm set")
    train_images: str | None = option(None, "folder of the images of train-json")
    test_json: str | None = option(None, "COCO annotations to evaluate on")
    test_images: str | None = option(None, "folder of the images of test-json; none: train-images")
    swarm_images: int = option(240, "swarm set: training images; a fifth as many to evaluate on")
    swarm_size: int = option(192, "swarm set: side of the images, in pixels")
    horizontal_flip: float = option(0.5, "probability of the horizontal flip in training")
    batch_size: int = option(2, "images a training step")
    workers: int = option(0, "processes that load images beside the training process")


@dataclass(frozen=True)
class TrainConfig:
    """The training run.

    Args:
        model: the detector.
        data: the data.
        output: the run's folder; where it exists, the next free of `output-2`, `output-3`, ...

    Raises:
        ValueError: if a value is out of its range, or two do not go together.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    epochs: int = option(6, "passes over the training set")
    lr: float = option(0.02, "learning rate of SGD after the warm-up")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay of SGD; not on the threshold, biases and norms")
    threshold_lr: float = option(
        0.01,
        "learning rate of the threshold, as a share of lr: its unit is the white of an image, and it moves by 1/255s",
    )
    lr_steps: tuple[int, ...] | None = option(
        None, "epochs after which the learning rate drops to a tenth; none: after 2/3 and 11/12 of them, as 8 11 of 12"
    )
    warmup: int = option(500, "steps over which the learning rate rises from 0.001 of it; at most a tenth of the run's")
    clip_grad_norm: float | None = option(10.0, "scale gradients down to this norm over all parameters; none: never")
    eval_every: int = option(1, "epochs between evaluations; divides epochs")
    seed: int = option(0, "seed of the weights, the order of the data and the augmentation")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", "floating-point precision")
    accelerator: Literal["auto", "cpu", "cuda"] = option("auto", "where to train")
    threads: int | None = option(None, "threads of the CPU; none: PyTorch's choice")
    limit_batches: int | None = option(None, "only so many batches of each epoch and evaluation: a quick trial")
    panels: int = option(4, "test images to make pictures of at the end")
    output: str | None = option(None, "the run's folder, never overwritten: runs/x becomes runs/x-2; none: runs/<data>")

    def __post_init__(self) -> None:
        positive = {name: getattr(self, name) for name in ("epochs", "lr", "eval_every", "threads", "limit_batches")}
        positive |= {"clip_grad_norm": self.clip_grad_norm, "batch_size": self.data.batch_size}
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        natural = {
            name: getattr(self, name)
            for name in ("momentum", "weight_decay", "threshold_lr", "warmup", "seed", "panels")
        }
        for name, value in (natural | {"workers": self.data.workers}).items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.epochs % self.eval_every:
            raise ValueError(
                f"eval_every must divide epochs, so that the last epoch is evaluated, got {self.eval_every} and "
                f"{self.epochs}"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"lr_steps must be rising numbers of epochs, such as 8 11, got {self.milestones}")

    @property
    def milestones(self) -> tuple[int, ...]:
        """The epochs after which the learning rate drops to a tenth."""
        if self.lr_steps is not None:
            return self.lr_steps
        return tuple(sorted({max(1, round(self.epochs * 2 / 3)), max(1, round(self.epochs * 11 / 12))}))

    def as_dict(self) -> dict[str, Any]:
        """All options in one plain dictionary, by name."""
        plain = dataclasses.asdict(self)
        return plain.pop("model") | plain.pop("data") | plain
