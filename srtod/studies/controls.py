"""Controls: filters that do not come from the difference map of the image, to tell what the map's place is worth.

They are no method: they belong to a study, their checkpoints name them, and `load_detector` refuses those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srtod.data import Target
from srtod.engine import DetectionModule, TrainConfig
from srtod.models.checkpoint import CONTROL
from srtod.models.reconstruction import object_mask

__all__ = ["CONTROLS", "Control", "ControlledModule", "check_control"]

CONTROLS = ("ones", "shuffled", "random", "oracle")

NOWHERE, ALWAYS = -1.0, 2.0
"""Differences that no threshold in [0, 1] lets pass, and that every one does."""

Sizes = Sequence[tuple[int, int]]


class Control:
    """Replaces the difference map just before the enhancement, at the size of the enhanced level.

        ones        nothing passes: the filter is 1 everywhere
        shuffled    the map of the batch's next image, or in a batch of one that of the batch before; turned by 180
                    degrees, for neighbouring frames of a video are alike; at the very first it is the image's own
        random      the image's own map, its pixels in a random order: the same share passes, anywhere
        oracle      what the boxes of the ground truth touch passes, in training and in evaluation

    `begin` must be called before each batch. What it gives depends on seed, epoch and batch alone, and for "shuffled"
    on `previous`, which a checkpoint has to hold.

    Args:
        name: one of `CONTROLS`.
        seed: of "random".

    Attributes:
        previous: of "shuffled": the map `[1, h, w]` of the last image of training.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.previous: Tensor | None = None
        self._evaluated: Tensor | None = None  # likewise, of evaluation
        self._training = True
        self._generator = torch.Generator()
        self._sizes: Sizes = ()  # of the images, before the detector resized them
        self._boxes: Sequence[Tensor] = ()

    def begin(
        self, images: Sequence[Tensor], targets: Sequence[Target], *, epoch: int, batch: int, training: bool
    ) -> None:
        """Prepares for a batch.

        Args:
            images: as the detector gets them, `[3, h, w]` each.
            targets: theirs; `boxes` are in pixels of the image.
            epoch: the epoch of the training.
            batch: number of the batch in the epoch or evaluation.
            training: whether the batch is trained on.
        """
        if not training and batch == 0:
            self._evaluated = None
        self._training = training
        self._generator.manual_seed((((self.seed * 10**5 + epoch) * 10**7 + batch) * 2 + training) % 2**63)
        self._sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        self._boxes = [target["boxes"] for target in targets]

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, maps: Tensor, image_sizes: Sizes | None, stride: int = 4) -> Tensor:
        """The map that replaces the difference map.

        Args:
            maps: the difference map at the size of the enhanced level, `[N, 1, h, w]`.
            image_sizes: (height, width) of each image in the batch, without its padding.
            stride: of the level.

        Returns:
            `[N, 1, h, w]`, of which padding never passes.
        """
        size = h, w = maps.shape[2], maps.shape[3]
        pixels = image_sizes or [(h * stride, w * stride)] * len(maps)
        cells = [(-(-height // stride), -(-width // stride)) for height, width in pixels]
        own = [one[:, :rows, :columns] for one, (rows, columns) in zip(maps, cells, strict=True)]
        replaced = torch.full_like(maps, NOWHERE)
        if self.name == "oracle":
            for index, mask in enumerate(self._objects(pixels, size, stride)):
                replaced[index][mask] = ALWAYS
        elif self.name == "random":
            for index, (one, (rows, columns)) in enumerate(zip(own, cells, strict=True)):
                order = torch.randperm(one.numel(), generator=self._generator).to(one.device)
                replaced[index, :, :rows, :columns] = one.flatten()[order].reshape(one.shape)
        elif self.name == "shuffled":
            for index, (other, (rows, columns)) in enumerate(zip(self._others(own), cells, strict=True)):
                replaced[index, :, :rows, :columns] = F.interpolate(other[None], (rows, columns), mode="nearest")[0]
        return replaced

    def _objects(self, pixels: Sizes, size: tuple[int, int], stride: int) -> Tensor:
        """Which pixels of the level the objects touch, bool `[N, 1, h, w]`."""
        scaled = []
        for boxes, (height, width), (new_height, new_width) in zip(self._boxes, self._sizes, pixels, strict=True):
            factors = boxes.new_tensor([new_width / width, new_height / height] * 2)
            scaled.append(boxes.as_subclass(Tensor) * factors)
        return object_mask(scaled, size, stride)

    def _others(self, maps: list[Tensor]) -> list[Tensor]:
        """For each image the turned map `[1, h, w]` of another."""
        previous = self.previous if self._training else self._evaluated
        last = maps[-1].clone()
        if self._training:
            self.previous = last
        else:
            self._evaluated = last
        others = [*maps[1:], maps[0]] if len(maps) > 1 else [last if previous is None else previous.to(last)]
        return [other.flip(1, 2) for other in others]


class ControlledModule(DetectionModule):
    """A training whose detector's filter a control replaces, in training and in evaluation.

    Args:
        control: one of `CONTROLS`.
        config, class_names, category_ids: see `DetectionModule`.
    """

    def __init__(
        self, control: str, config: TrainConfig, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> None:
        super().__init__(config, class_names, category_ids)
        self.control = Control(control, config.seed)
        reconstruction = self.detector.self_reconstruction
        assert reconstruction is not None  # says `check_control`
        reconstruction.replacement = lambda maps, sizes: self.control(maps, sizes, reconstruction.scale)

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {CONTROL: self.control.name}

    def training_step(self, batch: tuple[list[Tensor], list[Target]], batch_index: int) -> Tensor:
        self.control.begin(*batch, epoch=self.current_epoch, batch=batch_index, training=True)
        return super().training_step(batch, batch_index)

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], batch_index: int) -> dict[str, Any]:
        self.control.begin(*batch, epoch=self.current_epoch, batch=batch_index, training=False)
        return super().validation_step(batch, batch_index)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[CONTROL] = {"previous": self.control.previous}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.control.previous = checkpoint[CONTROL]["previous"]


def check_control(control: str, config: TrainConfig) -> None:
    """Raises a ValueError if a run has no filter that a control could replace, or has several processes."""
    options = config.model.self_reconstruction_options
    if not config.model.self_reconstruction or options.enhancement == "none":
        raise ValueError(f"control {control} replaces the filter, and this variant has none; set an enhancement")
    if options.threshold is None or options.resize not in ("nearest", "max"):
        raise ValueError(
            f"control {control} needs a threshold and resize nearest or max, got threshold {options.threshold} and "
            f"resize {options.resize}"
        )
    if config.devices * config.nodes > 1:
        raise ValueError(f"control {control} runs in one process; set devices and nodes to 1")
