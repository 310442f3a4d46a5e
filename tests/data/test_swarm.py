"""The generated swarm set: the same everywhere, as promised in sizes and numbers, and drawn where its boxes say."""

from __future__ import annotations

import pickle
import random
import time
import zlib

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert, box_iou

from srtod.data import SwarmDataset, collate, read_coco
from srtod.data import swarm as swarm_module


def checksum(data: SwarmDataset, index: int) -> int:
    """Of an image's grey levels and boxes."""
    image, target = data[index]
    return zlib.crc32((image * 255).round().to(torch.uint8).numpy().tobytes() + target["boxes"].numpy().tobytes())


def test_samples() -> None:
    data = SwarmDataset(4, size=(160, 224))
    image, target = data[2]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, image.shape, image.is_contiguous()) == (torch.float32, (3, 160, 224), True)
    assert 0 <= image.min() < image.max() <= 1
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert (target["boxes"].dtype, target["boxes"].canvas_size) == (torch.float32, (160, 224))
    assert target["labels"].tolist() == [1] * len(target["boxes"])
    assert (target["image_id"], target["file_name"]) == (3, "swarm_0_00002.png")
    assert (data.class_names, data.category_ids) == (["drone"], [1])


def test_same_on_every_machine() -> None:
    """Recorded once: a change here means that every published swarm number changes."""
    data = SwarmDataset(4)
    assert [checksum(data, index) for index in range(4)] == [572863841, 3649142119, 3209229644, 1129752244]


def test_the_hard_kind_is_frozen_too_and_has_small_drones_and_more_birds() -> None:
    data = SwarmDataset(4, seed=1, kind="hard")
    assert [checksum(data, index) for index in range(4)] == [2265850280, 1349168980, 236009816, 2979639628]
    sides = [entry["area"] ** 0.5 for entry in SwarmDataset(30, kind="hard").ground_truth["annotations"]]
    assert 3 - 1e-6 <= min(sides) < 3.5
    assert 7.5 < max(sides) <= 8 + 1e-6
    with pytest.raises(ValueError, match="kind must be one of usual, hard, got 'easy'"):
        SwarmDataset(4, kind="easy")


def test_same_in_any_order_process_and_length() -> None:
    data = SwarmDataset(20, seed=3)
    order = list(range(20))
    random.Random(0).shuffle(order)
    sums = {index: checksum(data, index) for index in order}
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    torch.manual_seed(1)
    copy = pickle.loads(pickle.dumps(SwarmDataset(50, seed=3)))
    assert [checksum(copy, index) for index in range(20)] == [sums[index] for index in range(20)]


def test_same_in_worker_processes() -> None:
    data = SwarmDataset(4)
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="fork")
    images = [image for batch, _ in loader for image in batch]
    assert all(torch.equal(image, data[index][0]) for index, image in enumerate(images))


def test_seeds_and_images_differ() -> None:
    sums = [checksum(SwarmDataset(10, seed=seed), index) for seed in (0, 1, 2**32 - 1) for index in range(10)]
    assert len(set(sums)) == len(sums)


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (200, 480)])
def test_numbers_sizes_and_overlap(size: tuple[int, int]) -> None:
    data = SwarmDataset(60, size=size)
    boxes_of: dict[int, list[list[float]]] = {image["id"]: [] for image in data.ground_truth["images"]}
    for entry in data.ground_truth["annotations"]:
        boxes_of[entry["image_id"]].append(entry["bbox"])
    counts, sides = [], []
    for image_boxes in boxes_of.values():
        boxes = box_convert(torch.tensor(image_boxes, dtype=torch.float64), "xywh", "xyxy")
        counts.append(len(boxes))
        sides += box_area(boxes).sqrt().tolist()
        assert (boxes >= -1e-9).all()
        assert (boxes <= torch.tensor([size[1], size[0]] * 2) + 1e-9).all()
        overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
        assert overlaps.max() < 0.5
        assert (overlaps > 0.1).float().mean() < 0.01
    assert min(counts) >= 10
    assert max(counts) <= 60
    assert max(counts) - min(counts) > 30
    assert min(sides) >= 3 - 1e-6
    assert max(sides) <= 16 + 1e-6
    assert np.histogram(sides, [3, 6, 9, 12, 16])[0].min() > 0.1 * len(sides)


def test_ground_truth_is_coco_and_agrees_with_the_samples() -> None:
    data = SwarmDataset(5, seed=4)
    truth = read_coco(data.ground_truth)
    assert [entry["id"] for entry in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    for index in range(5):
        _, target = data[index]
        entries = [entry for entry in truth["annotations"] if entry["image_id"] == target["image_id"]]
        expected = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in entries)]
        torch.testing.assert_close(target["boxes"].as_subclass(torch.Tensor), torch.tensor(expected))
        assert all(entry["area"] == pytest.approx(entry["bbox"][2] * entry["bbox"][3]) for entry in entries)
        assert truth["images"][index]["file_name"] == target["file_name"]


def test_boxes_are_tight() -> None:
    """Drawn alone on black by a perfect camera, each drone fills its box to within a pixel and does not leave it."""
    size = (256, 256)
    drones, boxes = swarm_module._swarm(np.random.RandomState(0), size)
    for drone, (x1, y1, x2, y2) in zip(drones, boxes.tolist(), strict=True):
        picture = np.zeros((*size, 3), dtype=np.float32)
        swarm_module.paint(np.random.RandomState(0), picture, drone)
        rows, columns = np.nonzero(picture.max(axis=2))
        assert x1 - 1 < columns.min() + 0.5 <= x1 + 1.5
        assert y1 - 1 < rows.min() + 0.5 <= y1 + 1.5
        assert x2 - 1.5 <= columns.max() + 0.5 < x2 + 1
        assert y2 - 1.5 <= rows.max() + 0.5 < y2 + 1


def test_drones_can_be_seen() -> None:
    """Most drones differ from the ring around their box."""
    data = SwarmDataset(20)
    contrasts = []
    for index in range(20):
        image, target = data[index]
        grey = image.as_subclass(torch.Tensor).mean(dim=0)
        for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
            inside = grey[y1:y2, x1:x2]
            ring = grey[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3]
            contrasts.append(float((inside - ring.median()).abs().max()))
    assert np.quantile(contrasts, 0.1) > 0.08


def test_fast() -> None:
    data = SwarmDataset(20)
    times = []
    for index in range(20):
        start = time.process_time()  # of the processor, whatever else runs on it
        data[index]
        times.append(time.process_time() - start)
    assert np.median(times) < 0.06  # 12 ms on one core


def test_transforms_and_index_errors() -> None:
    data = SwarmDataset(3, transforms=lambda image, target: (image * 0, target))
    assert data[0][0].max() == 0
    assert len(list(data)) == 3  # type: ignore[call-overload]
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"index {index} is outside a set of 3 images"):
            data[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"size": (64, 256)}, r"size must be \(height, width\) of at least 128 pixels each, got \(64, 256\)"),
        ({"seed": -1}, "seed must be in 0"),
        ({"seed": 2**32}, "seed must be in 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwarmDataset(**arguments)  # type: ignore[arg-type]
