"""A trained detector at work: `Predictor` on images, `predict_folder` from a folder of images to one of predictions."""

from .detections import Detections
from .folder import Predicted, predict_folder
from .images import ImageList, find_images
from .merging import suppress
from .predictor import Picture, Predictor
from .slicing import Slicing

__all__ = [
    "Detections",
    "ImageList",
    "Picture",
    "Predicted",
    "Predictor",
    "Slicing",
    "find_images",
    "predict_folder",
    "suppress",
]
