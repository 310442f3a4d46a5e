"""What several tests of the models share."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

CHILD = r"""
import json, re, runpy, sys, time
from pathlib import Path

def resident(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6

work = runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])
before, start = resident("VmRSS"), time.process_time()
work()
print(json.dumps([time.process_time() - start, resident("VmHWM") - before]))
"""


class Cost(NamedTuple):
    """What a call takes.

    Attributes:
        seconds: processor time of the one thread that it may have: a busy machine hardly changes it.
        megabytes: the most resident memory beyond what there was before it, in 10^6 bytes.
    """

    seconds: float
    megabytes: float


@pytest.fixture(scope="session")
def cost_alone() -> Callable[..., Cost]:
    """Measures `prepare(*arguments)()`, but for the preparation, in a process of its own; the arguments are strings.

    A peak never falls, and memory that was freed is used again: in one process a call hides behind those before it.
    Read from /proc, as `resource`'s peak is inherited from the process that starts this one.
    """

    def measure(prepare: Callable[..., Callable[[], Any]], *arguments: str) -> Cost:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, inspect.getfile(prepare), prepare.__name__, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Cost(*json.loads(done.stdout.splitlines()[-1]))

    return measure
