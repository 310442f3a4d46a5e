"""The data module: opens the sets of a run and loads their batches in an order that depends on the seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from srtod.data import CocoDataset, DetectionDataset, Sample, SwarmDataset, collate, training_transforms

from .config import DataConfig, ModelConfig

__all__ = ["DetectionData", "object_sizes", "objects_per_image"]

SWARM_SEEDS = (0, 1)  # of the training and the test images: runs of other seeds share their data


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled indices, each with a seed for its augmentation; both follow from the run's seed and the epoch alone.

    Neither what the model draws nor the number of workers changes them, so that runs of one seed see the same images,
    flipped alike, with and without self-reconstruction.

    Args:
        length: number of images.
        seed: the run's seed.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; Lightning calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**31, (self.length,), generator=generator).tolist()
        yield from zip(order, seeds, strict=True)


class SeededDataset(Dataset[Sample]):
    """A data set whose random transforms draw from the seed that comes with each index of an `EpochSampler`."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        position, seed = index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.dataset[position]


class DetectionData(L.LightningDataModule):
    """The training and the test set of a run.

    Args:
        config: which sets, and how to load them.
        seed: seed of the order and the augmentation of the training images.

    Attributes:
        name: a short name of the data, for the run's folder.
        train_set: the training set, augmented.
        test_set: the test set.

    Raises:
        FileNotFoundError: if a file or a folder is missing.
        ValueError: if a set cannot be read, the two differ in their categories, or an option is missing.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        transforms = training_transforms(config.horizontal_flip)
        self.train_set: DetectionDataset
        self.test_set: DetectionDataset
        if config.train_json is None:
            given = [name for name in ("train_images", "test_json", "test_images") if getattr(config, name) is not None]
            if given:
                raise ValueError(f"{given[0]} is given without train_json; pass the annotations to train on too")
            self.name = "swarm"
            size = (config.swarm_size, config.swarm_size)
            train_seed, test_seed = SWARM_SEEDS
            self.train_set = SwarmDataset(config.swarm_images, size, train_seed, transforms)
            self.test_set = SwarmDataset(max(1, config.swarm_images // 5), size, test_seed)
        else:
            if config.train_images is None or config.test_json is None:
                missing = "train_images" if config.train_images is None else "test_json"
                raise ValueError(f"train_json needs {missing} beside it; training evaluates on a test set as it goes")
            self.name = Path(config.train_json).resolve().parent.name
            self.train_set = CocoDataset(config.train_json, config.train_images, transforms)
            self.test_set = CocoDataset(config.test_json, config.test_images or config.train_images)
            self._check_categories()

    def train_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(
            SeededDataset(self.train_set),
            batch_size=self.config.batch_size,
            sampler=EpochSampler(len(self.train_set), self.seed),
            num_workers=self.config.workers,
            collate_fn=collate,
            persistent_workers=self.config.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(
            self.test_set, batch_size=self.config.batch_size, num_workers=self.config.workers, collate_fn=collate
        )

    def _check_categories(self) -> None:
        train, test = (
            dict(zip(data.category_ids, data.class_names, strict=True)) for data in (self.train_set, self.test_set)
        )
        if train != test:
            raise ValueError(
                f"{self.config.train_json} and {self.config.test_json} must list the same categories, got {train} and "
                f"{test}; give both files the same 'categories'"
            )


def object_sizes(ground_truth: Mapping[str, Any], model: ModelConfig) -> Tensor:
    """Width and height `[M, 2]` of the objects of a set, in pixels at the size that the detector works at.

    Crowd regions and boxes without an area are left out, as in training.

    Args:
        ground_truth: the set as a COCO dict.
        model: the detector, for what its images are resized to.
    """
    factors = {image["id"]: _resize_factor(model, image["height"], image["width"]) for image in ground_truth["images"]}
    sizes = [[side * factors[entry["image_id"]] for side in entry["bbox"][2:]] for entry in _objects(ground_truth)]
    return torch.tensor(sizes, dtype=torch.float64).reshape(-1, 2)


def objects_per_image(ground_truth: Mapping[str, Any]) -> list[int]:
    """The number of objects in each image of a set, a COCO dict, crowd regions left out."""
    counts = Counter(entry["image_id"] for entry in _objects(ground_truth))
    return [counts[image["id"]] for image in ground_truth["images"]]


def _objects(ground_truth: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in ground_truth["annotations"]:
        if not entry.get("iscrowd") and min(entry["bbox"][2:]) > 0:
            yield entry


def _resize_factor(model: ModelConfig, height: int, width: int) -> float:
    """What `DetectionTransform` multiplies an image's sides by."""
    factor = model.scale if model.min_size is None else model.min_size / min(height, width)
    return factor if model.max_size is None else min(factor, model.max_size / max(height, width))
