"""The progress bar."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["ProgressBar"]


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, which also shows epoch and batches of a run that was resumed within an epoch.

    It leaves out the version of the logs, which is the same in every run. It ends its line before an error is printed.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if trainer.fit_loop.restarting:  # within an epoch: Lightning then skips `on_train_epoch_start`
            self.on_train_epoch_start(trainer, module)
            done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
            # The remaining time is estimated from the batches since the resume.
            self.train_progress_bar.initial = self.train_progress_bar.n = done
            self.train_progress_bar.refresh()

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()
