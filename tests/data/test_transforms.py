"""The training transforms."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from srtod.data import SwarmDataset, training_transforms


def test_flip_is_exact() -> None:
    image, target = SwarmDataset(1)[0]
    flipped, changed = training_transforms(1.0)(image, target)
    assert torch.equal(flipped, image.flip(-1))
    x1, y1, x2, y2 = target["boxes"].as_subclass(torch.Tensor).unbind(1)
    assert torch.equal(changed["boxes"].as_subclass(torch.Tensor), torch.stack([256 - x2, y1, 256 - x1, y2], dim=1))
    assert torch.equal(changed["labels"], target["labels"])
    assert (changed["image_id"], changed["file_name"]) == (target["image_id"], target["file_name"])


def test_no_flip_changes_nothing() -> None:
    image, target = SwarmDataset(1)[0]
    same, unchanged = training_transforms(0.0)(image, target)
    assert torch.equal(same, image)
    assert torch.equal(unchanged["boxes"], target["boxes"])


def test_half_are_flipped() -> None:
    torch.manual_seed(0)
    image, target = SwarmDataset(1)[0]
    transforms = training_transforms()
    flips = sum(not torch.equal(transforms(image, target)[0], image) for _ in range(100))
    assert 30 < flips < 70


def test_boxes_thinner_than_a_pixel_and_images_without_boxes_are_kept() -> None:
    image, target = SwarmDataset(1)[0]
    target["boxes"].data[0] = torch.tensor([10.0, 10.0, 10.25, 14.0])
    assert len(training_transforms(1.0)(image, target)[1]["boxes"]) == len(target["boxes"])
    target["boxes"] = tv_tensors.wrap(target["boxes"][:0], like=target["boxes"])
    target["labels"] = target["labels"][:0]
    assert training_transforms(1.0)(image, target)[1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_not_a_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="horizontal_flip must be a probability"):
        training_transforms(probability)
