"""Controls: the filter that the detector gets in training and in inference, and checkpoints that say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from srtod.engine import TrainConfig
from srtod.models.checkpoint import describe, load_detector, write_checkpoint
from srtod.models.reconstruction import object_mask
from srtod.studies.controls import CONTROLS, ControlledModule

CONFIG = TrainConfig.from_dict(
    {
        "channels": 16,
        "threshold": 8 / 255,
        "enhancement": "dgfe",
        "resize": "nearest",
        "reconstruction": "subpixel",
        "accelerator": "cpu",
        "horizontal_flip": 0.0,
    }
)


def batch(count: int, seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of different sizes, so that the smaller ones are padded, with two objects each."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 96 + 32 * number, 128, generator=generator) for number in range(count)]
    boxes = torch.tensor([[8.0, 10.0, 21.0, 19.0], [60.0, 40.0, 64.0, 44.0]])
    targets = [
        {"boxes": boxes + number, "labels": torch.ones(2, dtype=torch.int64), "ignore": torch.zeros(0, 4)}
        for number in range(count)
    ]
    return images, targets


def make(control: str, threshold: float | str = 8 / 255) -> ControlledModule:
    torch.manual_seed(0)
    config = TrainConfig.from_dict(CONFIG.as_dict() | {"threshold": threshold})
    return ControlledModule(control, config, ["drone"], [1])


def filters(module: ControlledModule, count: int, *, training: bool, batch_number: int = 0, seed: int = 0) -> Tensor:
    """The filter `[N, 1, h, w]` that the features were multiplied with, found from what the enhancement did."""
    images, targets = batch(count, seed)
    reconstruction = module.detector.self_reconstruction
    assert reconstruction is not None
    enhancer = reconstruction.enhancer
    assert enhancer is not None
    before: list[Tensor] = []
    after: list[Tensor] = []
    reported: list[Tensor] = []
    reconstruction.observer = lambda filters, sizes: reported.append(filters)
    hooks = [
        enhancer.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0].detach().clone())),
        enhancer.register_forward_hook(lambda _, arguments, output: after.append(output.detach().clone())),
    ]
    module.control.begin(images, targets, epoch=0, batch=batch_number, training=training)
    module.detector.train(training)
    with torch.no_grad():
        module.detector(images, targets if training else None)
    for hook in hooks:
        hook.remove()
    reconstruction.observer = None
    # Identity start: all channel weights are equal, so features are scaled by (filter x one number).
    scaled = (after[0] * before[0]).sum(dim=1, keepdim=True) / before[0].square().sum(dim=1, keepdim=True)
    got = scaled * (1 + enhancer.pass_share)
    torch.testing.assert_close(got, reported[0].to(got), rtol=1e-3, atol=1e-3)  # what is logged is what it got
    return got.round(decimals=1)


def objects(count: int) -> Tensor:
    _, targets = batch(count)
    height = 96 + 32 * (count - 1)
    return object_mask([target["boxes"] for target in targets], (height // 4, 32), 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("threshold", [8 / 255, 0.0, "auto"])
def test_ones_lets_nothing_pass(training: bool, threshold: float | str) -> None:
    assert (filters(make("ones", threshold), 2, training=training) == 1).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("threshold", [8 / 255, 1.0, "auto"])
def test_oracle_lets_the_objects_pass(training: bool, threshold: float | str) -> None:
    found = filters(make("oracle", threshold), 2, training=training)
    assert torch.equal(found == 2, objects(2))
    assert ((found == 1) | (found == 2)).all()


@pytest.mark.parametrize("training", [True, False])
def test_random_has_the_same_share_elsewhere(training: bool) -> None:
    module = make("random", 0.25)
    found = filters(module, 2, training=training)
    plain = make("random", 0.25)
    reconstruction = plain.detector.self_reconstruction
    assert reconstruction is not None
    reconstruction.replacement = None
    own = filters(plain, 2, training=training)
    for index, rows in enumerate((24, 32)):  # of 96 and 128 pixels
        inside, outside = found[index, :, :rows], found[index, :, rows:]
        assert (inside == 2).sum() == (own[index, :, :rows] == 2).sum() > 10
        assert not torch.equal(inside, own[index, :, :rows])
        assert (outside == 1).all()
    assert torch.equal(found, filters(make("random", 0.25), 2, training=training))
    assert not torch.equal(found, filters(make("random", 0.25), 2, training=training, batch_number=1))


def turned(module: ControlledModule, count: int, *, training: bool, seed: int = 0) -> Tensor:
    reconstruction = module.detector.self_reconstruction
    assert reconstruction is not None
    replacement, reconstruction.replacement = reconstruction.replacement, None
    own = filters(module, count, training=training, seed=seed)
    reconstruction.replacement = replacement
    return own.flip(2, 3)


@pytest.mark.parametrize("training", [True, False])
def test_shuffled_has_the_filter_of_another_image(training: bool) -> None:
    module = make("shuffled", 0.25)
    first, second, third = (turned(module, 1, training=training, seed=seed) for seed in (1, 2, 3))
    assert not torch.equal(first, second)
    assert torch.equal(filters(module, 1, training=training, seed=1), first)  # no other image was seen yet
    assert torch.equal(filters(module, 1, training=training, seed=2, batch_number=1), first)
    assert torch.equal(filters(module, 1, training=training, seed=3, batch_number=2), second)
    if not training:  # the next evaluation knows nothing of this one
        assert torch.equal(filters(module, 1, training=False, seed=3), third)


def test_shuffled_in_a_batch_takes_the_next_image() -> None:
    module = make("shuffled", 0.25)
    found = filters(module, 2, training=True)
    reconstruction = module.detector.self_reconstruction
    assert reconstruction is not None
    reconstruction.replacement = None
    own = filters(module, 2, training=True)
    # The second image is larger: it gets the first one's map at its own size, whose rows it repeats.
    share = float((own[0, :, :24] == 2).float().mean())
    assert float((found[1] == 2).float().mean()) == pytest.approx(share, abs=0.05)
    assert (found[0, :, 24:] == 1).all()


def test_the_state_of_a_control_survives_a_checkpoint(tmp_path: Path) -> None:
    module = make("shuffled", 0.25)
    filters(module, 1, training=True, seed=1)
    content: dict[str, object] = {}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    other = make("shuffled", 0.25)
    other.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    expected = filters(module, 1, training=True, seed=2, batch_number=1)
    assert torch.equal(filters(other, 1, training=True, seed=2, batch_number=1), expected)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_checkpoint_of_a_control_says_so_and_is_refused(control: str, checkpoint: Path, tmp_path: Path) -> None:
    description = make(control).description
    assert description["control"] == control
    content = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "control.ckpt"
    write_checkpoint(content | {"srtod": {**content["srtod"], "control": control}}, path)
    with pytest.raises(
        ValueError, match=f"is of a control run of a study .control: {control}., whose filter is not"
    ) as e:
        load_detector(path)
    assert "\n" not in str(e.value)
    assert description.keys() > describe({}, [], []).keys()
