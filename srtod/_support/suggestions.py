"""What a mistyped or unknown name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["did_you_mean"]


def did_you_mean(typed: str, known: Iterable[str], near: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """The question that an error ends in.

    Args:
        typed: the unknown name.
        known: the names that exist.
        near: names that other tools have, and what each is called here.

    Returns:
        `did you mean a or b?`, or None where nothing is near.
    """
    names = (near or {}).get(typed) or difflib.get_close_matches(typed, list(known), n=1)
    return f"did you mean {' or '.join(names)}?" if names else None
