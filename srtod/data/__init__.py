"""Data sets and transforms: `(image, target)` samples in torchvision's detection convention."""

from .coco import CocoDataset, read_coco, read_image
from .detection import DetectionDataset, Sample, Target, collate
from .swarm import SwarmDataset
from .transforms import training_transforms

__all__ = [
    "CocoDataset",
    "DetectionDataset",
    "Sample",
    "SwarmDataset",
    "Target",
    "collate",
    "read_coco",
    "read_image",
    "training_transforms",
]
