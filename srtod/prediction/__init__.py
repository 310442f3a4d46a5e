"""A trained detector at work: `Predictor` on images, `predict_folder` and `predict_video` write what it finds."""

from .detections import Detections
from .folder import Predicted, predict_folder, predict_video
from .images import ImageList, find_images
from .merging import suppress
from .predictor import Picture, Predictor
from .slicing import Slicing
from .video import Frame, Video, is_video

__all__ = [
    "Detections",
    "Frame",
    "ImageList",
    "Picture",
    "Predicted",
    "Predictor",
    "Slicing",
    "Video",
    "find_images",
    "is_video",
    "predict_folder",
    "predict_video",
    "suppress",
]
