"""SR-TOD detectors and the parts they are made of."""

from .backbones import BACKBONES, Backbone, build_backbone
from .build import DETECTORS, build_detector
from .detector import Detector, ImageReconstruction
from .heads import TwoStageHead
from .necks import FPN
from .reconstruction import ReconstructionHead
from .self_reconstruction import SelfReconstruction, SelfReconstructionOutput
from .transform import DetectionTransform

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FPN",
    "Backbone",
    "DetectionTransform",
    "Detector",
    "ImageReconstruction",
    "ReconstructionHead",
    "SelfReconstruction",
    "SelfReconstructionOutput",
    "TwoStageHead",
    "build_backbone",
    "build_detector",
]
