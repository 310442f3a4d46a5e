"""The logs of a run in `logs/`: CSV, TensorBoard and Weights & Biases. A resumed run continues them."""

from __future__ import annotations

import csv
import secrets
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from srtod._support.files import replacing

from .distributed import is_main_process

__all__ = ["TABLE", "check_wandb", "make_loggers", "read_table", "wandb_logger"]

LOGS = "logs"
TABLE = f"{LOGS}/metrics.csv"
"""Where a run's folder holds what was logged, once there is something."""

WANDB_ID = "wandb_id"


def make_loggers(folder: Path, wandb: str | None = None, step: int | None = None) -> list[Logger]:
    """The loggers of a run.

    Args:
        folder: the run's folder.
        wandb: a project of Weights & Biases to log to as well.
        step: the optimizer step that a run is resumed from; what was logged at it or later is removed, since the run
            logs it again. None: the run is new.
    """
    table, board = CSVLogger(folder, name="", version=LOGS), TensorBoardLogger(folder, name="", version=LOGS)
    if step is not None:
        if is_main_process():  # the others log nothing, and all would move the same file
            _keep_rows(table, step)
        board = TensorBoardLogger(folder, name="", version=LOGS, purge_step=step)
    return [table, board, *([] if wandb is None else [wandb_logger(folder, wandb)])]


def read_table(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of whatever each column of a run's table holds, row by row."""
    columns: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    columns.setdefault(name, []).append((float(row["step"]), float(value)))
    return columns


def check_wandb(project: str | None) -> None:
    """Checks that Weights & Biases is installed if a run is to log to it.

    Raises:
        ValueError: if it is not installed.
    """
    if project is not None:
        try:
            WandbLogger(project=project)  # does not start a run yet
        except ModuleNotFoundError as error:
            raise ValueError(
                "wandb is set, but Weights & Biases is not installed; install it (pip install wandb) or leave wandb out"
            ) from error


def wandb_logger(folder: Path, project: str) -> WandbLogger:
    """The logger of a run at Weights & Biases, named after its folder; a resumed run continues the same entry.

    The settings of Weights & Biases apply: with `WANDB_MODE=offline` it only writes to `logs/wandb`, for a later
    `wandb sync`.

    Args:
        folder: the run's folder.
        project: the project's name.
    """
    logs = folder / LOGS
    identity = logs / WANDB_ID
    if is_main_process() and not identity.is_file():
        logs.mkdir(exist_ok=True)
        with replacing(identity) as file:
            file.write(secrets.token_hex(4))
    run = identity.read_text() if identity.is_file() else None  # only rank 0 needs it
    return WandbLogger(name=folder.name, save_dir=logs, project=project, version=run)


def _keep_rows(logger: CSVLogger, step: int) -> None:
    """Keeps the rows before a step; Lightning's logger would delete the file that it finds.

    At every moment the rows are in the file itself, or in the one with `.part` added to its name.
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
