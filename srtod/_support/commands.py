"""Modules that are commands and functions too: `python -m srtod.train`, and `srtod.train(...)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["callable_as"]


def callable_as(name: str, function: Callable[..., Any]) -> None:
    """Makes a module callable, since one name of the package cannot be both it and a function.

    Args:
        name: the module's `__name__`.
        function: what a call of the module calls.
    """

    class Command(ModuleType):
        __doc__ = function.__doc__

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[name].__class__ = Command
