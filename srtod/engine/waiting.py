"""The wait until all processes of a run have begun."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from .distributed import MEETING
from .folder import NewFolder

__all__ = ["waiting_watched"]

PATIENCE = 60.0
"""Seconds after which it is told what is being waited for."""

GRACE = 1.0
"""Seconds that a process has to end by itself after a signal."""

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def waiting_watched(processes: int, new: NewFolder | None) -> Iterator[None]:
    """Inside, if the processes of a run do not find each other, it is told after a minute; signals end the wait.

    PyTorch waits for half an hour, in C++ code where Python handles no signal.

    Args:
        processes: how many there are; a single one does not wait.
        new: the run's folder if this process has made it; given up where a signal ends the wait.
    """
    if processes == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, processes, new), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the thread reads the end of the pipe
        thread.join()
        os.close(reader)


def _watch(reader: int, processes: int, new: NewFolder | None) -> None:
    """Reads the numbers of signals, which Python writes at once, until the pipe is closed."""
    ready, _, _ = select.select([reader], [], [], PATIENCE)
    if not ready and not dist.is_initialized():
        print(
            f"waiting for the {processes} processes of the run to meet at {':'.join(map(_value, MEETING))} "
            f"({' and '.join(MEETING)}); start those that are missing, or end this one",
            file=sys.stderr,
            flush=True,
        )
    while numbers := os.read(reader, 1):
        if numbers[0] in ENDINGS and not dist.is_initialized():
            time.sleep(GRACE)
            if not select.select([reader], [], [], 0)[0] and not dist.is_initialized():
                print("interrupted while waiting for other processes of the run", file=sys.stderr, flush=True)
                if new is not None:
                    new.give_up()
                os._exit(128 + numbers[0])


def _value(variable: str) -> str:
    return os.environ.get(variable, "?")
