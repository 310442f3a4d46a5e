"""Checkpoints of a run: when they are saved, and what they hold so that a resumed run ends as an unbroken one."""

from __future__ import annotations

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
from torch import Tensor

from srtod._support.tensor_files import read_tensors
from srtod.models.checkpoint import read_checkpoint, write_checkpoint

from ..distributed import gather, is_main_process
from .evaluation import Detections, Evaluation

__all__ = [
    "BEST",
    "LAST",
    "RANDOM_STATE",
    "AtomicCheckpointIO",
    "Checkpoints",
    "RandomState",
    "best_detections",
    "read_best_detections",
]

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
"""Where a run's folder holds its checkpoints."""

RANDOM_STATE = "random_state"
"""Where a checkpoint holds the state of the random generators of each process."""


def best_detections(best: Path, step: int) -> Path:
    """The file with the detections of `best.ckpt`; the step in its name ties it to the checkpoint of that step."""
    return best.with_name(f"best_detections_{step}.pt")


def read_best_detections(best: Path, step: int) -> Detections:
    """The detections of `best.ckpt`, see `Evaluation`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds something else.
    """
    path = best_detections(best, step)
    cure = f"find the objects of the test images anew by srtod predict {best}"
    detections = read_tensors(path, f"is damaged or holds something else than detections; {cure}")
    if not isinstance(detections, dict) or not all(map(_are_detections, detections.values())):
        raise ValueError(f"{path} holds something else than detections; {cure}")
    return detections


def _are_detections(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    boxes, labels, scores = (found.get(name) for name in ("boxes", "labels", "scores"))
    if not (isinstance(boxes, Tensor) and isinstance(labels, Tensor) and isinstance(scores, Tensor)):
        return False
    return labels.dim() == 1 and labels.shape == scores.shape and boxes.shape == (len(labels), 4)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, and read without executing anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)


class Checkpoints(Checkpoint):  # this name is a key in checkpoints: a run saved under another name cannot be resumed
    """Keeps `best.ckpt`, with the highest AP, and `last.ckpt`, of the last epoch or of a later step.

    Unlike Lightning's `ModelCheckpoint`, it still knows the best AP after its folder was moved.

    Args:
        folder: the run's folder, as rank 0 knows it; rank 0 tells the other processes.
        evaluation: the evaluation whose detections are kept beside `best.ckpt`, for the report.
        save_every: optimizer steps between saves of `last.ckpt` within an epoch; None saves at its end only.
        random_state: the callback that adds the state of the random generators to checkpoints.
        data: number of images and hash of each set, see `srtod.engine.run.fingerprint`.

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
        # Save only after an optimizer step, since no checkpoint holds accumulated gradients. Don't save after the last
        # step of an epoch: a run resumed from there would skip the evaluation. The epoch's own save follows.
        batches = batch_index + 1
        stepped = batches % trainer.accumulate_grad_batches == 0 and batches < trainer.num_training_batches
        if self.save_every is not None and stepped and trainer.global_step % self.save_every == 0:
            for logger in trainer.loggers:
                logger.save()  # a resumed run keeps the rows before this step and logs the later ones again
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
                for other in set(detections.parent.glob("best_detections_*.pt")) - {detections}:
                    other.unlink()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        for logger in trainer.loggers:
            logger.save()
        self._save(trainer, LAST)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        """Saves a checkpoint; every process of the run must call this."""
        with self.random_state.gathered(trainer):
            trainer.save_checkpoint(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "finished": self.finished, "data": self.data}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best, self.finished = state_dict["best"], state_dict["finished"]
        self.best = None if best is None else float(best)


class RandomState(Callback):
    """Saves the state of every random generator in checkpoints and restores it when a run is resumed.

    It is restored when training starts, since building the model and the loaders draws random numbers too.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    @contextmanager
    def gathered(self, trainer: L.Trainer) -> Iterator[None]:
        """A checkpoint saved inside holds the states of all processes; every process must enter."""
        self._gathered = gather(self.state(trainer))
        try:
            yield
        finally:
            self._gathered = None

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # On the signal of SLURM Lightning saves at once, and other processes do not gather: save this one's state only.
        checkpoint[RANDOM_STATE] = [self.state(trainer)] if self._gathered is None else self._gathered

    @staticmethod
    def state(trainer: L.Trainer) -> dict[str, Any]:
        """The generators of this process."""
        kind, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the one that other code may draw from)
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        state["numpy"] = (kind, np.asarray(key).tolist(), *rest)  # plain values, which can be read safely
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
