"""Fused ops for tiny object detection, and the SR-TOD detectors built on them."""

import importlib
from typing import TYPE_CHECKING, Any

from srtod._version import __version__

if TYPE_CHECKING:
    from srtod.evaluate import score as evaluate
    from srtod.models import attach
    from srtod.models.checkpoint import load
    from srtod.prediction import Predictor
    from srtod.train import run_training as train

__all__ = ["Predictor", "__version__", "attach", "evaluate", "load", "train"]

_HOMES = {"Predictor": "srtod.prediction", "attach": "srtod.models", "load": "srtod.models.checkpoint"}


def __getattr__(name: str) -> Any:
    """Imports a name when it is asked for, and not before: `import srtod.ops` loads torch alone."""
    if name in ("evaluate", "train"):
        return importlib.import_module(f"srtod.{name}")  # which can be called
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
