"""Files that come from elsewhere: only regular ones are opened, for a pipe would be waited for without end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["require_regular_file"]


def require_regular_file(path: str | os.PathLike[str]) -> None:
    """Checks that a path leads to a regular file; links are followed.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        OSError: if the path cannot be looked up.
        ValueError: if it leads to a folder, a pipe, a socket or a device, goes round in links, or holds a null byte.
    """
    if "\0" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)!r} holds a null byte, which no name of a file can; correct the name")
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path} is a link that leads back to itself; pass a file") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder; pass a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a pipe, a socket or a device; pass a regular file")
