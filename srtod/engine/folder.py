"""The folder of a training run: one process has it, and gives it up where nothing came of the run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import yaml

from srtod._support.files import replacing
from srtod._support.folders import remove_leftovers
from srtod._support.locks import locked

from .callbacks.checkpoints import BEST, LAST
from .config import TrainConfig
from .logs import TABLE

__all__ = ["CONFIG", "JOB", "NewFolder", "new_folder", "resumed_folder"]

CONFIG = "config.yaml"
JOB = "slurm_job_id"
LOCK = "lock"


class NewFolder(NamedTuple):
    """The folder of a new run.

    Attributes:
        path: where it is.
        was_there: whether it was there, and empty.
    """

    path: Path
    was_there: bool

    def give_up(self) -> None:
        """Removes what the run has written, and its folder unless that was there before."""
        for path in [*self.path.iterdir()] if self.was_there else [self.path]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def resumed_folder(folder: Path) -> Iterator[None]:
    """Locks the folder of a run, and removes what a killed process left half-written.

    Raises:
        OSError: if it cannot be written to.
        ValueError: if another process has it.
    """
    with locked(folder / LOCK) as free:
        if not free:
            raise ValueError(f"another process trains the run in {folder}; wait until it has ended, or end it")
        remove_leftovers(folder)
        yield


@contextmanager
def new_folder(path: Path, config: TrainConfig) -> Iterator[NewFolder]:
    """Locks the folder of a new run, with its configuration in it.

    It is `path`, or the first of `path-2`, `path-3`, ... that is new or empty. In a SLURM job the folder also records
    which job the run belongs to, for `requeued_run`. After bad input, if memory or disk were too small, or if it is
    interrupted before its first log, a run without a checkpoint leaves nothing. The next try then gets the same folder.

    Raises:
        OSError: if it cannot be made.
    """
    with ExitStack() as lock:
        try:
            new = _take(path, lock)
        except OSError as error:
            raise _not_made(path, error) from error
        folder, written = new.path, False
        try:
            with replacing(folder / CONFIG) as file:
                yaml.safe_dump(config.as_dict(), file, sort_keys=False)
            if job := os.environ.get("SLURM_JOB_ID"):
                with replacing(folder / JOB) as file:
                    file.write(job)
            written = True
            yield new
        except BaseException as error:
            is_input = isinstance(error, (MemoryError, OSError, TypeError, ValueError))
            is_early = isinstance(error, KeyboardInterrupt) and not (folder / TABLE).exists()
            if not written or ((is_input or is_early) and not any((folder / name).exists() for name in (BEST, LAST))):
                new.give_up()
            if isinstance(error, OSError) and not written:
                raise _not_made(folder, error) from error
            raise


def _take(path: Path, lock: ExitStack) -> NewFolder:
    """Makes and locks the first folder that is free."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir()
            was_there = False
        except FileExistsError:
            if not folder.is_dir() or not _is_free(folder):
                continue
            was_there = True
        with ExitStack() as attempt:
            try:
                is_ours = attempt.enter_context(locked(folder / LOCK))
            except FileNotFoundError:  # another process has just given it up
                continue
            except OSError:
                if not was_there:
                    folder.rmdir()
                raise
            if is_ours and _is_free(folder):
                lock.push(attempt.pop_all())
                return NewFolder(folder, was_there)
    raise AssertionError


def _is_free(folder: Path) -> bool:
    return all(path.name == LOCK for path in folder.iterdir())


def _not_made(folder: Path, error: OSError) -> OSError:
    return OSError(f"the run's folder {folder} cannot be made ({error.strerror or error}); choose another output")
