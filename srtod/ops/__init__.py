"""Fused ops for tiny-object detection by self-reconstruction. Needs torch alone.

Each op is a function with forward and backward in C++ (and CUDA); `reference` holds the same functions in plain
PyTorch, the specification, which runs where no compiled op does.

Special values are numbers like others, and the compiled ops treat them as `reference` does, forward and backward:

- NaN in, NaN out: a result is NaN if a value that it depends on is NaN. Nothing else changes. A difference map or a
  filter depends on its own pixels. `channel_reweighting`, and by it `dgfe`, depends on all features of an image: one
  NaN there makes the image's whole result NaN, and leaves the other images. So do `high_frequency_difference_map` and
  the two images there.
- What is not read does not count: pixels that a resize leaves out or gives the weight 0, and the error's padding. Their
  gradient is 0.
- A gradient is the incoming one times the slope. The slope at NaN is NaN, but that of the surrogates "none" (0) and
  "ste" (1) is the same everywhere.
- Infinity minus infinity, and zero times infinity, are NaN. At `D - t` = +-infinity the filter is 2 or 1, with slope 0.
- Both zeros are equal. At a tie `D = t` the filter is 1.5; the slope of `|x|` at 0 is 0. Of equal greatest values the
  first, row by row, gets the maximum's gradient.
- Subnormal numbers keep their value. In float32 the sigmoid of less than -88.4 is 0.
- Where the arithmetic overflows (1e30 squared in float32) infinity comes out. Beside an infinity of the other sign it
  may be NaN or not: the order of a sum is free.

What the ops do not promise: the difference maps of two devices, or of `reference`, may differ in the last bit, so that
filters made of them fall on different sides of a tie. Of one difference map all make the same filter. The gradients of
the threshold and of the MLP are sums over all pixels. Where these cancel, the error is up to the machine epsilon times
the sum of the terms' absolute values: of a few hundred terms near 1, 1e-6 in float32.
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
