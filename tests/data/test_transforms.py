"""The training transforms: objects are painted in colours of their own and looked for again where the boxes say."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from srtod.data import Sample, SwarmDataset, Target, training_transforms
from srtod.data.transforms import CopyPaste, ObjectCrop, RandomScale
from srtod.data.transforms.copy_paste import MARGIN

BACKGROUND, REGION = 0.5, 0.9
Box = tuple[int, int, int, int]
quick = settings(max_examples=60, deadline=None, derandomize=True)


def painted(height: int, width: int, boxes: list[Box], ignore: list[Box] | None = None) -> Sample:
    """A grey image; the k-th object is filled with the red value k/64 and labelled k, ignore regions are light."""
    image = torch.full((3, height, width), BACKGROUND)
    for region in ignore or []:
        fill(image, region, REGION)
    for label, box in enumerate(boxes, start=1):
        fill(image, box, label / 64)
    target: Target = {
        "boxes": bounding_boxes(boxes, (height, width)),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": 7,
        "file_name": "a.png",
    }
    if ignore is not None:
        target["ignore"] = bounding_boxes(ignore, (height, width))
    return tv_tensors.Image(image), target


def bounding_boxes(boxes: list[Box], canvas_size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=canvas_size)


def fill(image: Tensor, box: Box, value: float) -> None:
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = value


def found(image: Tensor, label: int) -> list[int] | None:
    """The extent (x1, y1, x2, y2) of an object's colour in an image, None where it is nowhere."""
    rows, columns = (image[0] == label / 64).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def check_consistency(image: Tensor, target: Target) -> None:
    height, width = image.shape[-2:]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert len(target["boxes"]) == len(target["labels"])
    for boxes in (target["boxes"], *([target["ignore"]] if "ignore" in target else [])):
        assert isinstance(boxes, tv_tensors.BoundingBoxes)
        assert boxes.dtype == torch.float32
        assert boxes.canvas_size == (height, width)
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert (target["image_id"], target["file_name"]) == (7, "a.png")


@st.composite
def scenes(draw: Any) -> Sample:
    """Images of up to 80x80 px with up to 6 objects of 1-20 px and up to 2 ignore regions, none of which overlap."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    placed: list[Box] = []
    for _ in range(draw(st.integers(0, 8))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        box = (x1, y1, min(width, x1 + draw(st.integers(1, 20))), min(height, y1 + draw(st.integers(1, 20))))
        if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in placed):
            placed.append(box)
    regions = draw(st.integers(0, min(2, len(placed))))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return painted(height, width, placed[regions:], placed[:regions])


@quick
@given(scenes(), st.sampled_from([0.0, 0.5, 1.0]))
def test_flip_finds_every_object_again(scene: Sample, probability: float) -> None:
    image, target = training_transforms(probability)(*scene)
    check_consistency(image, target)
    assert [found(image, label) for label in target["labels"].tolist()] == target["boxes"].tolist()


@pytest.mark.parametrize(("probability", "flips"), [(0.0, range(1)), (0.5, range(30, 71)), (1.0, range(100, 101))])
def test_how_often_it_flips(probability: float, flips: range) -> None:
    torch.manual_seed(0)
    image, target = SwarmDataset(1, (128, 128))[0]
    transforms = training_transforms(probability)
    assert sum(torch.equal(transforms(image, target)[0], image.flip(-1)) for _ in range(100)) in flips


@quick
@given(scenes(), st.integers(1, 3))
def test_whole_factors_scale_boxes_exactly(scene: Sample, factor: int) -> None:
    image, target = RandomScale((factor, factor))(*scene)
    check_consistency(image, target)
    assert torch.equal(target["boxes"].as_subclass(Tensor), scene[1]["boxes"].as_subclass(Tensor) * factor)
    assert torch.equal(target["ignore"].as_subclass(Tensor), scene[1]["ignore"].as_subclass(Tensor) * factor)


@quick
@given(scenes(), st.floats(0.3, 3.0))
def test_boxes_follow_the_true_factor_of_each_axis(scene: Sample, factor: float) -> None:
    image, target = RandomScale((factor, factor))(*scene)
    height, width = (max(1, round(side * factor)) for side in scene[0].shape[-2:])
    assert image.shape == (3, height, width)
    true = torch.tensor([width / scene[0].shape[-1], height / scene[0].shape[-2]]).repeat(2)
    torch.testing.assert_close(target["boxes"].as_subclass(Tensor), scene[1]["boxes"].as_subclass(Tensor) * true)
    check_consistency(image, target)


def test_a_resized_object_lies_in_its_box() -> None:
    image, target = RandomScale((1.7, 1.7))(*painted(50, 70, [(20, 10, 32, 22)]))
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    share = (BACKGROUND - image[0]) / (BACKGROUND - 1 / 64)  # of the object in each pixel
    columns, rows = torch.arange(image.shape[-1]) + 0.5, torch.arange(image.shape[-2]) + 0.5
    assert float(share.sum()) == pytest.approx((x2 - x1) * (y2 - y1), rel=0.01)
    assert float((share.sum(dim=0) * columns).sum() / share.sum()) == pytest.approx((x1 + x2) / 2, abs=0.02)
    assert float((share.sum(dim=1) * rows).sum() / share.sum()) == pytest.approx((y1 + y2) / 2, abs=0.02)


def test_scales_are_drawn_from_the_whole_range() -> None:
    torch.manual_seed(0)
    sample = painted(100, 100, [])
    sides = [RandomScale((0.5, 2.0))(*sample)[0].shape[-1] for _ in range(200)]
    assert 50 <= min(sides) < 60
    assert 190 < max(sides) <= 200


@quick
@given(scenes(), st.integers(1, 60))
def test_crop_keeps_clips_or_ignores_every_object(scene: Sample, side: int) -> None:
    before, was = scene
    image, target = ObjectCrop(side)(before, was)
    check_consistency(image, target)
    assert image.shape[-2:] == tuple(min(side, length) for length in before.shape[-2:])
    boxes = dict(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True))
    regions = target["ignore"].tolist()
    for label, (x1, y1, x2, y2) in zip(was["labels"].tolist(), was["boxes"].tolist(), strict=True):
        visible = int((image[0] == label / 64).sum())
        if 2 * visible >= (x2 - x1) * (y2 - y1):
            assert boxes.pop(label) == found(image, label)
        elif visible:
            regions.remove([float(value) for value in found(image, label) or []])
    assert not boxes
    assert (image[0] == REGION).sum() == sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in regions)


def test_crop_places_the_window_around_tiny_objects_first() -> None:
    torch.manual_seed(0)
    sample = painted(400, 400, [(10, 10, 12, 12), (300, 300, 332, 332)])  # 2 px and 32 px, never in one window
    crop = ObjectCrop(64, around_object=1.0)
    labels = [crop(*sample)[1]["labels"].tolist() for _ in range(300)]
    assert all(len(seen) == 1 for seen in labels)
    assert 0.9 < sum(seen == [1] for seen in labels) / 300 < 0.98  # 16 of 17


def test_a_crop_around_no_object_is_anywhere() -> None:
    torch.manual_seed(0)
    sample = painted(400, 400, [(10, 10, 12, 12)])
    crop = ObjectCrop(64, around_object=0.0)
    assert sum(len(crop(*sample)[1]["labels"]) for _ in range(300)) < 15


@pytest.mark.parametrize("shape", [(40, 400), (400, 40)])
def test_an_object_larger_than_the_window_fills_it(shape: tuple[int, int]) -> None:
    box = (0, 0, shape[1], shape[0])
    image, target = ObjectCrop(64, around_object=1.0)(*painted(*shape, [box]))
    assert target["boxes"].tolist() == []  # less than half of it is seen
    assert target["ignore"].tolist() == [[0, 0, image.shape[-1], image.shape[-2]]]


def test_crop_counts_an_object_seen_by_half_as_an_object() -> None:
    crop = ObjectCrop(20)
    crop._corner = lambda height, width, boxes: (10, 0)  # type: ignore[method-assign]
    _, target = crop(*painted(20, 60, [(6, 0, 14, 4), (5, 8, 14, 12), (29, 0, 31, 4)]))
    assert target["labels"].tolist() == [1, 3]
    assert target["boxes"].tolist() == [[0, 0, 4, 4], [19, 0, 20, 4]]
    assert target["ignore"].tolist() == [[0, 8, 4, 12]]


def test_a_sliver_thinner_than_a_pixel_survives() -> None:
    image, target = painted(100, 100, [(50, 50, 51, 51)])
    target["boxes"].data[0] = torch.tensor([50.0, 50.0, 50.25, 54.0])
    transforms = training_transforms(1.0, scale_jitter=(1.0, 1.0), crop=40)
    for _ in range(20):
        for x1, _, x2, _ in transforms(image, target)[1]["boxes"].tolist():
            assert x2 - x1 == 0.25


@quick
@given(scenes(), st.integers(1, 6))
def test_copies_are_exact_and_touch_nothing(scene: Sample, copies: int) -> None:
    before, was = scene
    kept = before.clone()
    image, target = CopyPaste(copies)(before, was)
    assert torch.equal(before, kept)
    check_consistency(image, target)
    count = len(was["boxes"])
    assert torch.equal(target["boxes"][:count], was["boxes"])
    assert torch.equal(target["ignore"], was["ignore"])
    assert len(target["boxes"]) <= count + copies
    cells = torch.zeros(image.shape[-2:], dtype=torch.long)
    for box in [*target["boxes"].tolist(), *target["ignore"].tolist()]:
        fill(cells[None], tuple(map(int, box)), 1)  # type: ignore[arg-type]
    area = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in [*target["boxes"].tolist(), *target["ignore"].tolist()])
    assert cells.sum() == area  # none overlaps another
    for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
        x1, y1, x2, y2 = map(int, box)
        assert (image[:, y1:y2, x1:x2] == label / 64).all()


def copied(sample: Sample, copies: int = 8) -> tuple[Tensor, Target]:
    """The image and the target after copies were made: drawn again where the number of copies came out as 0."""
    while True:
        image, target = CopyPaste(copies)(*sample)
        if len(target["boxes"]) > len(sample[1]["boxes"]):
            return image, target


def test_a_copy_is_the_object_mirrored_or_not_and_fades_out_around_it() -> None:
    torch.manual_seed(0)
    image, target = painted(64, 64, [(20, 20, 24, 23)])
    image[:, 20:23, 20:24] = torch.rand(3, 3, 4)
    image[:, 17:20, 17:27] = 1.0  # surroundings above the object: bright
    mirrored = set()
    for _ in range(30):
        after, changed = copied((image, target), copies=1)
        x1, y1, x2, y2 = map(int, changed["boxes"][1].tolist())
        straight = torch.equal(after[:, y1:y2, x1:x2], image[:, 20:23, 20:24])
        assert straight or torch.equal(after[:, y1:y2, x1:x2], image[:, 20:23, 20:24].flip(-1))
        mirrored.add(not straight)
        if y1 > 30:
            above = after[0, y1 - 4 : y1, x1].tolist()
            assert above == pytest.approx([0.5, 0.625, 0.75, 0.875])
    assert mirrored == {False, True}


def test_a_copy_goes_where_it_looks_alike() -> None:
    torch.manual_seed(0)
    image, target = painted(64, 64, [(20, 20, 24, 23)])
    image[:, :, 32:] = 1.0
    for _ in range(10):
        _, changed = copied((image, target))
        assert (changed["boxes"][:, 2] + MARGIN <= 32).float().mean() > 0.9


def test_copies_of_boxes_between_pixels_are_moved_by_whole_pixels() -> None:
    torch.manual_seed(0)
    image, target = painted(64, 64, [(20, 20, 24, 23)])
    target["boxes"].data[0] = torch.tensor([20.25, 20.5, 23.5, 22.75])
    for _ in range(10):
        x1, y1, x2, y2 = copied((image, target))[1]["boxes"][1].tolist()
        assert (x2 - x1, y2 - y1) == (3.25, 2.25)
        assert x1 % 1 in (0.25, 0.5)  # 0.5 is the mirrored right edge
        assert y1 % 1 == 0.5


def test_large_and_crowded_objects_are_not_copied() -> None:
    torch.manual_seed(0)
    large, pair = (5, 5, 38, 9), [(50, 50, 54, 54), (55, 50, 59, 54)]  # of the pair, each is in the other's margin
    at_border, free = (0, 60, 4, 64), (80, 10, 84, 14)
    sample = painted(100, 100, [large, *pair, at_border, free], [])
    assert {label for _ in range(20) for label in copied(sample)[1]["labels"][5:].tolist()} == {5}
    crowded = painted(100, 100, [large, *pair, at_border], [])
    assert all(len(CopyPaste(8)(*crowded)[1]["boxes"]) == 4 for _ in range(20))


def test_without_a_free_place_nothing_is_copied() -> None:
    torch.manual_seed(0)
    around = [(0, 0, 5, 40), (17, 0, 40, 40), (5, 0, 17, 5), (5, 17, 17, 40)]
    sample = painted(40, 40, [(10, 10, 12, 12)], around)
    for _ in range(20):
        image, target = CopyPaste(4)(*sample)
        assert len(target["boxes"]) == 1
        assert torch.equal(image, sample[0])


EVERYTHING: dict[str, Any] = {"scale_jitter": (0.5, 2.0), "crop": 48, "photometric": 1.0, "copy_paste": 3}


@quick
@given(scenes())
def test_all_together(scene: Sample) -> None:
    image, target = training_transforms(**EVERYTHING)(*scene)
    check_consistency(image, target)
    assert max(image.shape[-2:]) <= 48


def test_photometric_distortion_stays_in_range_and_leaves_boxes() -> None:
    torch.manual_seed(0)
    image, target = SwarmDataset(1, (128, 128))[0]
    transforms = training_transforms(0.0, photometric=1.0)
    outputs = [transforms(image, target) for _ in range(20)]
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture, _ in outputs)
    assert all(torch.equal(changed["boxes"], target["boxes"]) for _, changed in outputs)
    assert sum(torch.equal(picture, image) for picture, _ in outputs) < 5
    half = training_transforms(0.0, photometric=0.5)
    assert 5 < sum(torch.equal(half(image, target)[0], image) for _ in range(30)) < 27


def test_the_seed_alone_decides() -> None:
    sample = SwarmDataset(1, (128, 128))[0]
    transforms = training_transforms(**EVERYTHING)

    def draw(seed: int) -> Sample:
        torch.manual_seed(seed)
        return transforms(*sample)

    (first, boxes), (again, same), (other, _) = draw(3), draw(3), draw(4)
    assert torch.equal(first, again)
    assert torch.equal(boxes["boxes"], same["boxes"])
    assert first.shape != other.shape or not torch.equal(first, other)


def test_pickles_for_the_loaders_processes() -> None:
    transforms = pickle.loads(pickle.dumps(training_transforms(**EVERYTHING)))
    sample = SwarmDataset(1, (128, 128))[0]
    torch.manual_seed(0)
    image, _ = transforms(*sample)
    torch.manual_seed(0)
    assert torch.equal(image, training_transforms(**EVERYTHING)(*sample)[0])


def test_only_what_is_asked_for_is_there() -> None:
    def names(**options: Any) -> list[str]:
        steps: v2.Compose = training_transforms(**options)
        return [type(step).__name__ for step in steps.transforms]

    assert names() == ["RandomHorizontalFlip"]
    assert names(**EVERYTHING) == ["RandomScale", "ObjectCrop", "RandomHorizontalFlip", "CopyPaste", "RandomApply"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": -0.1}, "horizontal_flip must be a probability"),
        ({"horizontal_flip": float("nan")}, "horizontal_flip must be a probability"),
        ({"photometric": 1.5}, "photometric must be a probability"),
        ({"scale_jitter": (2.0, 0.5)}, "scale_jitter must be two positive factors"),
        ({"scale_jitter": (0.0, 1.0)}, "scale_jitter must be two positive factors"),
        ({"scale_jitter": (1.0,)}, "scale_jitter must be two positive factors"),
        ({"crop": 0}, "crop must be at least 1 pixel"),
        ({"copy_paste": -1}, "copy_paste must be from 0 to 100, got -1"),
        ({"copy_paste": 99999}, "copy_paste must be from 0 to 100, got 99999"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_transforms(**options)
