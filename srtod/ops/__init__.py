"""Fused ops for tiny-object detection by self-reconstruction. Needs torch alone.

Each op is a function with forward and backward in C++ (and CUDA); `reference` holds the same functions in plain
PyTorch, the specification, which runs where no compiled op does.
"""

from . import reference
from ._extension import is_fused, use_reference
from .channel_reweighting import channel_reweighting
from .dgfe import DGFE, dgfe, dgfe_
from .difference_map import difference_map, high_frequency_difference_map, reconstruction_difference
from .filtration import filtration
from .threshold import FiltrationOptions

__all__ = [
    "DGFE",
    "FiltrationOptions",
    "channel_reweighting",
    "dgfe",
    "dgfe_",
    "difference_map",
    "filtration",
    "high_frequency_difference_map",
    "is_fused",
    "reconstruction_difference",
    "reference",
    "use_reference",
]
