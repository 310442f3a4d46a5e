"""SAHI slices with a detector of this library, and finds what it finds itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import srtod

pytest.importorskip("sahi", reason="needs the package sahi")


def test_sahi_finds_in_one_slice_what_the_predictor_finds(checkpoint: Path) -> None:
    from sahi.predict import get_sliced_prediction

    from srtod.prediction.sahi import SahiModel

    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    predictor = srtod.Predictor(checkpoint, "cpu")
    expected = predictor(image, colour="rgb").above(0.3)
    model = SahiModel(model=predictor, confidence_threshold=0.3, device="cpu")
    options = {"perform_standard_pred": False, "postprocess_type": "NMS", "postprocess_match_threshold": 1.0}
    result = get_sliced_prediction(image, model, slice_height=64, slice_width=64, verbose=0, **options)
    found = {(p.category.name, round(p.score.value, 4)) for p in result.object_prediction_list}
    assert found == {(n, round(s, 4)) for n, s in zip(expected.names, expected["scores"].tolist(), strict=True)}
    assert len(found) > 3


def test_tiles_in_batches_are_at_their_places(checkpoint: Path) -> None:
    from sahi.predict import get_sliced_prediction

    from srtod.prediction.sahi import SahiModel

    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    model = SahiModel(model_path=str(checkpoint), confidence_threshold=0.0, device="cpu")
    result = get_sliced_prediction(
        image, model, slice_height=64, slice_width=64, perform_standard_pred=False, batch_size=3, verbose=0
    )
    boxes = torch.tensor([p.bbox.to_xyxy() for p in result.object_prediction_list])
    assert boxes[:, 2].max() > 100
    assert boxes[:, 3].max() > 80
