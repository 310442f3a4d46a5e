"""Signals that end a process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruptible"]

ENDINGS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end, beside that of Ctrl-C."""


@contextmanager
def interruptible(received: list[int] | None = None) -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP do what Ctrl-C does, once. A signal that is ignored, as under `nohup`, stays so.

    Args:
        received: gets the signal that came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for kind in before:  # what is done at the end is not interrupted
            signal.signal(kind, signal.SIG_IGN)
        if received is not None:
            received.append(number)
        raise KeyboardInterrupt

    before = {kind: signal.getsignal(kind) for kind in ENDINGS if signal.getsignal(kind) == signal.SIG_DFL}
    try:
        for kind in before:
            signal.signal(kind, interrupt)
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
