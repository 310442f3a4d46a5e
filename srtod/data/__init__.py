"""Data sets and transforms: `(image, target)` samples in torchvision's detection convention."""

from .coco import CocoDataset, read_coco
from .detection import DetectionDataset, DetectionSubset, Sample, SingleClass, Target, collate
from .image import ImageError, decode_picture, image_size, list_images, read_image
from .layouts import LAYOUTS, DataFolder, Layout, Split, layout_names, open_folder
from .swarm import SwarmDataset
from .transforms import training_transforms

__all__ = [
    "LAYOUTS",
    "CocoDataset",
    "DataFolder",
    "DetectionDataset",
    "DetectionSubset",
    "ImageError",
    "Layout",
    "Sample",
    "SingleClass",
    "Split",
    "SwarmDataset",
    "Target",
    "collate",
    "decode_picture",
    "image_size",
    "layout_names",
    "list_images",
    "open_folder",
    "read_coco",
    "read_image",
    "training_transforms",
]
