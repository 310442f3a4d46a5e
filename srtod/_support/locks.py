"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["locked"]

UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Locks a file as long as the block, and this process, lives; whether it could be locked.

    The operating system frees the lock of a process that dies. On a file system without locks everyone gets them.

    Args:
        path: the file, made if it is not there.
        wait: whether to wait for another process that has it locked.
    """
    while True:
        with path.open("a") as file:
            if not _lock(file, wait):
                yield False
                return
            if _is_at(file, path):  # whoever had it locked may have removed it
                yield True
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str], wait: bool) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
    return True
