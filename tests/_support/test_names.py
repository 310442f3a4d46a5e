"""Names in a form that can be shown."""

from __future__ import annotations

import os
import subprocess
import sys

from srtod._support.names import printable, utf8

NAME = os.fsdecode(b"a\xff.png")


def test_one_line() -> None:
    assert printable("a\r\nb\x00\u2028 c") == "a b c"


def test_what_is_no_utf8() -> None:
    assert utf8(NAME) == r"a\udcff.png"
    assert utf8("ä.png") == "ä.png"


def test_command_lines_print_names_that_are_no_utf8_as_they_are() -> None:
    program = f"from srtod._support.cli import run; run(lambda: print({NAME!r}))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert printed == b"a\xff.png\n"
