"""What a training run can be told: plain dataclasses, from which `python -m srtod.train` also makes its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from srtod._support.fields import build, check_ranges, flat, option, redeclared
from srtod.data.layouts import layout_names
from srtod.data.swarm import KINDS, MIN_SIDE
from srtod.models import ANCHORS
from srtod.models.backbones import default_trainable_layers
from srtod.models.options import DetectorOptions
from srtod.models.reconstruction import SelfReconstructionOptions

__all__ = ["DataConfig", "ModelConfig", "TrainConfig"]


@dataclass(frozen=True)
class ModelConfig(DetectorOptions):
    """The detector.

    Raises:
        ValueError: if a value is of another type or out of its range.
    """

    anchor_scale: float | Literal["auto"] | None = redeclared(  # type: ignore[assignment]  # wider: fitted before use
        DetectorOptions, "anchor_scale"
    )
    self_reconstruction_options: SelfReconstructionOptions = SelfReconstructionOptions()

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `srtod.models.build_detector`, but for the number of classes.

        Raises:
            ValueError: if the anchor scale is still to be fitted; `srtod.engine.train` does that.
        """
        if self.anchor_scale == "auto":
            raise ValueError("anchor_scale='auto' is fitted by srtod.engine.train to its training set; pass a number")
        arguments = flat(self)
        layers = self.trainable_layers
        return arguments | {
            "name": arguments.pop("detector"),
            "anchor_scale": self.anchor_scale if self.detector in ANCHORS else None,
            "trainable_layers": default_trainable_layers(self.weights) if layers is None else layers,
            "norm": self.norm or ("group" if self.weights is None else "frozen_batch"),
        }


@dataclass(frozen=True)
class DataConfig:
    """The data: a folder, or COCO files, or else the generated swarm set.

    Raises:
        ValueError: if a value is out of its range, or two do not go together.
    """

    data: str | None = option(
        None,
        f"folder of a data set, laid out as {layout_names()}, which is found out; none: train-json, or else the "
        "generated swarm set",
        near=("coco_path",),
    )
    train_split: str | None = option(
        None, "the part of data to train on, such as train; none: trainval, or train where there is no trainval"
    )
    test_split: str | None = option(
        None,
        "the part of data to evaluate on; none: the one that the data set's authors take, or else val, or test where "
        "there is no val or trainval, which contains it, is trained on",
    )
    train_json: str | None = option(None, "COCO annotations to train on, in place of data")
    train_images: str | None = option(None, "folder of the images of train-json")
    test_json: str | None = option(None, "COCO annotations to evaluate on")
    test_images: str | None = option(None, "folder of the images of test-json; none: train-images")
    allow_outside: bool = option(
        False,
        "take images that a COCO file names outside of its image folder, such as ../a.png or /data/a.png; for files "
        "that you trust",
    )
    intensity_range: tuple[float, ...] | Literal["auto"] | None = option(
        None,
        "low and high: the values of 16-bit and floating-point images that become black and white, such as 0 16383 of "
        "a 14-bit sensor; auto: the 0.1 and 99.9 percentiles of the training images; none: 0 and 65535. 8-bit images "
        "stay as they are",
    )
    single_class: bool = option(
        False,
        "take the objects of all classes for one class, `object`: to find things, whatever they are",
        near=("single_cls",),
    )
    train_subset: int | None = option(
        None, "train on so many of the training images, evenly spaced in their order; none: all", within="positive"
    )
    swarm_images: int = option(240, "swarm set: training images", within="positive")
    swarm_test_images: int | None = option(
        None, "swarm set: images to evaluate on; none: a fifth of swarm-images", within="positive"
    )
    swarm_kind: Literal[tuple(KINDS)] = option(  # type: ignore[valid-type]
        "usual", "swarm set: drones of 3-16 px, or for hard of 3-8 px, with little contrast, among more birds"
    )
    swarm_size: int = option(192, f"swarm set: side of the images, in pixels, at least {MIN_SIDE}", within="positive")
    horizontal_flip: float = option(
        0.5, "probability of the horizontal flip in training", within="share", near=("fliplr",)
    )
    scale_jitter: tuple[float, ...] | None = option(
        None, "low and high: resize each training image by a factor drawn between them; none: never", within="positive"
    )
    crop: int | None = option(
        None,
        "side of a square cut out of each training image, with its tiny objects, in pixels; none: all of it",
        within="positive",
    )
    photometric: float = option(
        0.0, "probability of a change of brightness, contrast, saturation and hue in training", within="share"
    )
    copy_paste: int = option(
        0,
        "at most so many tiny objects, up to 100, are pasted into each training image, copied within it",
        within="natural",
    )
    batch_size: int = option(2, "images a training step, on each device", within="positive", near=("batch", "bs"))
    workers: int = option(0, "processes that load images beside the training process", within="natural")
    skip_bad_images: bool = option(
        False, "leave out images that cannot be decoded, and count them, instead of stopping"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.scale_jitter is not None and (
            len(self.scale_jitter) != 2 or self.scale_jitter != tuple(sorted(self.scale_jitter))
        ):
            raise ValueError(f"scale_jitter must be a low and a high factor, such as 0.8 1.25, got {self.scale_jitter}")
        given = self.intensity_range
        if isinstance(given, tuple) and (len(given) != 2 or given[0] >= given[1]):
            raise ValueError(f"intensity_range must be a low and a higher value, such as 0 16383, got {given}")
        if self.swarm_size < MIN_SIDE:
            raise ValueError(f"swarm_size must be at least {MIN_SIDE} pixels, got {self.swarm_size}")
        self._check_sources()

    def _check_sources(self) -> None:
        """Raises a ValueError for an option that would have no effect, as another one says where the data is."""
        given = {name for name, value in dataclasses.asdict(self).items() if value is not None}
        beside = [name for name in ("train_images", "test_json", "test_images") if name in given]
        splits = [name for name in ("train_split", "test_split") if name in given]
        if self.data == "":
            raise ValueError("data is empty; pass the folder of a data set, or . for the current one")
        if {"data", "train_json"} <= given:
            raise ValueError("data and train_json both say what to train on; pass one of them")
        if self.data is not None and beside:
            raise ValueError(
                f"{beside[0]} has no effect beside data; choose parts of data with train_split and test_split, or pass "
                "train_json in place of data"
            )
        if self.data is None and splits:
            raise ValueError(
                f"{splits[0]} is a part of data, which is not given; pass data, or set {' and '.join(splits)} to none"
            )
        if self.data is None and self.train_json is None and beside:
            raise ValueError(f"{beside[0]} is given without train_json; pass the annotations to train on too")


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
    epochs: int = option(6, "passes over the training set", within="positive")
    optimizer: Literal["sgd", "adamw"] = option("sgd", "what updates the weights; adamw for detectors with queries")
    lr: float = option(0.02, "learning rate after the warm-up", within="positive", near=("learning_rate",))
    lr_batch: int | None = option(
        None,
        "images a step that lr is meant for: a run with more or fewer scales lr in proportion; none: lr as it is",
        within="positive",
    )
    momentum: float = option(0.9, "momentum of SGD", within="below_one")
    weight_decay: float = option(
        1e-4, "weight decay; not on the threshold, biases and norms", within="natural", near=("wd",)
    )
    reconstruction_lr: float = option(
        1.0, "learning rate of the reconstruction head, as a multiple of lr", within="positive"
    )
    threshold_lr: float = option(
        0.01,
        "learning rate of the threshold, as a share of lr; small, for steps of 1/255 matter to it",
        within="natural",
    )
    lr_steps: tuple[int, ...] | None = option(
        None, "epochs after which the learning rate drops to a tenth; none: after 2/3 and 11/12 of them, as 8 11 of 12"
    )
    warmup: int | None = option(
        None,
        "steps over which the learning rate rises from 0.001 of it; none: 500, or a tenth of the run's if that is less",
        within="natural",
    )
    accumulate: int = option(1, "batches whose gradients make one step", within="positive")
    clip_grad_norm: float | None = option(
        10.0, "scale gradients down to this norm over all parameters; none: never", within="positive"
    )
    ema: float | None = option(
        None, "decay of the averaged weights that are evaluated and saved, such as 0.999; none: the weights themselves"
    )
    eval_every: int = option(1, "epochs between evaluations; divides epochs", within="positive", near=("val_interval",))
    early_stop: int | None = option(
        None, "end after so many evaluations without a better AP; none: never", within="positive", near=("patience",)
    )
    save_every: int | None = option(
        None, "steps between saves of last.ckpt within an epoch; none: at its end alone", within="positive"
    )
    seed: int = option(0, "seed of the weights, the order of the data and the augmentation", within="natural")
    deterministic: bool = option(False, "use deterministic algorithms alone, so that a run can be repeated bit by bit")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option(
        "32-true", "floating-point precision", near=("amp", "half")
    )
    compile: bool = option(False, "compile backbone, neck and, for training, self-reconstruction with torch.compile")
    accelerator: Literal["auto", "cpu", "cuda"] = option("auto", "where to train", near=("device",))
    devices: int = option(
        1, "GPUs of each machine, or processes on the CPU", within="positive", near=("device", "gpus")
    )
    nodes: int = option(1, "machines", within="positive")
    threads: int | None = option(None, "threads of the CPU; none: PyTorch's choice", within="positive")
    limit_batches: int | None = option(
        None, "only so many batches of each epoch and evaluation: a quick trial", within="positive"
    )
    panels: int = option(
        12,
        "pictures in the report, of the test images with the worst misses; up to 4 are also logged at evaluations",
        within="natural",
    )
    wandb: str | None = option(None, "also log to this project of Weights & Biases, which must be installed")
    output: str | None = option(
        None,
        "the run's folder, never overwritten: runs/x becomes runs/x-2; none: runs/<data>",
        near=("project", "name", "work_dir"),
    )
    resume: str | None = option(
        None,
        "folder of a run to go on with, from its last checkpoint and with its configuration; workers, threads, panels, "
        "recompute and where the data are may differ",
        near=("checkpoint", "ckpt"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, such as 0.999, got {self.ema}")
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
        return flat(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TrainConfig:
        """The run with these options, by name, and the defaults of all others; such as `read_config` gives."""
        return build(cls, options)
