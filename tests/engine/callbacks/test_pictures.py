"""Pictures of test images and precision-recall curves in the logs, read back from TensorBoard."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srtod.engine import DataConfig, DetectionData, DetectionModule, Evaluation, ModelConfig, TrainConfig
from srtod.engine.callbacks import Pictures
from srtod.engine.callbacks.pictures import NO_DETECTIONS
from srtod.evaluation import Curve

CONFIG = TrainConfig(
    ModelConfig(channels=16), DataConfig(swarm_images=25, swarm_size=128, batch_size=3), accelerator="cpu"
)


def test_pictures_of_every_evaluation(watched: Any) -> None:
    names = watched.events.Tags()["images"]
    assert set(names) == {"panels/swarm_1_00000", "panels/swarm_1_00002", "precision_recall"}
    for name in names:
        pictures = watched.events.Images(name)
        assert [picture.step for picture in pictures] == [1, 2]
        decoded = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
        assert decoded.size == (pictures[-1].width, pictures[-1].height)
        assert 1000 < decoded.width <= 4096


def test_they_cost_a_reconstruction_for_each_picture_and_no_other_pass(watched: Any) -> None:
    assert watched.forwards == 2 * 2  # two batches an evaluation
    assert watched.reconstructions == 2 * 2


def test_only_the_first_process_makes_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(Pictures, "_pictures", lambda self, module: made.append("picture") or [])
    data = DetectionData(CONFIG.data, 0).test_set
    pictures = Pictures(Evaluation(data.ground_truth, data.category_ids), data, data.class_names, 2)
    trainer: Any = SimpleNamespace(sanity_checking=False, loggers=[], global_step=0)
    for main in (False, True):
        monkeypatch.setattr("srtod.engine.callbacks.pictures.is_main_process", lambda main=main: main)
        pictures.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
        assert len(made) == main


def test_an_image_that_cannot_be_read_any_more_has_no_picture() -> None:
    data = DetectionData(CONFIG.data, 0).test_set
    evaluation = Evaluation(data.ground_truth, data.category_ids)
    evaluation.curves = {"all": Curve(1, np.ones(101), np.ones(101))}
    pictures = Pictures(evaluation, data, data.class_names, 2)
    module = DetectionModule(CONFIG, data.class_names, data.category_ids).eval()
    ids = [image["id"] for image in data.ground_truth["images"]]
    for found, expected in ((ids, ["swarm_1_00000", "swarm_1_00002"]), (ids[1:], ["swarm_1_00002"])):
        evaluation.detections = dict.fromkeys(found, NO_DETECTIONS)
        named = [name for name, _ in pictures._pictures(module)]
        assert named == [*(f"panels/{name}" for name in expected), "precision_recall"]
