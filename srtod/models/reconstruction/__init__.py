"""Self-reconstruction: heads that rebuild the image, enhancements by the difference map, and the module of both."""

from .options import SelfReconstructionOptions
from .paper_head import ReconstructionHead
from .resampled import ResampledImage
from .self_reconstruction import SelfReconstruction, SelfReconstructionOutput
from .subpixel_head import SubpixelHead
from .targets import object_mask

__all__ = [
    "ReconstructionHead",
    "ResampledImage",
    "SelfReconstruction",
    "SelfReconstructionOptions",
    "SelfReconstructionOutput",
    "SubpixelHead",
    "object_mask",
]
