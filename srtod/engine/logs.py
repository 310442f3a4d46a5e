"""The logs of a run in `logs/`, CSV and TensorBoard, which a resumed run goes on with."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from .distributed import is_main_process
from .monitoring import wandb_logger

__all__ = ["make_loggers"]

LOGS = "logs"


def make_loggers(folder: Path, wandb: str | None = None, step: int | None = None) -> list[Logger]:
    """The loggers of a run.

    Args:
        folder: the run's folder.
        wandb: a project of Weights & Biases to log to as well.
        step: the step that a resumed run goes on from; what was logged at it or later is taken out, for it comes again.
            None: the run is new.
    """
    table, board = CSVLogger(folder, name="", version=LOGS), TensorBoardLogger(folder, name="", version=LOGS)
    if step is not None:
        if is_main_process():  # the others log nothing, and all would move the same file
            _keep_rows(table, step)
        board = TensorBoardLogger(folder, name="", version=LOGS, purge_step=step)
    return [table, board, *([] if wandb is None else [wandb_logger(folder, wandb)])]


def _keep_rows(logger: CSVLogger, step: int) -> None:
    """Lets Lightning's logger, which deletes the file that it finds, go on with the rows before a step.

    At every moment the rows are in the file, or in the one with `.part` behind its name.
    """
    path = Path(logger.log_dir) / "metrics.csv"
    part = path.with_name(f"{path.name}.part")
    source = path if path.is_file() else part
    if not source.is_file():
        return
    with source.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row["step"]) < step]
        names = list(reader.fieldnames or ())
    if source == path:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
        logger.experiment.metrics_keys = names
    part.replace(path)
