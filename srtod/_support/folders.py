"""Folders that are written whole or not at all, and what killed processes leave."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import beside, sync, sync_names

__all__ = ["is_leftover", "remove_leftovers", "replacing_folder"]

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.(part|before)", re.DOTALL)
"""Names that `beside` gives."""


@contextmanager
def replacing_folder(path: str | Path, content: Collection[str]) -> Iterator[Path]:
    """A folder whose content takes its place once all of it is on the disk; after an error `path` is as it was.

    A folder that is there stays, since it may be mounted. The new content is written to `.NAME.*.part` inside it and
    moved up at the end; the former content is in `.NAME.*.before` for that moment, and then removed. A folder that is
    not there is `.NAME.*.part` beside its place until it is complete.

    Args:
        path: the folder; folders above it are made.
        content: the names of what it may hold. Whatever has another name stays as it is.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed; says that the folder is as it was.
        OSError: if the folder cannot be made, filled, or moved to its place.
    """
    path = Path(os.path.realpath(path))
    exists = path.is_dir()
    part = beside(path / path.name if exists else path, "part")
    try:
        try:
            part.mkdir(parents=True)
        except OSError as error:
            what = "written to" if exists else "made"
            raise OSError(f"the folder {path} cannot be {what} ({error.strerror}); choose another") from error
        yield part
        _sync_tree(part)
        if exists:
            _exchange(path, part, content)
        else:
            part.rename(path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {path} is as it was") from None
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            error.filename = str(path)  # `write` and `fsync` name no file
        raise
    sync_names(path if exists else path.parent)


def is_leftover(path: Path) -> bool:
    """Whether something, by its name, is not complete: it is being written, or a process was killed that wrote it."""
    return LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left in a folder and its subfolders. No other process may write there now."""
    for path in [path for path in folder.rglob(".*") if is_leftover(path)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _exchange(folder: Path, new: Path, content: Collection[str]) -> None:
    """Moves what the folder `new` inside a folder holds up into it, in place of its former content.

    After an error everything is where it was.
    """
    before = beside(folder / folder.name, "before")
    before.mkdir()
    moves = [(folder / name, before / name) for name in content if os.path.lexists(folder / name)]
    moves += [(path, folder / path.name) for path in new.iterdir()]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))  # first, lest Ctrl-C comes between
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if not os.path.lexists(source):
                target.rename(source)
        before.rmdir()
        raise
    new.rmdir()
    shutil.rmtree(before, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Puts all files of a folder and its subfolders on the disk, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync_names(Path(place))
