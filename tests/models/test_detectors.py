"""What every detector has to do: learn two images by heart, and take whatever training brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import box_convert

from srtod.evaluation import evaluate_detections
from srtod.models import BACKBONES, DETECTORS, Detector, SelfReconstruction, build_detector
from srtod.models.heads.dense import DenseHead

SIZE = 64
BFLOAT16_SIZE = 128
"""At 64 px P6 is one place wide, and torch 2.14 (oneDNN 3.12) leaves parts of P7's bfloat16 weight gradient unset."""
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
NUMBERS_OF_OBJECTS = [(1, 500), (0, 1), (0, 0)]
"""In the two images of a batch."""
ANCHOR_SCALES = {"retinanet": 2.0, "atss": 4.0, "dyhead": 4.0}
"""Where the default's anchors, made for strides from 8, are much larger than the squares below."""

WITH_QUERIES = ("deformable_detr", "dfine")
"""They are slow to learn, and need `transformers`."""
SLOW = ("cascade_rcnn", "detectors", "rfla", "tridentnet", "cascade_rpn", "dyhead", "detectors_rfla")
"""What takes long to learn two images by heart."""

every_detector = pytest.mark.parametrize("name", DETECTORS)
on_p2_and_p3 = pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
"""For what concerns self-reconstruction alone: nothing else of a detector matters to it."""


class NarrowResNet(ResNet):
    """A ResNet of one block a stage and a quarter of ResNet-18's channels: the tests' time is in the weights."""

    def __init__(self, norm_layer: Any = None) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=2, norm_layer=norm_layer)
        self.inplanes = 16
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), self._norm_layer(16)
        self.layer1 = self._make_layer(BasicBlock, 16, 1)
        self.layer2 = self._make_layer(BasicBlock, 32, 1, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 64, 1, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 128, 1, stride=2)
        self.fc = nn.Linear(128, 2)


def add_narrow_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "resnet_narrow", BACKBONES["resnet18"])
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, weights=None, norm_layer=None: NarrowResNet(norm_layer)
    )


@pytest.fixture(autouse=True)
def narrow_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    add_narrow_resnet(monkeypatch)


def build(name: str, seed: int = 0, device: torch.device | None = None, **options: Any) -> Detector:
    if name in WITH_QUERIES:
        pytest.importorskip("transformers", reason="needs srtod[detr]")
        options = {"channels": 64} | options
    torch.manual_seed(seed)
    small = {"backbone": "resnet_narrow", "norm": "group", "channels": 16, "min_size": None}
    detector = build_detector(name, 3, **(small | {"anchor_scale": ANCHOR_SCALES.get(name)} | options))
    for module in detector.modules():
        if isinstance(module, RoIHeads):  # 512 regions an image are most of the time on images as small as these
            module.fg_bg_sampler.batch_size_per_image = 64
        if isinstance(module, DenseHead):  # standard deviations of 0.01 suit 256 channels, through 16 nothing comes
            for layer in [*module.class_tower.modules(), *module.box_tower.modules()]:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return detector.to(device)


def example(device: torch.device | None = None, size: int = SIZE) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two dark images with squares of 16 to 22 px, red ones of class 1 and blue ones of class 2."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for squares in ([(5, 6, 18), (38, 9, 16), (12, 37, 22)], [(8, 30, 20), (36, 36, 16)]):
        image = torch.rand(3, size, size, generator=generator) * 0.2
        for index, (x, y, side) in enumerate(squares):
            image[2 * (index % 2), y : y + side, x : x + side] += 0.7
        boxes = torch.tensor([[x, y, x + side, y + side] for x, y, side in squares], dtype=torch.float32)
        images.append(image.to(device))
        targets.append(on(device, {"boxes": boxes, "labels": torch.arange(len(squares)) % 2 + 1}))
    return images, targets


def on(device: torch.device | None, target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in target.items()}


def crowd(count: int, size: int = SIZE) -> dict[str, Tensor]:
    """So many objects of 4 to 16 px, anywhere; may be none."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * (size - 16)
    sides = 4 + 12 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(1, 3, (count,), generator=generator)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": labels}


def average_precision(detections: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> float:
    """AP50."""
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": index + 1} for index in range(len(targets))],
        "annotations": [],
        "categories": [{"id": 1}, {"id": 2}],
    }
    results = []
    for index, (detection, target) in enumerate(zip(detections, targets, strict=True), start=1):
        boxes = box_convert(target["boxes"], "xyxy", "xywh").tolist()
        for box, label in zip(boxes, target["labels"].tolist(), strict=True):
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({"id": number, "image_id": index, "category_id": label, "bbox": box})
        boxes = box_convert(detection["boxes"], "xyxy", "xywh").tolist()
        for box, label, score in zip(boxes, detection["labels"].tolist(), detection["scores"].tolist(), strict=True):
            results.append({"image_id": index, "category_id": label, "bbox": box, "score": score})
    return evaluate_detections(truth, results)["AP50"]


def step(
    detector: Detector, images: list[Tensor], targets: list[dict[str, Tensor]], *, autocast: bool = False
) -> float:
    """Losses and gradients of a batch, all of them finite; returns the sum of the losses that can come to 0.

    Centerness is learned by cross-entropy with soft targets, which cannot: its least value is their entropy, about 0.6.
    """
    with torch.autocast(images[0].device.type, torch.bfloat16, enabled=autocast):
        losses = detector.train()(images, targets)
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values()), losses
    total = torch.stack(list(losses.values())).sum()
    detector.zero_grad()
    total.backward()
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    return sum(loss.item() for key, loss in losses.items() if key != "loss_centerness")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in DETECTORS if name not in WITH_QUERIES],
)
def test_two_images_are_learned_by_heart(name: str, device: torch.device) -> None:
    """The loss falls to a tenth and AP50 passes 0.9; a detector that is wrong in any part stays below one of them."""
    detector = build(name, device=device)
    images, targets = example(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, fused=True)
    steps = 100
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps + 1, pct_start=0.1)
    first = step(detector, images, targets)
    precision = 0.0
    for number in range(1, steps + 1):
        optimizer.step()
        schedule.step()
        loss = step(detector, images, targets)
        if number % 10 == 0 and loss < first / 10:
            with torch.no_grad():
                precision = average_precision(detector.eval()(images), targets)
            if precision > 0.9:
                return
    pytest.fail(f"after {steps} steps the loss went from {first:.3f} to {loss:.3f}, AP50 is {precision:.3f}")


@pytest.mark.slow
def test_queries_learn_two_images_by_heart(device: torch.device) -> None:
    """D-FINE; Deformable DETR takes thousands of steps. The loss has parts of each layer that do not come to 0."""
    detector = build("dfine", device=device)
    images, targets = example(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=401, pct_start=0.1)
    precision = 0.0
    for number in range(1, 401):
        step(detector, images, targets)
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % 50 == 0:
            with torch.no_grad():
                precision = average_precision(detector.eval()(images), targets)
            if precision > 0.9:
                return
    pytest.fail(f"after 400 steps AP50 is {precision:.3f}")


@every_detector
def test_any_number_of_objects(name: str, device: torch.device) -> None:
    detector = build(name, device=device)
    images, _ = example(device)
    for counts in NUMBERS_OF_OBJECTS:
        step(detector, images, [on(device, crowd(count)) for count in counts])


def losses_of_head(detector: Detector, targets: list[dict[str, Tensor]]) -> dict[str, float]:
    """The losses of the example's images with these targets, after a step with finite gradients."""
    images, _ = example()
    torch.manual_seed(0)
    step(detector, images, targets)
    torch.manual_seed(0)
    return {key: loss.item() for key, loss in detector(images, targets).items() if key != "loss_reconstruction"}


@every_detector
def test_ignore_regions(name: str) -> None:
    detector = build(name, self_reconstruction=False)
    _, targets = example()
    plain = losses_of_head(detector, targets)
    assert losses_of_head(detector, [target | {"ignore": torch.zeros(0, 4)} for target in targets]) == plain
    region = torch.tensor([[30.0, 0.0, 64.0, 64.0]])
    ignoring = losses_of_head(detector, [target | {"ignore": region} for target in targets])
    classification = [key for key in plain if "box" not in key and "centerness" not in key]
    assert all(ignoring[key] != plain[key] for key in classification)


@every_detector
def test_images_that_are_all_ignored_teach_the_head_nothing(name: str) -> None:
    detector = build(name, self_reconstruction=False)
    ignored = EMPTY | {"ignore": torch.tensor([[0.0, 0.0, SIZE, SIZE]])}
    assert set(losses_of_head(detector, [ignored, ignored]).values()) == {0.0}
    losses = losses_of_head(detector, [ignored, example()[1][1]])
    losses.pop("loss_box_distillation", None)  # between the layers of D-FINE, which start alike
    assert all(loss > 0 for loss in losses.values())


@every_detector
def test_training_under_bfloat16_autocast(name: str, device: torch.device) -> None:
    detector = build(name, device=device, score_threshold=0.0)
    images, targets = example(device, BFLOAT16_SIZE)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    step(detector, images, targets, autocast=True)
    optimizer.step()
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        detections = detector.eval()(images)
    for detection in detections:
        assert len(detection["boxes"]) > 0
        assert detection["boxes"].dtype == detection["scores"].dtype == torch.float32
        assert not torch.equal(detection["boxes"], detection["boxes"].bfloat16().float())


@every_detector
def test_any_number_of_objects_under_bfloat16_autocast(name: str, device: torch.device) -> None:
    detector = build(name, device=device)
    images, _ = example(device, BFLOAT16_SIZE)
    for counts in NUMBERS_OF_OBJECTS:
        step(detector, images, [on(device, crowd(count)) for count in counts], autocast=True)


def train_on_five_thousand(name: str) -> Callable[[], object]:
    """One step with 5,000 objects in an image of 512x512 pixels."""
    add_narrow_resnet(pytest.MonkeyPatch())
    detector, images, targets = build(name), [torch.rand(3, 512, 512)], [crowd(5000, size=512)]
    return lambda: step(detector, images, targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in WITH_QUERIES])
def test_five_thousand_objects(name: str, cost_alone: Callable[..., Any]) -> None:
    """No part of a detector makes a matrix of all objects and anchors or regions; prints what the step took.

    One with queries weighs each of them against each object, and has hundreds where others have thousands of places.
    The steps took up to 264 MB. `box_iou` of 5,000 objects and the fewest priors, 5,456 places of FCOS, takes 986 MB.
    """
    cost = cost_alone(train_on_five_thousand, name)
    print(f"{name}: {cost.seconds:.1f} s, {cost.megabytes:.0f} MB more")
    assert cost.megabytes < 400


def train_at_800(self_reconstruction: str) -> Callable[[], object]:
    """A training step of the paper's setting, on one image; "True" or "False"."""
    torch.manual_seed(0)
    options = {"backbone": "resnet50", "norm": "frozen_batch", "trainable_layers": 3, "channels": 256}
    detector = build("faster_rcnn", self_reconstruction=self_reconstruction == "True", **options)
    images, targets = (
        [torch.rand(3, 800, 800)],
        [{"boxes": torch.tensor([[8.0, 8, 24, 24]]), "labels": torch.ones(1).long()}],
    )
    return lambda: step(detector, images, targets)


@pytest.mark.slow
def test_self_reconstruction_takes_little_memory_in_training(cost_alone: Callable[..., Any]) -> None:
    plain, ours = (cost_alone(train_at_800, which).megabytes for which in ("False", "True"))
    print(f"a training step at 800x800: {plain:.0f} MB plain, {ours:.0f} MB with SR-TOD, {ours / plain:.2f} times")
    assert ours < 1.3 * plain


@every_detector
def test_images_of_other_sizes(name: str) -> None:
    """Neither the batch's sides nor those of its images need be multiples of the coarsest stride."""
    detector = build(name, score_threshold=0.0, detections_per_image=20)
    images = [torch.rand(3, 50, 75), torch.rand(3, 33, 130)]
    step(detector, images, [{"boxes": torch.tensor([[8.0, 8, 24, 24]]), "labels": torch.tensor([1])}, dict(EMPTY)])
    with torch.no_grad():
        detections = detector.eval()(images)
    for image, detection in zip(images, detections, strict=True):
        assert 0 < len(detection["boxes"]) <= 20
        assert detection["boxes"].min() >= 0
        assert (detection["boxes"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]]) + 1e-3).all()
        assert (detection["scores"].diff() <= 0).all()


@every_detector
def test_a_single_small_image(name: str) -> None:
    """Its coarsest level is one pixel."""
    detector = build(name, score_threshold=0.0)
    step(detector, [torch.rand(3, 40, 60)], [{"boxes": torch.tensor([[8.0, 8, 24, 24]]), "labels": torch.tensor([1])}])
    with torch.no_grad():
        (detection,) = detector.eval()([torch.rand(3, 40, 60)])
    assert len(detection["boxes"]) > 0


class Features(nn.Module):
    """A detector up to its head."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.self_reconstruction = detector.self_reconstruction

    def forward(
        self, batch: Tensor, pixels: Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], Tensor | None]:
        features = self.neck(self.backbone(batch))
        if self.self_reconstruction is None:
            return list(features.values()), None
        finest = next(iter(features))
        features[finest], output = self.self_reconstruction(features[finest], pixels, sizes)
        return list(features.values()), output.loss


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        *((name, (64, 64)) for name in ("retinanet", "faster_rcnn", "detectors", "fcos", "tridentnet")),  # the necks
        ("faster_rcnn", (50, 40)),  # a neck sees no padding
    ],
)
def test_compiles_without_a_graph_break(name: str, sides: tuple[int, int]) -> None:
    """Also where an image is smaller than the batch, whose padding then does not count in the loss."""
    detector = build(name).train()
    part = Features(detector)
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    batch, pixels, _ = detector.transform([torch.rand(3, 64, 64), torch.rand(3, *sides)])
    assert batch.image_sizes == [(64, 64), sides] * detector.transform.copies
    expected, expected_loss = part(batch.tensors, pixels, batch.image_sizes)
    features, loss = compiled(batch.tensors, pixels, batch.image_sizes)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(loss, expected_loss)
    if sides != (64, 64):
        assert not torch.isclose(loss, part(batch.tensors, pixels, [(64, 64)] * 2)[1])
    (loss + sum(level.sum() for level in features)).backward()
    assert all(parameter.grad is not None for parameter in part.neck.parameters())


@every_detector
def test_state_dict_round_trip(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # or equal weights may round differently
    first, second = (build(name, seed, device, score_threshold=0.0).eval() for seed in (0, 1))
    images, _ = example(device)
    with torch.no_grad():
        expected = first(images)
        assert not torch.equal(expected[0]["boxes"], second(images)[0]["boxes"])
        second.load_state_dict(first.state_dict())
        restored = second(images)
    for ours, theirs in zip(restored, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@every_detector
def test_matched_start(name: str) -> None:
    """With or without self-reconstruction: the same shared weights, and the same random numbers afterwards."""
    plain = build(name, self_reconstruction=False)
    after_plain = torch.rand(3)
    enhanced = build(name, self_reconstruction=True)
    assert torch.equal(torch.rand(3), after_plain)
    weights = enhanced.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    assert all(key.startswith("self_reconstruction.") for key in weights.keys() - plain.state_dict().keys())


@on_p2_and_p3
def test_the_surrogate_changes_the_thresholds_gradient_alone(name: str) -> None:
    """`surrogate="none"` is the authors' code: the same features, and a threshold that never learns."""
    images, targets = example()
    seen: dict[str, list[Tensor]] = {}
    gradients = {}
    for surrogate in ("none", "sigmoid", "triangle"):
        # The threshold is near the differences of an untrained head.
        detector = build(name, enhancement="dgfe", surrogate=surrogate, threshold=0.4, resize="nearest")

        def keep(module: nn.Module, args: tuple[Any, ...], into: str = surrogate) -> None:
            seen[into] = [level.detach() for level in args[1].values()]

        detector.head.register_forward_pre_hook(keep)
        step(detector, images, targets)
        assert detector.self_reconstruction is not None
        assert detector.self_reconstruction.threshold is not None
        gradients[surrogate] = detector.self_reconstruction.threshold.grad
    for surrogate in ("sigmoid", "triangle"):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen["none"], seen[surrogate], strict=True))
        assert gradients[surrogate] is not None
        assert gradients[surrogate] != 0
    assert gradients["none"] is None or gradients["none"] == 0


@on_p2_and_p3
@pytest.mark.parametrize(
    "options",
    [
        {"enhancement": "none"},
        {"enhancement": "multiplication"},
        {"enhancement": "concatenation", "threshold": None},
        {"enhancement": "dgfe", "threshold": None},
        {"enhancement": "dgfe", "learn_threshold": False, "difference": "high_frequency"},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_the_papers_ablations_are_options(name: str, options: dict[str, Any]) -> None:
    detector = build(name, **options)
    step(detector, *example())
    plug = detector.self_reconstruction
    assert isinstance(plug, SelfReconstruction)
    assert (plug.threshold is None) == (options["enhancement"] == "none" or "threshold" in options)


@on_p2_and_p3
def test_pruned_inference_detects_the_same(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference reconstructs the pixels alone that the filter looks at: not one of its decisions changes."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # or equal inputs may round differently
    # The threshold is near the differences of an untrained head.
    detector = build(name, enhancement="dgfe", threshold=0.4, resize="nearest", score_threshold=0.0).eval().to(device)
    plug = detector.self_reconstruction
    assert plug is not None
    images = [image.to(device) for image in (*example()[0], torch.rand(3, 50, 71))]
    filters = torch.cat([of_image.filter.flatten() for of_image in detector.reconstruct(images)])
    assert 0.05 < (filters == 2).float().mean() < 0.95
    with torch.no_grad():
        pruned = detector(images)
        monkeypatch.setattr(plug, "enhance", lambda *args: plug(*args)[0])
        full = detector(images)
    assert all(len(detection["boxes"]) > 0 for detection in full)
    for ours, theirs in zip(pruned, full, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
