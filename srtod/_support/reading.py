"""Files that come from elsewhere: only regular ones are opened, for a pipe would be waited for without end."""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "read_bytes", "read_json", "require_regular_file"]


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


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; as Python's `json`, it takes NaN, and a mark at the beginning of UTF-8.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no regular file, empty, not JSON, or nested too deeply.
    """
    return parse_json(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a JSON file, without a mark of UTF-8.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is no regular file.
    """
    try:
        require_regular_file(path)
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; pass the path of a JSON file") from None
    except OSError as error:  # of a broken disk, it does not name the file
        raise OSError(error.errno, error.strerror, error.filename or os.fspath(path)) from None


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The content of JSON; `path` is what errors, those of `read_json`, call it."""
    if not data.strip():
        raise ValueError(f"{path} is empty; write it again")
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; pass the path of a JSON file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut short?") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for JSON of this kind; pass another file") from None
    except ValueError:  # Python's limit for the digits of a number
        raise ValueError(f"{path} holds a number of thousands of digits; correct it") from None
