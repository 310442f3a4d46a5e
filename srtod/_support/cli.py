"""What the command lines share: how they are run, and errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .memory import keep_pages

__all__ = ["run"]


def run(main: Callable[[], None]) -> None:
    """Runs a command line.

    Bad input ends it with one sentence and exit status 2; so does a dependency that is not installed. Ctrl-C ends it
    with status 130.
    """
    keep_pages()
    try:
        main()
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if not _is_dependency(error.name):
            raise
        print(
            f"error: the module {error.name} is not installed for {sys.executable}; activate the environment that has "
            "it (. .venv/bin/activate), or install srtod with all that it needs (pip install .)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


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
