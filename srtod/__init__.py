"""Fused ops for tiny object detection, and the SR-TOD detectors built on them."""

import importlib
from typing import TYPE_CHECKING, Any

from srtod._version import __version__

if TYPE_CHECKING:
    from srtod.models import attach
    from srtod.prediction import Predictor

__all__ = ["Predictor", "__version__", "attach"]

_HOMES = {"Predictor": "srtod.prediction", "attach": "srtod.models"}


def __getattr__(name: str) -> Any:
    """Imports a name when it is asked for, and not before: `import srtod.ops` loads torch alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
