"""What every data set here is: a map-style data set of `(image, target)` samples with COCO ground truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

__all__ = ["DetectionDataset", "DetectionSubset", "Sample", "SingleClass", "Target", "collate"]

Target: TypeAlias = dict[str, Any]
Sample: TypeAlias = tuple[Tensor, Target]


class DetectionDataset(Dataset[Sample], ABC):
    """Images with boxes, in torchvision's detection convention: labels are 1..K, 0 is the background.

    A sample is `(image, target)`: the image a float32 `tv_tensors.Image` [3, H, W] in [0, 1]; the target a dict with

    - `boxes`: float32 `tv_tensors.BoundingBoxes` [M, 4], (x1, y1, x2, y2) in pixels,
    - `labels`: int64 [M] in 1..K,
    - `ignore`: float32 `tv_tensors.BoundingBoxes` [R, 4], (x1, y1, x2, y2) in pixels: regions where nothing counts, for
      what is there was not annotated one by one; R may be 0,
    - `image_id`: int, the image's id in the ground truth,
    - `file_name`: str.

    Attributes:
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
        transforms: called as `transforms(image, target)` on every sample, if given.
    """

    class_names: list[str]
    category_ids: list[int]
    transforms: Callable[[Tensor, Target], Sample] | None

    @property
    @abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """The set as a COCO dict, for `srtod.evaluation.evaluate_detections`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def _sample(
        self,
        image: Tensor,  # float32 [3, H, W] in [0, 1]
        boxes: np.ndarray,  # float [M, 4], (x1, y1, x2, y2) in pixels
        labels: np.ndarray,  # int [M]
        image_id: int,
        file_name: str,
        ignore: np.ndarray,  # float [R, 4], (x1, y1, x2, y2) in pixels
    ) -> Sample:
        """The sample of one image, transformed."""
        canvas_size = (image.shape[-2], image.shape[-1])
        target = {
            "boxes": _bounding_boxes(boxes, canvas_size),
            "labels": torch.as_tensor(labels, dtype=torch.int64),
            "ignore": _bounding_boxes(ignore, canvas_size),
            "image_id": image_id,
            "file_name": file_name,
        }
        image = tv_tensors.Image(image)
        return (image, target) if self.transforms is None else self.transforms(image, target)


class DetectionSubset(DetectionDataset):
    """Some of the images of a data set, evenly spaced in its order.

    Args:
        dataset: the data set, whose transforms stay.
        num_images: number of images.

    Raises:
        ValueError: if the data set has fewer images.
    """

    def __init__(self, dataset: DetectionDataset, num_images: int) -> None:
        if num_images > len(dataset):
            raise ValueError(f"the set has {len(dataset)} images, {num_images} cannot be taken of them")
        self.dataset = dataset
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids
        self.transforms = dataset.transforms
        self._positions = [number * len(dataset) // num_images for number in range(num_images)]

    @cached_property
    def ground_truth(self) -> dict[str, Any]:
        whole = self.dataset.ground_truth
        images = [whole["images"][position] for position in self._positions]
        ids = {image["id"] for image in images}
        annotations = [entry for entry in whole["annotations"] if entry["image_id"] in ids]
        return {**whole, "images": images, "annotations": annotations}

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self._positions[index]]


class SingleClass(DetectionDataset):
    """A data set whose objects are all of one class, `object`.

    An ignore region that is annotated for several classes is there once.

    Args:
        dataset: the data set, whose transforms stay.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        self.class_names, self.category_ids = ["object"], [1]
        self.transforms = dataset.transforms

    @cached_property
    def ground_truth(self) -> dict[str, Any]:
        whole = self.dataset.ground_truth
        regions: set[tuple[Any, ...]] = set()
        annotations = []
        for entry in whole["annotations"]:
            if entry.get("iscrowd"):
                region = (entry["image_id"], *entry["bbox"])
                if region in regions:
                    continue
                regions.add(region)
            annotations.append({**entry, "category_id": 1})
        return {**whole, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.dataset[index]
        return image, {**target, "labels": torch.ones_like(target["labels"])}


def _bounding_boxes(boxes: np.ndarray, canvas_size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    values = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=canvas_size)


def collate(batch: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    """A batch as torchvision's detectors take it: images of any sizes, not stacked, and their targets."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
