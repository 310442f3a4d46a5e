"""A trained detector at work: `Predictor` on images, `predict_folder` from a folder of images to one of predictions."""

from .folder import Predicted, predict_folder
from .images import ImageList, find_images
from .predictor import Picture, Predictor

__all__ = ["ImageList", "Picture", "Predicted", "Predictor", "find_images", "predict_folder"]
