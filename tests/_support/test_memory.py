"""Freed memory stays with the process, unless its user decided otherwise."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource
from srtod._support.memory import keep_pages
if {keeps}:
    keep_pages()
bytearray(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")


def page_faults(*, keeps: bool, **variables: str) -> int:
    """Of four blocks of 64 MiB, one after another, behind a first one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", CODE.format(keeps=keeps)]
    printed = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True).stdout
    return int(printed)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_kept() -> None:
    if page_faults(keeps=False) < PAGES / 2:
        pytest.skip("the pages of this system are larger than it says")
    assert page_faults(keeps=True) < PAGES / 20
    assert page_faults(keeps=True, MALLOC_TOP_PAD_="131072") > PAGES / 2


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from srtod._support import memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("asked the C library"))
    memory.keep_pages()
