"""Fused ops for tiny object detection, and the SR-TOD detectors built on them."""

from typing import TYPE_CHECKING, Any

from srtod._version import __version__

if TYPE_CHECKING:
    from srtod.prediction import Predictor

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `Predictor` when it is asked for, and not before: `import srtod.ops` loads torch alone."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from srtod.prediction import Predictor

    return Predictor
