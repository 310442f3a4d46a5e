"""The configuration of a run."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from srtod.engine import DataConfig, ModelConfig, TrainConfig
from srtod.models import ANCHORS, DETECTORS, SelfReconstructionOptions, build_detector
from srtod.models.backbones import BACKBONES


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, (1,)), (2, (1, 2)), (10, (7, 9)), (12, (8, 11)), (20, (13, 18)), (24, (16, 22))]
)
def test_default_milestones_are_those_of_the_paper_at_12_epochs(epochs: int, expected: tuple[int, ...]) -> None:
    assert TrainConfig(epochs=epochs).milestones == expected


def test_given_milestones_are_kept() -> None:
    assert TrainConfig(epochs=20, lr_steps=(16, 19)).milestones == (16, 19)


def test_as_dict_holds_every_option_by_name() -> None:
    config = TrainConfig(ModelConfig(channels=16), DataConfig(batch_size=3), epochs=5).as_dict()
    assert (config["channels"], config["batch_size"], config["epochs"]) == (16, 3, 5)
    assert "model" not in config
    assert config["data"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"epochs": 10**400}, "epochs must be at most 2147483647, got 1000"),
        ({"lr": 1e308}, r"lr must be at most 2147483647, got 1e\+308"),
        ({"lr": -0.1}, "lr must be positive"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"epochs": 10, "eval_every": 3}, "eval_every must divide epochs"),
        ({"lr_steps": (8, 4)}, "lr_steps must be rising"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.0}, "ema must be between 0 and 1, such as 0.999, got 1.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"accumulate": 0}, "accumulate must be positive"),
        ({"lr_batch": 0}, "lr_batch must be positive"),
        ({"early_stop": 0}, "early_stop must be positive"),
        ({"save_every": 0}, "save_every must be positive"),
        ({"devices": 0}, "devices must be positive"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"copy_paste": -1}, "copy_paste must not be negative"),
        ({"photometric": 1.5}, "photometric must be from 0 to 1, got 1.5"),
        ({"crop": 0}, "crop must be positive"),
        ({"scale_jitter": (0.5,)}, "scale_jitter must be a low and a high factor, such as 0.8 1.25"),
        ({"scale_jitter": (2.0, 0.5)}, "scale_jitter must be a low and a high factor"),
        ({"scale_jitter": (0.0, 2.0)}, "scale_jitter must be positive"),
        ({"momentum": 5.0}, "momentum must be from 0 to less than 1, got 5.0"),
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"detections_per_image": 0}, "detections_per_image must be positive, got 0"),
        ({"score_threshold": 2.0}, "score_threshold must be from 0 to less than 1, got 2.0"),
        ({"score_threshold": 1.0}, "score_threshold must be from 0 to less than 1, got 1.0"),
        ({"nms_threshold": -1.0}, "nms_threshold must be from 0 to 1, got -1.0"),
        ({"anchor_scale": 0.0}, "anchor_scale must be positive, got 0.0"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"reduction": 0}, "reduction must be positive"),
        ({"min_size": (640, 0)}, r"min_size must be positive, got \(640, 0\)"),
        ({"max_size": -1}, "max_size must be positive"),
        ({"threshold": 4.0}, "threshold must be from 0 to 1"),
        ({"trainable_layers": -1}, "trainable_layers must not be negative"),
        ({"swarm_size": 64}, "swarm_size must be at least 128 pixels, got 64"),
        ({"data": ""}, "data is empty; pass the folder of a data set"),
        ({"data": "a", "train_json": "b"}, "data and train_json both say what to train on; pass one of them"),
        ({"data": "a", "train_images": "b"}, "train_images has no effect beside data; choose parts of data with"),
        ({"data": "a", "test_json": "b"}, "test_json has no effect beside data"),
        ({"data": "a", "test_images": "b"}, "test_images has no effect beside data"),
        ({"train_split": "train"}, "train_split is a part of data, which is not given; pass data, or set train_split"),
        ({"test_split": "val", "train_json": "b"}, "test_split is a part of data, which is not given"),
        ({"train_images": "b"}, "train_images is given without train_json; pass the annotations to train on too"),
        ({"test_json": "b"}, "test_json is given without train_json"),
    ],
)
def test_flat_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(options)


def test_from_dict_is_the_inverse_of_as_dict() -> None:
    config = TrainConfig(ModelConfig(min_size=(640, 800)), DataConfig(data="a", crop=64), epochs=5, ema=0.9)
    assert TrainConfig.from_dict(config.as_dict()) == config
    assert TrainConfig.from_dict({}) == TrainConfig()


@pytest.mark.parametrize("detector", DETECTORS)
def test_only_detectors_whose_anchors_have_a_scale_are_given_one(detector: str) -> None:
    arguments = ModelConfig(detector=detector, anchor_scale=3).arguments
    assert arguments["anchor_scale"] == (3 if detector in ANCHORS else None)


def test_an_anchor_scale_that_is_still_to_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="'auto' is fitted by"):
        _ = ModelConfig(anchor_scale="auto").arguments


def test_every_option_of_a_detector_can_be_configured() -> None:
    choices = get_type_hints(ModelConfig)
    assert get_args(choices["detector"]) == DETECTORS
    assert set(get_args(choices["backbone"])) == set(BACKBONES)
    parameters = inspect.signature(build_detector).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    given = set(ModelConfig().arguments)
    assert given == known | {"name"} | {field.name for field in fields(SelfReconstructionOptions)}
