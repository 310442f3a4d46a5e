"""The share of the test images that passes the filter."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from srtod.engine import DetectionModule, ModelConfig, TrainConfig
from srtod.engine.callbacks import FilterShare

BINS = ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm")


def test_scalars_of_every_evaluation(watched: Any) -> None:
    names = {*BINS, "threshold_x255", "filter_share", "train/loss", "train/loss_reconstruction"}
    assert names < set(watched.events.Tags()["scalars"])
    for name in (*BINS, "filter_share"):
        assert len(watched.events.Scalars(name)) == 2
    assert all(0 <= event.value <= 1 for event in watched.events.Scalars("filter_share"))


def share(module: DetectionModule, images: list[torch.Tensor]) -> float | None:
    """What is logged after an evaluation of a batch."""
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    callback, trainer = FilterShare(), L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    callback.on_validation_epoch_start(trainer, module)
    with torch.no_grad():
        module.detector.eval()(images)
    callback.on_validation_epoch_end(trainer, module)
    return logged.get("filter_share")


def striped(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Noise beside grey, which is what a head that has learnt nothing gives: some of it passes the filter."""
    images = [torch.rand(3, height, width) for height, width in sizes]
    for image in images:
        image[:, :, : image.shape[2] // 2] = 0.5
    return images


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"enhancement": "attention"},
        {"enhancement": "multiplication"},
        {"enhancement": "concatenation"},
        {"threshold": None},
        {"threshold": None, "enhancement": "multiplication"},
        {"resize": "max", "threshold": 0.3},  # one pixel of 16 is enough to pass
        {"resize": "area", "threshold": 0.3},
        {"resize": "bilinear"},
        {"difference": "high_frequency"},
        {"detector": "fcos"},
    ],
    ids=lambda model: "-".join(map(str, model.values())) or "default",
)
def test_the_share_is_that_of_the_whole_filters_pixels_without_padding(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = DetectionModule(TrainConfig(ModelConfig(**{"channels": 16, "threshold": 0.15, **model})), ["drone"], [1])
    images = striped((64, 64), (41, 64), (64, 33))
    logged = share(module, images)
    whole = module.detector.reconstruct(images)  # by the plug's forward, without padding
    passes = torch.cat([parts.filter.flatten() for parts in whole]) > 1
    passing = float(passes.double().mean())
    assert logged == pytest.approx(passing)
    assert passing > 0.95 if model.get("threshold", 0) is None else 0.05 < passing < 0.95


@pytest.mark.parametrize("compiled", [False, True])
def test_the_share_under_compile_and_autocast(compiled: bool) -> None:
    torch.manual_seed(0)
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, threshold=0.15)), ["drone"], [1])
    images = striped((64, 64), (41, 64))
    expected = share(module, images)
    plug = module.detector.self_reconstruction
    assert plug is not None
    if compiled:
        plug.compile(backend="eager")
        assert share(module, images) == pytest.approx(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert share(module, images) == pytest.approx(expected, abs=0.03)  # bfloat16 moves the map a little


def test_nothing_is_left_on_the_detector() -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16)), ["drone"], [1])
    hooks = [len(part._forward_hooks) for part in module.detector.modules()]
    assert share(module, [torch.rand(3, 64, 64)]) is not None
    assert [len(part._forward_hooks) for part in module.detector.modules()] == hooks


def test_the_share_counts_beyond_what_float32_can() -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, threshold=None)), ["drone"], [1])
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    callback: Any = FilterShare()
    callback.on_validation_epoch_start(None, module)
    callback._passed += 2**24
    for _ in range(3):
        callback._passed += 1
    callback._total = 2**25
    callback.on_validation_epoch_end(None, module)
    assert logged["filter_share"] == (2**24 + 3) / 2**25


@pytest.mark.parametrize("model", [{"self_reconstruction": False}, {"enhancement": "none"}], ids=str)
def test_without_a_filter_there_is_no_share(model: dict[str, Any]) -> None:
    module = DetectionModule(TrainConfig(ModelConfig(channels=16, **model)), ["drone"], [1])
    assert share(module, [torch.rand(3, 64, 64)]) is None
