"""The Lightning module: schedule, parameter groups, threshold, matched starts, and losses that are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from srtod.engine import DetectionModule, TrainConfig
from srtod.engine.module import learning_rate_factor, make_optimizer, parameter_groups
from srtod.models import DETECTORS
from srtod.models.checkpoint import load_detector, write_checkpoint


def module(**options: object) -> DetectionModule:
    L.seed_everything(7, verbose=False)
    return DetectionModule(TrainConfig.from_dict({"channels": 16, **options}), ["drone"], [1])


def test_learning_rate_rises_and_then_drops_in_steps() -> None:
    factors = [learning_rate_factor(step, 4, [6, 8]) for step in range(10)]
    assert factors == pytest.approx([0.001, 0.25075, 0.5005, 0.75025, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_learning_rate_without_warmup() -> None:
    assert learning_rate_factor(0, 0, []) == 1


def test_only_weights_decay_and_the_threshold_has_its_own_rate() -> None:
    detector = module(enhancement="dgfe", learn_threshold=True).detector
    weights, others, thresholds = parameter_groups(detector, 0.02, 1e-4, 0.01)
    assert [group["weight_decay"] for group in (weights, others, thresholds)] == [1e-4, 0, 0]
    assert [group["lr"] for group in (weights, others, thresholds)] == pytest.approx([0.02, 0.02, 0.0002])
    assert all(parameter.ndim > 1 for parameter in weights["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert thresholds["params"][0] is detector.self_reconstruction.dgfe.threshold
    assert sum(len(group["params"]) for group in (weights, others, thresholds)) == len(list(detector.parameters()))


def test_the_reconstruction_head_may_have_its_own_rate() -> None:
    detector = module().detector
    groups = parameter_groups(detector, 0.02, 1e-4, 0.01, reconstruction_lr=5.0)
    assert [group["lr"] for group in groups] == pytest.approx([0.02, 0.02, 0.0002, 0.1, 0.1])
    assert [group["weight_decay"] for group in groups] == [1e-4, 0, 0, 1e-4, 0]
    head = detector.self_reconstruction.reconstruction_head  # type: ignore[union-attr]
    assert {id(p) for group in groups[3:] for p in group["params"]} == {id(p) for p in head.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(detector.parameters()))


def test_the_optimizer_is_chosen() -> None:
    trained = module(optimizer="adamw", weight_decay=0.05, lr=1e-3)
    optimizer = make_optimizer(trained.detector, trained.config, 1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    assert isinstance(make_optimizer(trained.detector, TrainConfig(), 1e-3), torch.optim.SGD)


def test_frozen_parameters_are_left_out() -> None:
    groups = parameter_groups(module(trainable_layers=0).detector.backbone, 0.02, 1e-4, 0.01)
    assert not any(group["params"] for group in groups)


def test_a_seed_gives_the_same_shared_weights_with_and_without_self_reconstruction() -> None:
    with_it = module().state_dict()
    after_it = torch.rand(1)
    without_it = module(self_reconstruction=False).state_dict()
    assert torch.equal(torch.rand(1), after_it)
    assert without_it.keys() < with_it.keys()
    assert all(torch.equal(with_it[name], value) for name, value in without_it.items())


def step(module: DetectionModule, *, broken_gradient: bool = False) -> None:
    """A step of two batches up to where the optimizer would take it, without a trainer."""
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    optimizer = torch.optim.SGD(parameter_groups(module.detector, 0.02, 1e-4, 0.01), lr=0.02)
    module._trainer = SimpleNamespace(optimizers=[optimizer], global_step=3, barebones=False)  # type: ignore[assignment]
    for number, name in enumerate(("a.png", "b.png")):
        target = {"boxes": torch.tensor([[8.0, 8, 16, 16]]), "labels": torch.tensor([1]), "file_name": name}
        module.training_step(([torch.rand(3, 64, 64)], [target]), number).backward()
    if broken_gradient:
        next(module.detector.neck.parameters()).grad[0] = float("nan")
    module.configure_gradient_clipping(optimizer, module.config.clip_grad_norm, None)


def test_a_loss_that_is_not_finite_is_told_with_its_parts_and_images() -> None:
    broken = module()
    torch.nn.init.constant_(broken.detector.head.rpn.head.bbox_pred.bias, float("inf"))
    with pytest.raises(
        FloatingPointError,
        match=r"the loss .* at step 3 \(.*loss_rpn_box_reg (inf|nan).*images a\.png\) and \(.*b\.png\); lower lr",
    ):
        step(broken)


@pytest.mark.parametrize("clip", [10.0, None])
def test_a_gradient_that_is_not_finite_under_a_loss_that_is_never_reaches_the_weights(clip: float | None) -> None:
    broken = module()
    broken.config = replace(broken.config, clip_grad_norm=clip)
    message = r"^the gradient is no longer finite at step 3 \(loss_.*; images a\.png\) and \(.*; images b\.png\); lower"
    with pytest.raises(FloatingPointError, match=message):
        step(broken, broken_gradient=True)
    step(module())
    broken.zero_grad()
    broken.config = replace(broken.config, precision="16-mixed")  # whose scaler leaves such a step out
    step(broken, broken_gradient=True)


@pytest.mark.parametrize("clip", [0.5, None])
def test_gradients_are_clipped_to_their_norm(clip: float | None) -> None:
    clipped = module()
    clipped.config = replace(clipped.config, clip_grad_norm=clip)
    step(clipped)
    norm = torch.nn.utils.get_total_norm([value.grad for value in clipped.parameters() if value.grad is not None])
    assert norm == pytest.approx(0.5, rel=1e-4) if clip else norm > 0.5


@pytest.mark.parametrize(
    "options",
    [
        *({"detector": name} for name in DETECTORS),
        pytest.param({"detector": "detectors", "sac": False}, marks=pytest.mark.slow),
        {"detector": "rfla", "rfla_paper": True},
        {"enhancement": "dgfe"},
        {"enhancement": "multiplication"},
        {"enhancement": "concatenation", "learn_threshold": False},
        {"enhancement": "dgfe", "threshold": None},
        {"enhancement": "dgfe", "difference": "high_frequency", "cutoff": 0.1},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_checkpoint_rebuilds_every_detector(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("detector") in ("detectors", "detectors_rfla"):
        options = options | {"backbone": "resnet18"}
    if options.get("detector") in ("deformable_detr", "dfine"):
        pytest.importorskip("transformers", reason="needs srtod[detr]")
        options = options | {"channels": 64}
    trained = module(**options)
    content: dict[str, Any] = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(content)
    write_checkpoint(content, tmp_path / "last.ckpt")
    torch.manual_seed(1)
    rebuilt = load_detector(tmp_path / "last.ckpt").detector
    images = [torch.rand(3, 64, 64)]
    for detector in (trained.detector, rebuilt):
        detector.apply(lambda part: setattr(part, "score_threshold", 0.0) if hasattr(part, "score_threshold") else None)
    with torch.no_grad():
        (expected,), (found,) = trained.detector.eval()(images), rebuilt(images)
    assert len(expected["boxes"]) > 0
    assert all(torch.equal(found[key], expected[key]) for key in expected)
