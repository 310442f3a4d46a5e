"""The configuration of a run."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_type_hints

import pytest

from srtod.engine import DataConfig, ModelConfig, TrainConfig
from srtod.models import DETECTORS, build_detector
from srtod.models.anchors import ANCHORS
from srtod.models.backbones import BACKBONES
from srtod.models.build import SelfReconstructionOptions


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
    assert not {"model", "data"} & set(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"lr": -0.1}, "lr must be positive"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm must be positive"),
        ({"data": DataConfig(batch_size=0)}, "batch_size must be positive"),
        ({"data": DataConfig(workers=-1)}, "workers must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"epochs": 10, "eval_every": 3}, "eval_every must divide epochs"),
        ({"lr_steps": (8, 4)}, "lr_steps must be rising"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


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
    assert given == known | {"name"} | set(SelfReconstructionOptions.__annotations__)
