"""What the command lines share: errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["run"]


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


def _sentence(error: BaseException) -> str:
    """The message of an error on one line, without the number of an operating system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
