"""What the command lines share: how they are run, and errors in one sentence."""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from .extras import MissingExtraError
from .memory import keep_pages
from .signals import interruptible

__all__ = ["run"]

AS_IT_IS = "srtod.as_it_is"
"""How text is written that is no UTF-8: names of files as they are on the disk, other halves of characters escaped."""


def run(main: Callable[[], None]) -> None:
    """Runs a command line.

    Bad input ends it with one sentence and exit status 2; so does a dependency that is not installed. Ctrl-C ends it
    with status 130, and SIGTERM and SIGHUP in the same way with 143 and 129. It ends quietly, with the status of other
    Unix tools, where nobody reads its output any more, as in `srtod info | head -1`.
    """
    keep_pages()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=AS_IT_IS)
    received: list[int] = []
    try:
        try:
            with interruptible(received):
                main()
        finally:
            sys.stdout.flush()  # at the interpreter's exit it would be too late to catch the error
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        raise SystemExit(128 + (received or [signal.SIGINT])[0]) from None
    except (ValueError, TypeError, OSError, MissingExtraError) as error:
        unread = isinstance(error, BrokenPipeError) and _is_unread(sys.stdout)
        _drop_unwritten(sys.stdout)
        if unread:
            raise SystemExit(128 + signal.SIGPIPE) from None
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        from .errors import first_line, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        if not reason.startswith("not enough memory"):
            reason = f"not enough memory ({reason}); lower the numbers and sizes that you passed"
        print(f"error: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if not _is_dependency(error.name):
            raise
        print(
            f"error: the module {error.name} is not installed for {sys.executable}; activate the environment that has "
            "it (. .venv/bin/activate), or install srtod with all that it needs (pip install .)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed; errors of other pipes are to be told."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_unwritten(stream: TextIO) -> None:
    """Empties a stream that can no longer be written to, over which the interpreter's exit would stumble."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_dependency(module: str | None) -> bool:
    """Whether a module that was not found is another project's.

    A missing part of srtod, or a missing part of an installed package, is a bug: its traceback is shown.
    """
    if module is None or "." in module:
        return False
    return module != "srtod" and module not in sys.stdlib_module_names


def _sentence(error: BaseException) -> str:
    """The message of an error on one line, without the number of an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _write_as_it_is(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(AS_IT_IS, _write_as_it_is)
