"""What the build backend and setup.py both say to the user."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path


def say(message: str) -> None:
    """Prints to stderr, and to the terminal too where stderr is not one: pip shows stderr only with -v."""
    line = f"[srtod] {message}"
    print(line, file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError):  # there is no terminal
            Path("/dev/tty").write_text(f"\n{line}\n")  # not on the line of pip's spinner


def require_cxx_compiler() -> None:
    command = os.environ.get("CXX") or "c++"  # as torch.utils.cpp_extension
    if shutil.which(shlex.split(command)[0]) is None:
        raise SystemExit(
            f"[srtod] No C++ compiler was found (`{command}`): install one, for example with `apt install g++`, "
            "or put SRTOD_BUILD=0 in front of the command, which installs pure Python, which is slower."
        )
