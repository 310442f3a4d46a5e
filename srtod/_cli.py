"""What the command lines share: errors in one sentence, and files that are written whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["replacing", "run"]


def run(main: Callable[[], None]) -> None:
    """Runs a command line: bad input ends it with one sentence and exit status 2, Ctrl-C with status 130."""
    try:
        main()
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def replacing(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` once all of it is written; after an error `path` is as it was.

    It holds UTF-8 text, or bytes if `binary`. It is opened on entry, so that a long computation inside does not end at
    a folder that cannot be written to.

    Raises:
        OSError: if the folder of `path` is missing or not writable, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the path of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sentence(error: BaseException) -> str:
    """The message of an error on one line, without the number of an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
