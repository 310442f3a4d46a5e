"""The street from images to losses and detections, with and without self-reconstruction."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from srtod.models import Detector, build_detector
from srtod.models.heads.anchor_generator import PyramidAnchors

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def build(seed: int = 0, **options: object) -> Detector:
    torch.manual_seed(seed)
    small: dict[str, object] = {"backbone": "mobilenet_v2", "channels": 32, "anchor_scale": 2, "min_size": None}
    return build_detector("faster_rcnn", 3, **({"enhancement": "dgfe"} | small | options))  # type: ignore[arg-type]


def example(*sizes: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Dark images with two bright squares each."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for height, width in sizes or ((64, 96), (64, 96)):
        image = torch.rand(3, height, width, generator=generator) * 0.2
        boxes = torch.tensor([[8.0, 12.0, 18.0, 22.0], [30.0, 30.0, 42.0, 40.0]])
        for x1, y1, x2, y2 in boxes.int().tolist():
            image[:, y1:y2, x1:x2] = 0.9
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2])})
    return images, targets


@pytest.mark.parametrize("self_reconstruction", [False, True])
def test_losses(self_reconstruction: bool) -> None:
    losses = build(self_reconstruction=self_reconstruction).train()(*example((64, 96), (50, 75)))
    assert set(losses) == LOSSES | ({"loss_reconstruction"} if self_reconstruction else set())
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("self_reconstruction", [False, True])
def test_detections(self_reconstruction: bool) -> None:
    detector = build(self_reconstruction=self_reconstruction, score_threshold=0.0, detections_per_image=20).eval()
    images, _ = example((64, 96), (33, 47), (70, 31))
    with torch.no_grad():
        detections = detector(images)
    assert len(detections) == 3
    for image, detection in zip(images, detections, strict=True):
        assert set(detection) == {"boxes", "labels", "scores"}
        count = len(detection["scores"])
        assert 0 < count <= 20
        assert detection["boxes"].shape == (count, 4)
        assert detection["boxes"].min() >= 0
        assert (detection["boxes"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]]) + 1e-3).all()
        assert set(detection["labels"].tolist()) <= {1, 2}
        assert (detection["scores"].diff() <= 0).all()


def test_boxes_come_back_in_the_images_own_pixels() -> None:
    images, _ = example((64, 96))
    detector = build(scale=2.0, score_threshold=0.0).eval()
    larger = build(scale=1.0, score_threshold=0.0).eval()
    doubled = torch.nn.functional.interpolate(images[0][None], scale_factor=2, mode="bilinear")[0]
    with torch.no_grad():
        (native,), (upscaled,) = detector(images), larger([doubled])
    torch.testing.assert_close(native["boxes"] * 2, upscaled["boxes"], atol=1e-2, rtol=1e-3)


def test_reconstruction_target_is_the_unnormalised_image() -> None:
    """A head that gives every pixel the image's own grey has no loss; the normalised image would be far from it."""
    detector = build().train()
    head = detector.self_reconstruction.reconstruction_head  # type: ignore[union-attr]
    torch.nn.init.zeros_(head.out.weight)  # type: ignore[arg-type]
    torch.nn.init.constant_(head.out.bias, torch.logit(torch.tensor(0.25)).item())  # type: ignore[arg-type]
    images = [torch.full((3, 50, 70), 0.25), torch.full((3, 64, 40), 0.25)]
    losses = detector(images, example((64, 64), (64, 64))[1])
    assert losses["loss_reconstruction"] < 1e-10

    seen: list[Tensor] = []
    detector.self_reconstruction.register_forward_pre_hook(lambda _, args: seen.append(args[1]))  # type: ignore[union-attr]
    detector.eval().reconstruct(images)
    assert torch.equal(seen[0][0, :, :50, :70], images[0])
    assert not seen[0][0, :, 50:].any()


def test_padding_counts_in_the_loss_only_when_asked() -> None:
    images, targets = example((64, 96), (50, 60))
    losses = {}
    for padding_in_loss in (False, True):
        detector = build(padding_in_loss=padding_in_loss).train()
        for parameter in detector.self_reconstruction.reconstruction_head.parameters():  # type: ignore[union-attr]
            torch.nn.init.zeros_(parameter)
        losses[padding_in_loss] = detector(images, targets)["loss_reconstruction"]
    squared = [(image - 0.5).square().sum() for image in images]  # zero logits reconstruct 0.5 everywhere
    padding = 2 * 64 * 96 - 64 * 96 - 50 * 60
    torch.testing.assert_close(losses[False], sum(squared) / (3 * (64 * 96 + 50 * 60)))
    torch.testing.assert_close(losses[True], (sum(squared) + 3 * padding * 0.25) / (3 * 2 * 64 * 96))


def test_training_reduces_the_loss_without_self_reconstruction() -> None:
    detector = build(self_reconstruction=False, norm="group").train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    images, targets = example()
    totals = []
    for _ in range(8):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]


def test_every_parameter_learns() -> None:
    detector = build(threshold=0.4).train()  # about the first difference; far from it the surrogate's gradient is 0
    sum(detector(*example()).values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
    assert detector.self_reconstruction.dgfe.threshold.grad != 0  # type: ignore[union-attr]


def test_inplace_inference_equals_the_form_with_gradients() -> None:
    detector = build(score_threshold=0.0).eval()
    images, _ = example()
    recorded = detector(images)  # gradients are on, so nothing is overwritten
    with torch.no_grad():
        overwritten = detector(images)
    for a, b in zip(recorded, overwritten, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_reconstruct() -> None:
    detector = build(scale=2.0).eval()
    images, _ = example((64, 96), (33, 47))
    results = detector.reconstruct(images)
    for image, result in zip(images, results, strict=True):
        height, width = 2 * image.shape[1], 2 * image.shape[2]
        assert result.image.shape == result.reconstruction.shape == (3, height, width)
        assert result.difference.shape == (1, height, width)
        assert result.filter.shape == (1, -(-height // 4), -(-width // 4))
        difference = (result.reconstruction - result.image).abs().mean(0, keepdim=True)
        torch.testing.assert_close(result.difference, difference)
        assert set(result.filter.unique().tolist()) <= {1.0, 1.5, 2.0}
        filtered = (difference > detector.self_reconstruction.dgfe.threshold)[:, ::4, ::4] + 1.0  # type: ignore[union-attr]
        assert torch.equal(result.filter, filtered)
        assert result.features.shape == result.enhanced.shape == result.filter.shape
        assert result.stride == 4
    with pytest.raises(RuntimeError, match="call eval"):
        detector.train().reconstruct(images)
    with pytest.raises(RuntimeError, match="self_reconstruction=False"):
        build(self_reconstruction=False).eval().reconstruct(images)


@pytest.mark.parametrize("enhancement", ["dgfe", "none"])
def test_reconstruct_measures_the_level_before_and_after_its_enhancement(enhancement: str) -> None:
    detector = build(enhancement=enhancement).eval()
    images, _ = example((50, 75))
    batch, pixels, _ = detector.transform(images)
    with torch.enable_grad():  # where gradients are recorded nothing is overwritten
        before = next(iter(detector.neck(detector.backbone(batch.tensors)).values()))
        after, _ = detector.self_reconstruction(before, pixels, batch.image_sizes)  # type: ignore[misc]
    [result] = detector.reconstruct(images)
    torch.testing.assert_close(result.features, before[0, :, :13, :19].abs().mean(0, keepdim=True))
    if enhancement == "none":
        assert result.filter is None
        assert result.enhanced is None
        return
    assert result.enhanced is not None
    torch.testing.assert_close(result.enhanced, after[0, :, :13, :19].abs().mean(0, keepdim=True))
    assert not torch.equal(result.features, result.enhanced)


def test_boxes_stay_float32_under_autocast() -> None:
    detector = build(score_threshold=0.0)
    images, targets = example((64, 96))
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images, targets)
        (detection,) = detector.eval()(images)
    sum(losses.values()).backward()
    assert detection["boxes"].dtype == torch.float32
    assert not torch.equal(detection["boxes"], detection["boxes"].bfloat16().float())


def test_anchors_are_scale_times_stride() -> None:
    batch, _, _ = build().transform([torch.rand(3, 64, 64)])
    levels = [torch.zeros(1, 8, 64 // stride, 64 // stride, dtype=torch.bfloat16) for stride in (4, 8, 16, 32, 64)]
    strides = (4, 8, 16, 32, 64)
    (anchors,) = PyramidAnchors(strides, [(4 * stride,) for stride in strides])(batch, levels)
    assert anchors.dtype == torch.float32
    assert len(anchors) == 3 * (16**2 + 8**2 + 4**2 + 2**2 + 1)
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1).sqrt()
    expected = torch.repeat_interleave(4.0 * torch.tensor([4, 8, 16, 32, 64]), 3 * torch.tensor([256, 64, 16, 4, 1]))
    torch.testing.assert_close(sides, expected)


def test_anchors_stand_a_stride_apart_whatever_the_size_of_the_batch() -> None:
    batch, _, _ = build().transform([torch.rand(3, 832, 800)])  # torchvision's own generator would take 61 for P6
    (anchors,) = PyramidAnchors([64], [(9.0,)], [1.0])(batch, [torch.zeros(1, 8, 13, 13)])
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers.amax(dim=0).tolist() == [12 * 64.0, 12 * 64.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "yolo"}, "detector must be one of retinanet, faster_rcnn"),
        ({"num_classes": 1}, "num_classes counts the background"),
        ({"channels": 30, "reconstruction": "paper"}, "multiple of scale=4"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector(**({"name": "faster_rcnn", "num_classes": 2, "backbone": "mobilenet_v2"} | options))  # type: ignore[arg-type]


Change = Callable[[list[Tensor], list[dict[str, Tensor]]], object]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda images, targets: images.clear(), ValueError, "images is empty"),
        (lambda images, targets: images.insert(0, images[0].numpy()), TypeError, "images[0] must be a floating-point"),
        (lambda images, targets: images.insert(0, (images[0] * 255).byte()), TypeError, "got torch.uint8; convert it"),
        (lambda images, targets: images.insert(0, images[0] * 255), ValueError, "images[0] must be un-normalised"),
        (lambda images, targets: images.insert(0, images[0] - 1), ValueError, "images[0] must be un-normalised"),
        (lambda images, targets: images.insert(0, images[0] * torch.nan), ValueError, "values in [0, 1], got"),
        (lambda images, targets: images.insert(0, images[0][:1]), ValueError, "must be an RGB image [3, H, W]"),
        (lambda images, targets: images.insert(0, images[0][:, :0]), ValueError, "with at least one pixel"),
        (lambda images, targets: targets.pop(), ValueError, "one target per image, got 1 targets for 2 images"),
        (lambda images, targets: targets[1].pop("labels"), ValueError, "targets[1] must have the keys"),
        (lambda images, targets: targets[1].update(boxes=[[0, 0, 1, 1]]), TypeError, "targets[1]['boxes'] must be"),
        (lambda images, targets: targets[1].update(boxes=torch.ones(2, 4).int()), TypeError, "got torch.int32"),
        (lambda images, targets: targets[1].update(boxes=torch.zeros(0)), ValueError, "use torch.zeros(0, 4)"),
        (lambda images, targets: targets[1].update(labels=torch.ones(2)), TypeError, "['labels'] must be an int64"),
        (lambda images, targets: targets[1].update(labels=torch.tensor([1])), ValueError, "one label per box, got 2"),
        (
            lambda images, targets: targets[1].update(labels=torch.tensor([1, 3])),
            ValueError,
            "must lie in 1 to 2, got 3",
        ),
        (
            lambda images, targets: targets[1].update(labels=torch.tensor([0, 1])),
            ValueError,
            "must lie in 1 to 2, got 0",
        ),
        (
            lambda images, targets: targets[1]["boxes"].view(-1).__setitem__(4, torch.nan),
            ValueError,
            "['boxes'][1] must be",
        ),
        (lambda images, targets: targets[1]["boxes"].view(-1).__setitem__(2, 8.0), ValueError, "['boxes'][0] must be"),
    ],
)
def test_bad_input(change: Change, error: type[Exception], message: str) -> None:
    images, targets = example()
    change(images, targets)
    with pytest.raises(error, match=re.escape(message)):
        build(self_reconstruction=False).train()(images, targets)


def test_training_needs_targets() -> None:
    with pytest.raises(ValueError, match="targets are needed in training mode"):
        build().train()(example()[0])
