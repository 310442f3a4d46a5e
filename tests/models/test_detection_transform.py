"""The batch: sizes, padding, normalised and un-normalised form."""

import pytest
import torch
import torch.nn.functional as F

from srtod.models import DetectionTransform

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.mark.parametrize("options", [{"min_size": 48, "max_size": 100}, {"min_size": None, "scale": 2.0}])
def test_both_batches(options: dict[str, float]) -> None:
    images = [torch.rand(3, 30, 45), torch.rand(3, 40, 33)]
    batch, pixels, targets = DetectionTransform(**options)(images)  # type: ignore[arg-type]
    assert targets is None
    assert pixels.shape == batch.tensors.shape
    assert pixels.shape[2] % 32 == pixels.shape[3] % 32 == 0
    for index, (image, (height, width)) in enumerate(zip(images, batch.image_sizes, strict=True)):
        resized = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(pixels[index, :, :height, :width], resized, atol=1e-5, rtol=0)
        normalised = (resized - MEAN) / STD
        torch.testing.assert_close(batch.tensors[index, :, :height, :width], normalised, atol=1e-4, rtol=0)
        for padded in (pixels[index], batch.tensors[index]):
            assert not padded[:, height:].any()
            assert not padded[:, :, width:].any()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"min_size": 800}, (800, 1200)),
        ({"min_size": 800, "max_size": 1050}, (700, 1050)),
        ({"min_size": None}, (100, 150)),
        ({"min_size": None, "scale": 2.0}, (200, 300)),
        ({"min_size": None, "scale": 2.0, "max_size": 180}, (120, 180)),
        ({"min_size": None, "max_size": 75}, (50, 75)),
        ({"min_size": None, "scale": 20.0, "max_size": None}, (2000, 3000)),
    ],
)
def test_sizes(options: dict[str, float | None], size: tuple[int, int]) -> None:
    transform = DetectionTransform(**options).eval()  # type: ignore[arg-type]
    boxes = torch.tensor([[15.0, 10.0, 30.0, 20.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    image, resized = transform.resize(torch.rand(3, 100, 150), dict(target))
    assert tuple(image.shape[-2:]) == size
    assert resized is not None
    torch.testing.assert_close(resized["boxes"], boxes * (size[0] / 100))
    assert torch.equal(target["boxes"], torch.tensor([[15.0, 10.0, 30.0, 20.0]]))


def test_several_sizes_are_drawn_in_training() -> None:
    transform = DetectionTransform([32, 64])
    heights = {transform([torch.rand(3, 40, 40)])[0].image_sizes[0][0] for _ in range(20)}
    assert heights == {32, 64}
    assert transform.eval()([torch.rand(3, 40, 40)])[0].image_sizes[0][0] == 64


def test_targets_are_not_modified() -> None:
    target = {"boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "labels": torch.tensor([1])}
    _, _, targets = DetectionTransform(None, scale=2.0)([torch.rand(3, 10, 10)], [target])
    assert targets is not None
    assert targets[0]["boxes"].tolist() == [[2.0, 4.0, 6.0, 8.0]]
    assert target["boxes"].tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("options", [{"min_size": 20}, {"min_size": None, "scale": 0.5}])
def test_boxes_that_lose_their_extent_are_dropped_with_their_labels(options: dict[str, float]) -> None:
    """By rounding, or below a thousandth of a pixel; everything larger stays, and what was given is left alone."""
    between = torch.nextafter(torch.tensor(30.0), torch.tensor(40.0)).item()
    boxes = torch.tensor([[1, 2, 3, 4], [30, 10, between, 20], [10, 5, 20, 5.0019], [10, 5, 20, 5.003], [0, 0, 40, 30]])
    target = {"boxes": boxes, "labels": torch.arange(1, 6), "ignore": torch.tensor([[30.0, 10.0, between, 20.0]])}
    _, _, targets = DetectionTransform(**options)([torch.rand(3, 40, 40)], [target])  # type: ignore[arg-type]
    assert targets is not None
    assert targets[0]["labels"].tolist() == [1, 4, 5]
    torch.testing.assert_close(targets[0]["boxes"], boxes[[0, 3, 4]] / 2)
    assert len(targets[0]["ignore"]) == 1
    assert len(target["boxes"]) == len(target["labels"]) == 5


@pytest.mark.parametrize("options", [{"min_size": 80}, {"min_size": None, "scale": 2.0}])
def test_ignore_regions_are_resized(options: dict[str, float]) -> None:
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "ignore": torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 5.0, 5.0]]),
    }
    _, _, targets = DetectionTransform(**options)([torch.rand(3, 40, 60)], [target])  # type: ignore[arg-type]
    assert targets is not None
    assert targets[0]["ignore"].tolist() == [[2.0, 4.0, 60.0, 80.0], [10.0, 10.0, 10.0, 10.0]]
    assert target["ignore"][0].tolist() == [1.0, 2.0, 30.0, 40.0]


@pytest.mark.parametrize("options", [{"min_size": 0}, {"max_size": -1}, {"min_size": None, "scale": 0.0}])
def test_sizes_must_be_positive(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DetectionTransform(**options)


def test_scale_needs_native_size() -> None:
    with pytest.raises(ValueError, match="use it with min_size=None"):
        DetectionTransform(800, scale=2.0)
