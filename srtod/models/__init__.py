"""SR-TOD detectors and the parts they are made of."""

from .assigners import ATSSAssigner, FCOSAssigner, HierarchicalAssigner, MaxIoUAssigner
from .attachment import AttachedSelfReconstruction, attach
from .backbones import BACKBONES, Backbone, build_backbone
from .boxes import BoxCoder
from .build import build_detector
from .detector import Detector
from .heads import ATSSHead, CascadeHead, DyHead, FCOSHead, RetinaNetHead, TridentHead, TwoStageHead
from .inspection import ImageReconstruction
from .layers import ASPP, ConvAWS2d, SAConv2d
from .model_inputs import ModelInput
from .necks import FPN, RecursiveFeaturePyramid, RetinaFPN
from .recipes import ANCHORS, DETECTORS
from .reconstruction import (
    ReconstructionHead,
    SelfReconstruction,
    SelfReconstructionOptions,
    SelfReconstructionOutput,
    SubpixelHead,
)
from .transform import DetectionTransform

__all__ = [
    "ANCHORS",
    "ASPP",
    "BACKBONES",
    "DETECTORS",
    "FPN",
    "ATSSAssigner",
    "ATSSHead",
    "AttachedSelfReconstruction",
    "Backbone",
    "BoxCoder",
    "CascadeHead",
    "ConvAWS2d",
    "DetectionTransform",
    "Detector",
    "DyHead",
    "FCOSAssigner",
    "FCOSHead",
    "HierarchicalAssigner",
    "ImageReconstruction",
    "MaxIoUAssigner",
    "ModelInput",
    "ReconstructionHead",
    "RecursiveFeaturePyramid",
    "RetinaFPN",
    "RetinaNetHead",
    "SAConv2d",
    "SelfReconstruction",
    "SelfReconstructionOptions",
    "SelfReconstructionOutput",
    "SubpixelHead",
    "TridentHead",
    "TwoStageHead",
    "attach",
    "build_backbone",
    "build_detector",
]
