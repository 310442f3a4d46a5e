"""Signals that end a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred", "interruptible"]

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


@contextmanager
def deferred(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, the first signal that asks the process to end calls `stop`; it takes effect when the block is left.

    The second one takes effect at once. Outside of the main thread, which gets the signals, nothing is changed.
    """
    received: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        received.append((number, frame))
        stop()

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, *ENDINGS)}
        before = {kind: handler for kind, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for kind in before:
            signal.signal(kind, note)
        yield
    except KeyboardInterrupt:  # of the second signal
        received.clear()
        raise
    finally:
        restore()
        for number, frame in received:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            else:
                signal.raise_signal(number)
