"""What the filter of the difference map lets through on the test images: how much, and how much of it on objects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from srtod.data import Target
from srtod.models.reconstruction import object_mask

from ..distributed import is_main_process, mean
from ..module import DetectionModule

__all__ = ["FilterShare"]

CURE = "set threshold to auto, with a pass_share such as 0.1, or to more grey levels"


class FilterShare(Callback):
    """Logs, of the test images' pixels at the size of the filtered level:

    - `filter_share`: the share where the filter is above 1;
    - `filter_precision`: the share of those that an object touches;
    - `filter_recall`: the share of the pixels that an object touches where the filter is above 1.

    It uses the filters that an evaluation makes anyway. Padding does not count. Warns once if over half of the pixels
    pass, or as large a share outside objects as inside. A detector without a filter logs nothing.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(4, dtype=torch.float64)  # pixels that pass, all, on objects, both
        self._seen: list[tuple[Tensor, Sequence[tuple[int, int]] | None]] = []
        self._has_warned = False
        self._stride = 4

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        reconstruction = module.detector.self_reconstruction
        if reconstruction is not None:
            self._counts = torch.zeros(4, dtype=torch.float64, device=module.device)
            self._stride = reconstruction.scale
            reconstruction.observer = lambda filters, sizes: self._seen.append((filters, sizes))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: tuple[list[Tensor], list[Target]],
        batch_index: int,
        dataloader_index: int = 0,
    ) -> None:
        for filters, sizes in self._seen:
            images, targets = batch
            assert sizes is not None  # of a detector
            for passes, size, image, target in zip(filters > 1, sizes, images, targets, strict=True):
                self._count(passes, size, image, target["boxes"].to(passes.device))
        self._seen.clear()

    def _count(self, passes: Tensor, size: tuple[int, int], image: Tensor, boxes: Tensor) -> None:
        """Adds an image `[3, H, W]`, whose filter passes in `[1, h, w]` and which the detector resized to `size`."""
        (height, width), (h, w) = image.shape[-2:], size
        boxes = boxes * boxes.new_tensor([w / width, h / height] * 2)
        passes = passes[0, : -(-h // self._stride), : -(-w // self._stride)]
        objects = object_mask([boxes], (passes.shape[0], passes.shape[1]), self._stride)[0, 0]
        total = passes.new_tensor(passes.numel(), dtype=torch.float64)
        self._counts += torch.stack([passes.sum(), total, objects.sum(), (passes & objects).sum()])

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        reconstruction = module.detector.self_reconstruction
        if reconstruction is None:
            return
        reconstruction.observer = None
        passed, total, objects, both = mean(self._counts).tolist()
        if not total:
            return
        module.log("filter_share", passed / total)
        if passed:
            module.log("filter_precision", both / passed)
        if objects:
            module.log("filter_recall", both / objects)
        inside, outside = both / max(objects, 1e-9), (passed - both) / max(total - objects, 1e-9)
        found = None
        if passed > total / 2:
            found = f"{passed / total:.0%} of the pixels pass the filter: it hardly selects"
        elif passed and objects and inside <= outside:
            found = f"the filter passes {inside:.0%} of the pixels on objects and {outside:.0%} of the others"
        if found is not None and not self._has_warned and is_main_process():
            self._has_warned = True
            warnings.warn(f"{found}; {CURE}", stacklevel=2)
