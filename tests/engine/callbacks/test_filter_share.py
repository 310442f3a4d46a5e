"""The share of the test images that passes the filter."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch

from srtod.engine import DetectionModule, TrainConfig
from srtod.engine.callbacks import FilterShare

BINS = ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm")


def test_scalars_of_every_evaluation(watched: Any) -> None:
    names = {*BINS, "threshold_x255", "filter_share", "train/loss", "train/loss_reconstruction"}
    assert names < set(watched.events.Tags()["scalars"])
    for name in (*BINS, "filter_share"):
        assert len(watched.events.Scalars(name)) == 2
    assert all(0 <= event.value <= 1 for event in watched.events.Scalars("filter_share"))


def make(**options: Any) -> DetectionModule:
    """With the paper's head, which gives grey before it has learnt."""
    torch.manual_seed(0)
    paper = {"reconstruction": "paper", "enhancement": "dgfe", "resize": "nearest"}
    config = TrainConfig.from_dict({"channels": 16, **paper, **options})
    return DetectionModule(config, ["drone"], [1])


def logged_of(
    module: DetectionModule, images: list[torch.Tensor], boxes: list[torch.Tensor] | None = None
) -> dict[str, float]:
    """What is logged after an evaluation of a batch."""
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    callback, trainer = FilterShare(), L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    callback.on_validation_epoch_start(trainer, module)
    with torch.no_grad():
        outputs = module.detector.eval()(images)
    targets: Any = [{"boxes": each} for each in boxes or [torch.zeros(0, 4)] * len(images)]
    callback.on_validation_batch_end(trainer, module, outputs, (images, targets), 0)
    callback.on_validation_epoch_end(trainer, module)
    return logged


def share(module: DetectionModule, images: list[torch.Tensor]) -> float | None:
    return logged_of(module, images).get("filter_share")


def striped(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Noise beside grey, which is what the paper's head gives at first: some of it passes the filter."""
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
        {"reconstruction": "subpixel", "threshold": 0.3},
        {"reconstruction": "resampled"},
    ],
    ids=lambda model: "-".join(map(str, model.values())) or "default",
)
def test_the_share_is_that_of_the_whole_filters_pixels_without_padding(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = make(**{"threshold": 0.15, **model})
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
    module = make(threshold=0.15)
    images = striped((64, 64), (41, 64))
    expected = share(module, images)
    reconstruction = module.detector.self_reconstruction
    assert reconstruction is not None
    if compiled:
        reconstruction.compile(backend="eager")
        assert share(module, images) == pytest.approx(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert share(module, images) == pytest.approx(expected, abs=0.03)  # bfloat16 moves the map a little


def test_nothing_is_left_on_the_detector() -> None:
    module = make()
    assert share(module, [torch.rand(3, 64, 64)]) is not None
    assert module.detector.self_reconstruction is not None
    assert module.detector.self_reconstruction.observer is None


def test_the_share_counts_beyond_what_float32_can() -> None:
    module, callback = make(threshold=None), FilterShare()
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update({name: value})  # type: ignore[method-assign,assignment]
    trainer: Any = None
    callback.on_validation_epoch_start(trainer, module)
    callback._counts[:2] += torch.tensor([2**24, 2**25])
    for _ in range(3):
        callback._counts[0] += 1
    callback.on_validation_epoch_end(trainer, module)
    assert logged["filter_share"] == (2**24 + 3) / 2**25


def test_precision_and_recall_are_of_the_pixels_that_objects_touch() -> None:
    module = make(threshold=0.15, scale=2.0)
    images = striped((64, 64), (41, 64))
    boxes = [torch.tensor([[30.0, 4.0, 44.0, 17.0], [1.0, 1.0, 3.0, 3.0]]), torch.zeros(0, 4)]
    logged = logged_of(module, images, boxes)
    passes = [parts.filter[0] > 1 for parts in module.detector.reconstruct(images)]
    objects = [torch.zeros_like(each) for each in passes]
    objects[0][2:9, 15:22] = True  # of twice the size, at stride 4
    objects[0][0:2, 0:2] = True
    both = sum(int((a & b).sum()) for a, b in zip(passes, objects, strict=True))
    assert 0 < both < int(objects[0].sum())
    assert logged["filter_precision"] == pytest.approx(both / sum(int(each.sum()) for each in passes))
    assert logged["filter_recall"] == pytest.approx(both / int(objects[0].sum()))


def test_a_filter_that_does_not_select_is_told_once() -> None:
    images = striped((64, 64))
    with pytest.warns(UserWarning, match=r"100% of the pixels pass the filter: it hardly selects; set threshold to"):
        logged_of(make(threshold=0.0), images)
    module = make(threshold=0.3)
    passes = module.detector.eval().reconstruct(images)[0].filter[0] > 1
    assert 0 < passes.float().mean() < 0.5
    nowhere = (~passes).nonzero()[0].flip(0) * 4.0
    with pytest.warns(UserWarning, match=r"the filter passes 0% of the pixels on objects and \d+% of the others; set"):
        logged_of(make(threshold=0.3), images, [torch.cat([nowhere, nowhere + 4])[None]])
    where = passes.nonzero()[0].flip(0) * 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logged_of(make(threshold=0.3), images, [torch.cat([where, where + 4])[None]])


@pytest.mark.parametrize("model", [{"self_reconstruction": False}, {"enhancement": "none"}], ids=str)
def test_without_a_filter_there_is_no_share(model: dict[str, Any]) -> None:
    module = make(**model)
    assert share(module, [torch.rand(3, 64, 64)]) is None
