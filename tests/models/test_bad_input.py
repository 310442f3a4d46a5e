"""Images of any size, and what is no image: what whole detectors and the parts of self-reconstruction make of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from srtod.models import Detector, ReconstructionHead, SelfReconstruction, build_detector

BACKBONES = {"faster_rcnn": "mobilenet_v2", "fcos": "resnet18"}
"""Self-reconstruction on P2, at stride 4, and on P3, at stride 8."""

BATCHES = {
    "one pixel": [(1, 1)],
    "one row": [(1, 200)],
    "one column": [(7, 1)],
    "less than a cell": [(2, 3)],
    "less than 32": [(30, 18)],
    "not divisible by 4": [(45, 67)],
    "not divisible by 32": [(36, 100)],
    "two sizes": [(64, 96), (50, 33)],
    "very different sizes": [(1, 1), (40, 70), (33, 1)],
}


@pytest.fixture(scope="module", params=list(BACKBONES))
def detector(request: pytest.FixtureRequest) -> Detector:
    """A detector that finds something everywhere."""
    return build(request.param)


def build(name: str = "faster_rcnn", **options: Any) -> Detector:
    torch.manual_seed(0)
    given = {
        "enhancement": "dgfe",
        "channels": 16,
        "norm": "group",
        "min_size": None,
        "score_threshold": 0.0,
        "detections_per_image": 20,
    }
    return build_detector(name, 2, backbone=BACKBONES[name], **(given | options))


def noise(sizes: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_images_of_any_size_train(detector: Detector, sizes: list[tuple[int, int]]) -> None:
    """Each image has one object, which fills it."""
    detector.train().zero_grad()
    targets = [
        {"boxes": torch.tensor([[0.0, 0.0, width, height]]), "labels": torch.tensor([1])} for height, width in sizes
    ]
    losses = detector(noise(sizes), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in detector.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
        else:
            assert "self_reconstruction" not in name


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_detections_lie_in_images_of_any_size(detector: Detector, sizes: list[tuple[int, int]]) -> None:
    with torch.no_grad():
        found = detector.eval()(noise(sizes))
    assert len(found) == len(sizes)
    for detections, (height, width) in zip(found, sizes, strict=True):
        boxes = detections["boxes"]
        assert 0 < len(boxes) <= 20
        assert boxes.isfinite().all()
        assert detections["scores"].isfinite().all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_reconstructions_have_the_sizes_of_their_images(detector: Detector, sizes: list[tuple[int, int]]) -> None:
    images = noise(sizes)
    for parts, image in zip(detector.eval().reconstruct(images), images, strict=True):
        _, height, width = image.shape
        cells = (1, -(-height // parts.stride), -(-width // parts.stride))
        assert torch.equal(parts.image, image)
        assert parts.reconstruction.shape == (3, height, width)
        torch.testing.assert_close(parts.difference, (parts.reconstruction - image).abs().mean(0, keepdim=True))
        assert parts.filter.shape == parts.features.shape == parts.enhanced.shape == cells
        assert parts.enhanced.isfinite().all()


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({"min_size": 800, "max_size": 100}, (1, 300), (1, 100)),
        ({"min_size": 64, "max_size": 100}, (201, 2), (100, 1)),
        ({"max_size": 100}, (1, 400), (1, 100)),
        ({"scale": 0.5}, (1, 7), (1, 3)),
        ({"scale": 0.01}, (40, 40), (1, 1)),
    ],
    ids=str,
)
def test_resizing_leaves_a_strip_at_least_a_pixel(
    options: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    detector = build(**options)
    height, width = size
    target = {"boxes": torch.tensor([[0.0, 0.0, width, height]]), "labels": torch.tensor([1])}
    assert all(loss.isfinite() for loss in detector.train()(noise([size]), [target]).values())
    [parts] = detector.eval().reconstruct(noise([size]))
    assert parts.image.shape == (3, *expected)
    with torch.no_grad():
        [found] = detector(noise([size]))
    assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_floating_point_dtype(detector: Detector, dtype: torch.dtype) -> None:
    image = noise([(33, 40)])[0].to(dtype)
    with torch.no_grad():
        [found], [expected] = detector.eval()([image]), detector([image.float()])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert detector.reconstruct([image])[0].reconstruction.dtype == torch.float32


def test_a_grey_image_made_rgb_as_the_message_says_is_an_image(detector: Detector) -> None:
    for grey in (torch.rand(1, 40, 50), torch.rand(40, 50)):
        with pytest.raises(ValueError, match="it looks grey") as raised:
            detector.eval()([grey])
        [cure] = re.findall(r"image\.expand\((.*)\)", str(raised.value))
        [found] = detector([grey.expand(*map(int, cure.split(", ")))])
        assert len(found["boxes"]) > 0


IMAGE = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([IMAGE, IMAGE[:1]], ValueError, "images[1] must be an RGB image [3, H, W]"),
        ([IMAGE[:1]], ValueError, "got [1, 24, 32]; it looks grey: image.expand(3, -1, -1) makes it RGB"),
        ([IMAGE[0]], ValueError, "got [24, 32]; it looks grey: image.expand(3, -1, -1) makes it RGB"),
        ([torch.rand(4, 24, 32)], ValueError, "got [4, 24, 32]; it looks like RGBA: image[:3] drops the transparency"),
        ([IMAGE.permute(1, 2, 0)], ValueError, "got [24, 32, 3]; its channels are last: image.permute(2, 0, 1) puts"),
        ([IMAGE[None]], ValueError, "got [1, 3, 24, 32]; it looks like a batch: list(image) has its images"),
        ([IMAGE[:2]], ValueError, "got [2, 24, 32]"),
        ([IMAGE[:, :0]], ValueError, "with at least one pixel, got [3, 0, 32]"),
        ([IMAGE[..., :0]], ValueError, "with at least one pixel, got [3, 24, 0]"),
        ([(255 * IMAGE).byte()], TypeError, "got torch.uint8; convert it with to_dtype(image, torch.float32, scale"),
        ([IMAGE > 0.5], TypeError, "got torch.bool; convert it"),
        ([IMAGE.numpy()], TypeError, "got ndarray; convert it with to_image and to_dtype("),
        (["a.png"], TypeError, "images[0] must be a floating-point tensor with values in [0, 1], got str"),
        ([255 * IMAGE], ValueError, "images[0] must be un-normalised, with values in [0, 1], got values from"),
        ([IMAGE - 0.5], ValueError, "divide 8-bit values by 255 and leave the normalisation to the detector"),
        ([IMAGE.where(IMAGE < 0.9, torch.nan)], ValueError, "with values in [0, 1], got NaN or infinity"),
        ([IMAGE.where(IMAGE < 0.9, -torch.inf)], ValueError, "with values in [0, 1], got NaN or infinity"),
        ([], ValueError, "images is empty; give at least one image [3, H, W]"),
        (IMAGE, ValueError, "images must be a list of images [3, H, W], got one [3, 24, 32]; pass [image]"),
        (None, TypeError, "images must be a list of images [3, H, W], got NoneType"),
        (iter([IMAGE]), TypeError, "images must be a list of images [3, H, W], got list_iterator"),
    ],
)
def test_what_is_no_image_is_refused(detector: Detector, images: Any, error: type[Exception], message: str) -> None:
    detector.eval()
    for call in (detector, detector.reconstruct):
        with pytest.raises(error, match=re.escape(message)):
            call(images)
    with pytest.raises(error, match=re.escape(message)):
        detector.train()(images, [])


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 2), (45, 67)])
def test_the_plug_alone_takes_images_of_any_size(stride: int, size: tuple[int, int]) -> None:
    plug = SelfReconstruction(16, scale=stride, enhancement="dgfe")
    height, width = size
    features = torch.rand(2, 16, -(-height // stride), -(-width // stride), requires_grad=True)
    image = torch.rand(2, 3, height, width)
    sizes = [size, (1, 1)]
    enhanced, reconstruction = plug(features, image, sizes)
    (enhanced.sum() + reconstruction.loss).backward()
    assert enhanced.shape == features.shape
    assert reconstruction.difference.shape == (2, 1, height, width)
    assert reconstruction.reconstruction.shape == image.shape
    assert features.grad is not None
    assert features.grad.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(plug.enhance(features, image, sizes), enhanced)


P2, BATCH = torch.rand(2, 16, 10, 13), torch.rand(2, 3, 40, 52)


@pytest.mark.parametrize(
    ("features", "image", "sizes", "message"),
    [
        (P2, BATCH[:, :, :36], None, "a [36, 52] image at stride 4 must have the size [9, 13], got [10, 13]"),
        (P2[..., :12], BATCH, None, "must have the size [10, 13], got [10, 12]; set scale to the stride"),
        (P2[:1], BATCH, None, "with the same N, got [1, 16, 10, 13] and [2, 3, 40, 52]"),
        (P2[0], BATCH[0], None, "features [N, C, h, w] and image [N, 3, H, W]"),
        (P2, BATCH[:, :1], None, "image [N, 3, H, W] with the same N, got [2, 16, 10, 13] and [2, 1, 40, 52]"),
        (P2[:, :8], BATCH, None, "expects features [N, 16, h, w], got [2, 8, 10, 13]; build it with"),
        (P2, 255 * BATCH, None, "image must be un-normalised, with values in [0, 1]"),
        (P2, BATCH.where(BATCH < 0.9, torch.nan), None, "with values in [0, 1], got NaN or infinity"),
        (P2, BATCH[:, :1], None, "[2, 1, 40, 52]; image.expand(-1, 3, -1, -1) makes grey RGB"),
        (P2, BATCH, [(40, 52), (41, 52)], "image_sizes[1] must lie in the batch's (40, 52), got (41, 52)"),
        (P2, BATCH, [(40, 0), (40, 52)], "image_sizes[0] must lie in the batch's (40, 52), got (40, 0)"),
        (P2, BATCH, [(40, 52)], "image_sizes must have one (height, width) per image, got 1 for 2"),
    ],
)
def test_the_plug_alone_refuses_what_does_not_fit(
    features: Tensor, image: Tensor, sizes: list[tuple[int, int]] | None, message: str
) -> None:
    plug = SelfReconstruction(16, enhancement="dgfe")
    for call in (plug, plug.enhance):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(features, image, sizes)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (3, 2)])
def test_the_head_alone_takes_features_of_any_size(height: int, width: int) -> None:
    head, features = ReconstructionHead(16), torch.rand(2, 16, height, width)
    image = head(features)
    assert image.shape == (2, 3, 4 * height, 4 * width)
    logits = head.predict(features, torch.rand(2, 3, 4 * height - 3, 4 * width - 1))
    assert logits.shape == (2, 3, 4 * height - 3, 4 * width - 1)
    torch.testing.assert_close(logits.sigmoid(), image[:, :, : 4 * height - 3, : 4 * width - 1])


@pytest.mark.parametrize("shape", [(2, 8, 10, 13), (16, 10, 13), (16,)])
def test_the_head_alone_refuses_features_that_do_not_fit(shape: tuple[int, ...]) -> None:
    head, features = ReconstructionHead(16), torch.rand(shape)
    for call in (head, lambda features: head.predict(features, BATCH)):
        with pytest.raises(ValueError, match=re.escape(f"expects features [N, 16, h, w], got {list(shape)}; build it")):
            call(features)
