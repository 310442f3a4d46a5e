"""Names from elsewhere, in a form that can be shown: not all are one line of text."""

from __future__ import annotations

__all__ = ["printable", "utf8"]


def printable(name: str) -> str:
    """The name on one line: line breaks and control characters as spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def utf8(name: str) -> str:
    r"""The name of a file as text that can be written as UTF-8: bytes that are none become `\udcff` and the like."""
    return name.encode(errors="backslashreplace").decode()
