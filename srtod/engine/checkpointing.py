"""When a run saves its checkpoints, and what has to be in them so that it can go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from srtod.data import DetectionDataset
from srtod.models.checkpoint import read_checkpoint, write_checkpoint

from .callbacks import Evaluation
from .distributed import gather, is_main_process

__all__ = ["BEST", "LAST", "AtomicCheckpointIO", "Checkpoints", "RandomState", "best_detections", "fingerprint"]

BEST, LAST = "best.ckpt", "last.ckpt"
RANDOM_STATE = "random_state"
"""Where a checkpoint holds the state of the random generators of each process."""


def best_detections(best: Path, step: int) -> Path:
    """Where the detections of `best.ckpt`, saved at this step, are kept: whatever fails, not those of another one."""
    return best.with_name(f"best_detections_{step}.pt")


def fingerprint(dataset: DetectionDataset) -> tuple[int, str]:
    """The number of images of a set, and a hash of their names, ids, boxes and categories, in their order."""
    truth = dataset.ground_truth
    rows = [
        [[image["file_name"], image["id"]] for image in truth["images"]],
        [
            [entry["image_id"], entry["category_id"], entry["bbox"], entry.get("iscrowd", 0)]
            for entry in truth["annotations"]
        ],
    ]
    # float, such as NumPy's numbers
    return len(truth["images"]), hashlib.sha256(json.dumps(rows, default=float).encode()).hexdigest()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without executing anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)


class Checkpoints(Checkpoint):
    """Keeps `best.ckpt`, the highest AP, and `last.ckpt`: the last finished epoch, or a later step of the one after.

    Unlike Lightning's `ModelCheckpoint` it knows the best AP also after its folder was moved.

    Args:
        folder: where they go; rank 0 tells the other processes.
        evaluation: whose detections are kept beside `best.ckpt`, for the report.
        save_every: optimizer steps between saves of `last.ckpt` within an epoch; None saves at its end alone.
        random_state: what puts the random generators into the checkpoints, a callback too.
        data: the `fingerprint` of each set, which a run that goes on must have too.

    Attributes:
        best: the highest AP so far, None before the first evaluation.
        finished: whether the run has trained its last epoch.
    """

    def __init__(
        self,
        folder: Path,
        evaluation: Evaluation,
        save_every: int | None,
        random_state: RandomState,
        data: dict[str, tuple[int, str]],
    ) -> None:
        self.folder = folder
        self.evaluation = evaluation
        self.save_every = save_every
        self.random_state = random_state
        self.data = data
        self.best: float | None = None
        self.finished = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        # Only behind a step: gradients that are being accumulated are in no checkpoint. Not behind the last of an
        # epoch: its evaluation follows, then the epoch's own save, and Lightning would resume behind the evaluation.
        batches = batch_index + 1
        stepped = batches % trainer.accumulate_grad_batches == 0 and batches < trainer.num_training_batches
        if self.save_every is not None and stepped and trainer.global_step % self.save_every == 0:
            for logger in trainer.loggers:
                logger.save()  # what was logged up to here is not logged again
            self._save(trainer, LAST)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        measured = float(trainer.callback_metrics["AP"])
        if self.best is None or measured > self.best:
            self.best = measured
            detections = best_detections(self.folder / BEST, trainer.global_step)
            if is_main_process():
                write_checkpoint(self.evaluation.detections, detections)
            self._save(trainer, BEST)
            if is_main_process():
                for other in set(self.folder.glob("best_detections_*.pt")) - {detections}:
                    other.unlink()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        for logger in trainer.loggers:
            logger.save()
        self._save(trainer, LAST)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        """Saves a checkpoint; all processes of the run are here."""
        with self.random_state.gathered(trainer):
            trainer.save_checkpoint(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "finished": self.finished, "data": self.data}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.finished = state_dict["best"], state_dict["finished"]


class RandomState(Callback):
    """Puts the state of every random generator into the checkpoints, and brings it back where a run goes on.

    It is brought back when all is built, since to build draws from the generators too.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    @contextmanager
    def gathered(self, trainer: L.Trainer) -> Iterator[None]:
        """What is saved inside holds the states of all processes, each of which has to come here."""
        self._gathered = gather(self._state(trainer))
        try:
            yield
        finally:
            self._gathered = None

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # SLURM's signal has Lightning save at any place, where other processes do not gather: then it is this one's.
        checkpoint[RANDOM_STATE] = [self._state(trainer)] if self._gathered is None else self._gathered

    def _state(self, trainer: L.Trainer) -> dict[str, Any]:
        """Of this process."""
        kind, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the one that other code may draw from)
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        state["numpy"] = (kind, np.asarray(key).tolist(), *rest)  # in plain values, which are read without a risk
        if trainer.strategy.root_device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint[RANDOM_STATE][trainer.global_rank]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._restored is None:
            return
        random.setstate(self._restored["python"])
        np.random.set_state(self._restored["numpy"])  # noqa: NPY002
        torch.set_rng_state(self._restored["torch"])
        if trainer.strategy.root_device.type == "cuda" and "cuda" in self._restored:
            torch.cuda.set_rng_state(self._restored["cuda"])
        self._restored = None
