"""Lets SAHI (`pip install sahi`) slice and merge with a detector of this library."""

from __future__ import annotations

from typing import Any

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction

from .predictor import Predictor

__all__ = ["SahiModel"]


class SahiModel(DetectionModel):
    """A `Predictor` as SAHI's detection model.

        from sahi.predict import get_sliced_prediction
        model = SahiModel(model=srtod.Predictor("best.ckpt"), confidence_threshold=0.3)
        get_sliced_prediction("large.png", model, slice_height=640, slice_width=640)

    SAHI's images are RGB, uint8 `[H, W, 3]`. Its category ids are the labels less 1.

    Args:
        arguments: SAHI's own: `model`, a `Predictor`, or `model_path`, a checkpoint, and `confidence_threshold`.
    """

    def load_model(self) -> None:
        if self.model_path is None:
            raise ValueError("SahiModel needs a model or the model_path of a checkpoint")
        self.set_model(Predictor(self.model_path, str(self.device)))

    def set_model(self, model: Predictor, **_: Any) -> None:
        self.model = model
        self.category_mapping = {str(index): name for index, name in enumerate(model.class_names)}

    def perform_inference(self, image: np.ndarray[Any, Any]) -> None:
        self._original_predictions = [self.model(image, colour="rgb")]

    def perform_batch_inference(self, images: list[np.ndarray[Any, Any]]) -> None:
        self._original_predictions = self.model(images, colour="rgb")

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list[Any] | None = None, full_shape_list: list[Any] | None = None
    ) -> None:
        count = len(self._original_predictions)
        shifts, shapes = _per_image(shift_amount_list, count, [0, 0]), _per_image(full_shape_list, count, None)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box,
                    category_id=label - 1,
                    category_name=self.model.class_names[label - 1],
                    score=score,
                    shift_amount=shift,
                    full_shape=shape,
                )
                for box, label, score in found.above(self.confidence_threshold).rows()
            ]
            for found, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]


def _per_image(values: list[Any] | None, count: int, default: Any) -> list[Any]:
    """One pair an image; SAHI gives a single one where there is one image."""
    if not values:
        return [default] * count
    return [values] if isinstance(values[0], int) else values
