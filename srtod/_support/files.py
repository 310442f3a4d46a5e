"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

__all__ = ["replacing", "replacing_folder"]


@contextmanager
def replacing(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` once all of it is on the disk; after an error `path` is as it was.

    It holds UTF-8 text, or bytes if `binary`. It is opened on entry, so that a long computation inside does not end at
    a folder that cannot be written to. Until it is complete it is `NAME.part` beside its place.

    Raises:
        OSError: if the folder of `path` is missing or not writable, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the path of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        _name(error, path)
        raise
    _sync_names(path.parent)


@contextmanager
def replacing_folder(path: str | Path, *, alone: bool = False) -> Iterator[Path]:
    """A folder that takes the place of `path` once all in it is on the disk; after an error `path` is as it was.

    Until then it is `.NAME.*.part` beside its place, and the former folder is `.NAME.*.before` for the moment between
    two renames: these are all that a killed process leaves.

    Args:
        path: the folder; folders above it are made.
        alone: whether no other process writes this folder, so that what killed ones left may be removed in the end.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed; says that the folder is as it was.
        OSError: if the folder cannot be made or moved to its place.
    """
    path = Path(path).resolve()
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    before = part.with_suffix(".before")
    try:
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise OSError(f"the folder {path} cannot be made ({error.strerror}); choose another") from error
        yield part
        _sync_tree(part)
        if path.exists():
            path.rename(before)
        part.rename(path)
    except BaseException as error:
        if before.exists() and not path.exists():
            before.rename(path)
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {path} is as it was") from None
        _name(error, path)
        raise
    _sync_names(path.parent)
    leftovers = [before]
    if alone:
        leftovers += [
            place for kind in ("part", "before") for place in path.parent.glob(f".{escape(path.name)}.*.{kind}")
        ]
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def _name(error: BaseException, path: Path) -> None:
    """Gives the error of a full disk the path that could not be written: `write` and `fsync` know none."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no other call inside, such as one that reads, ends in these
    if isinstance(error, OSError) and error.errno in full and error.filename is None:
        error.filename = str(path)


def _sync_tree(folder: Path) -> None:
    """Puts all files of a folder and its subfolders on the disk, and their names."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place, name))
        _sync_names(Path(place))


def _sync_names(folder: Path) -> None:
    """Puts a folder's names on the disk: until then a power cut may bring back what was replaced.

    Some network file systems cannot do it. That is no error, for by now the files are complete and in their place.
    """
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
