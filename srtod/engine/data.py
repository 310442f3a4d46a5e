"""The data module: opens the sets of a run and loads their batches."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from srtod.data import (
    CocoDataset,
    DetectionDataset,
    DetectionSubset,
    Sample,
    SingleClass,
    SwarmDataset,
    Target,
    collate,
    open_folder,
    training_transforms,
)
from srtod.data.image import fit_intensity_range

from .config import DataConfig, ModelConfig, TrainConfig
from .distributed import is_main_process
from .sampling import EpochSampler, EvaluationSamples, TrainingSamples, shard

__all__ = ["DetectionData", "object_sizes", "objects", "objects_per_image", "steps_per_epoch"]

DARK = 2**14  # 16-bit values: images that end below it use a quarter of the range at most
FEW = 8  # images to see that
SWARM_SEEDS = (0, 1)  # of the training and the test images: runs of other seeds share their data


class DetectionData(L.LightningDataModule):
    """The training and the test set of a run.

    Args:
        config: which sets, and how to load them.
        seed: seed of the order and the augmentation of the training images.

    Attributes:
        name: a short name of the data, for the run's folder.
        train_set: the training set, augmented.
        test_set: the test set.
        intensity_range: the values of images of more than 8 bits that become 0 and 1, fitted if asked for; None: 0
            and 65535.
        unreadable: of the "training" and the "test" images `[N]`, uint8, those that were left out because they cannot
            be decoded are 1; with `skip_bad_images` the processes that load images set them.

    Raises:
        FileNotFoundError: if a file or a folder is missing.
        ValueError: if a set cannot be read, the two differ in their categories, or an option is missing.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        transforms = training_transforms(
            config.horizontal_flip, config.scale_jitter, config.crop, config.photometric, config.copy_paste
        )
        self.train_set: DetectionDataset
        self.test_set: DetectionDataset
        if config.data is not None:
            folder = open_folder(config.data)
            train, test = folder.choose(config.train_split, config.test_split)
            self.name = folder.path.resolve().name
            self.train_set, self.test_set = (
                train.dataset(transforms, allow_outside=config.allow_outside),
                test.dataset(allow_outside=config.allow_outside),
            )
            self._check_categories(str(train.source), str(test.source))
        elif config.train_json is None:
            self.name = "swarm"
            size = (config.swarm_size, config.swarm_size)
            train_seed, test_seed = SWARM_SEEDS
            test_images = config.swarm_test_images or max(1, config.swarm_images // 5)
            self.train_set = SwarmDataset(config.swarm_images, size, train_seed, transforms, config.swarm_kind)
            self.test_set = SwarmDataset(test_images, size, test_seed, kind=config.swarm_kind)
        else:
            if config.train_images is None or config.test_json is None:
                missing = "train_images" if config.train_images is None else "test_json"
                raise ValueError(f"train_json needs {missing} beside it; training evaluates on a test set as it goes")
            self.train_set = CocoDataset(
                config.train_json, config.train_images, transforms, allow_outside=config.allow_outside
            )
            self.test_set = CocoDataset(
                config.test_json, config.test_images or config.train_images, allow_outside=config.allow_outside
            )
            self.name = Path(config.train_json).resolve().parent.name
            self._check_categories(config.train_json, config.test_json)
        self.intensity_range = self._set_intensity_range()
        if config.single_class:
            self.train_set, self.test_set = SingleClass(self.train_set), SingleClass(self.test_set)
        if config.train_subset is not None:
            self.train_set = DetectionSubset(self.train_set, config.train_subset)
        self.unreadable = {
            kind: torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
            for kind, dataset in (("training", self.train_set), ("test", self.test_set))
        }

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """The most frequent (height, width) of the training images, after a crop."""
        sizes = Counter((image["height"], image["width"]) for image in self.train_set.ground_truth["images"])
        (height, width), _ = sizes.most_common(1)[0]
        crop = self.config.crop or max(height, width)
        return min(height, crop), min(width, crop)

    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(TrainingSamples(self.train_set, self._flags("training")), self._sampler(), collate)

    def val_dataloader(self) -> DataLoader[Sample]:
        samples = EvaluationSamples(self.test_set, self._flags("test"))
        return self._loader(samples, shard(len(samples), *self._place()), collate_readable)

    def _loader(self, samples: Dataset[Any], sampler: Iterable[Any], collate: Callable[..., Any]) -> DataLoader[Sample]:
        return DataLoader(
            samples,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            collate_fn=collate,
            persistent_workers=self.config.workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # Its own, so that to start an epoch again does not draw from the generator that the model draws from.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _sampler(self) -> EpochSampler:
        """The sampler, which in a resumed run starts behind the batches that were done."""
        rank, world_size = self._place()
        epoch = done = 0
        if self.trainer is not None:
            epoch, loop = self.trainer.current_epoch, self.trainer.fit_loop
            if loop.restarting:  # within an epoch
                batches = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
                done = batches * self.config.batch_size
        return EpochSampler(len(self.train_set), self.seed, rank=rank, world_size=world_size, epoch=epoch, done=done)

    def _place(self) -> tuple[int, int]:
        """The rank of this process, and the number of the run's processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _flags(self, kind: str) -> Tensor | None:
        return self.unreadable[kind] if self.config.skip_bad_images else None

    def _set_intensity_range(self) -> tuple[float, float] | None:
        """Tells both sets, if they are files, the intensity range; warns if there should be one."""
        sets = [dataset for dataset in (self.train_set, self.test_set) if isinstance(dataset, CocoDataset)]
        if not sets:
            return None
        asked = self.config.intensity_range
        if asked is None:
            try:
                seen = fit_intensity_range(sets[0].image_files, most=FEW)
            except ValueError:
                return None
            if seen is not None and 0 < seen[1] < DARK and is_main_process():
                warnings.warn(
                    f"the 16-bit training images end at {seen[1]:.0f} of 65535 and come out dark; set intensity_range "
                    f"to auto, or to low and high",
                    stacklevel=4,
                )
            return None
        found = fit_intensity_range(sets[0].image_files) if asked == "auto" else (asked[0], asked[1])
        for dataset in sets:
            dataset.intensity_range = found
        return found

    def _check_categories(self, train_source: str, test_source: str) -> None:
        train, test = (
            dict(zip(data.category_ids, data.class_names, strict=True)) for data in (self.train_set, self.test_set)
        )
        if train != test:
            raise ValueError(
                f"{train_source} and {test_source} must list the same categories, got {train} and {test}; give both "
                f"the same categories"
            )


def collate_readable(batch: list[Sample | None]) -> tuple[list[Tensor], list[Target]]:
    """`srtod.data.collate` for what `EvaluationSamples` gives; the batch may be empty."""
    samples = [sample for sample in batch if sample is not None]
    return collate(samples) if samples else ([], [])


def steps_per_epoch(config: TrainConfig, images: int) -> int:
    """Optimizer steps of an epoch over so many training images; where they do not divide, the last step has fewer.

    (Lightning's own estimate opens the loader before it knows where a resumed run goes on.)
    """
    batches = -(-images // (config.devices * config.nodes * config.data.batch_size))
    return -(-min(batches, config.limit_batches or batches) // config.accumulate)


def object_sizes(ground_truth: Mapping[str, Any], model: ModelConfig) -> Tensor:
    """Width and height `[M, 2]` of the objects of a set, in pixels at the size that the detector works at.

    Crowd regions and boxes without an area are left out, as in training.

    Args:
        ground_truth: the set as a COCO dict.
        model: the detector, for what its images are resized to.
    """
    factors = {image["id"]: _resize_factor(model, image["height"], image["width"]) for image in ground_truth["images"]}
    sizes = [[side * factors[entry["image_id"]] for side in entry["bbox"][2:]] for entry in objects(ground_truth)]
    return torch.tensor(sizes, dtype=torch.float64).reshape(-1, 2)


def objects_per_image(ground_truth: Mapping[str, Any]) -> list[int]:
    """The number of objects in each image of a set, a COCO dict, crowd regions left out."""
    counts = Counter(entry["image_id"] for entry in objects(ground_truth))
    return [counts[image["id"]] for image in ground_truth["images"]]


def objects(ground_truth: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The annotations of a set that are trained on: no crowd regions, and no boxes without an area."""
    for entry in ground_truth["annotations"]:
        if not entry.get("iscrowd") and min(entry["bbox"][2:]) > 0:
            yield entry


def _resize_factor(model: ModelConfig, height: int, width: int) -> float:
    """What `DetectionTransform` multiplies an image's sides by."""
    factor = model.scale if model.min_size is None else model.min_size[-1] / min(height, width)
    return factor if model.max_size is None else min(factor, model.max_size / max(height, width))
