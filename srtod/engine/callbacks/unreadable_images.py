"""The list of images that cannot be decoded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from srtod._support.files import replacing
from srtod.data.coco import name_some

from ..data import DetectionData
from ..distributed import gather, is_main_process

__all__ = ["UnreadableImages"]


class UnreadableImages(Callback):
    """Counts the images that were left out because they cannot be decoded, warns of new ones, and lists them in a file.

    Args:
        data: the run's data.
        path: the list. It is written once there is an image to list.
    """

    def __init__(self, data: DetectionData, path: Path) -> None:
        self.data = data
        self.path = path
        self.known: dict[str, list[str]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._report()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._report()

    def state_dict(self) -> dict[str, Any]:
        return {kind: flags.nonzero().flatten().tolist() for kind, flags in self.data.unreadable.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for kind, indices in state_dict.items():
            self.data.unreadable[kind][indices] = 1

    def _report(self) -> None:
        found: dict[str, list[str]] = {}
        sets = {"training": self.data.train_set, "test": self.data.test_set}
        for kind, flags in self.data.unreadable.items():
            flags |= torch.stack(gather(flags)).amax(0)
            images = sets[kind].ground_truth["images"] if flags.any() else []
            found[kind] = [images[index]["file_name"] for index in flags.nonzero().flatten().tolist()]
            if len(found[kind]) > len(self.known.get(kind, [])) and is_main_process():
                warnings.warn(
                    f"{len(found[kind])} of {len(flags)} {kind} images cannot be decoded and are left out: "
                    f"{name_some(found[kind])}; {self.path} lists them",
                    stacklevel=2,
                )
        if found != self.known and any(found.values()) and is_main_process():
            with replacing(self.path) as file:
                file.writelines(f"{kind}: {name}\n" for kind, names in found.items() for name in names)
        self.known = found
