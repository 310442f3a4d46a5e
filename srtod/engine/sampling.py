"""Which images are loaded, and in which order: a function of the seed and the epoch, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from srtod.data import DetectionDataset, ImageError, Sample

__all__ = ["EpochSampler", "EvaluationSamples", "TrainingSamples", "shard"]


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled indices, each with a seed for its augmentation; both follow from the run's seed and the epoch alone.

    Neither what the model draws nor the number of workers changes them, so that runs of one seed see the same images,
    flipped alike, with and without self-reconstruction.

    Args:
        length: number of images.
        seed: the run's seed.
        rank: which of the run's processes this is. Each takes every `world_size`-th image, so that their batches
            together are those of one process with larger batches.
        world_size: number of the run's processes.
        epoch: the first epoch.
        done: images of this process's share that a resumed run has seen of that epoch.
    """

    def __init__(
        self, length: int, seed: int, *, rank: int = 0, world_size: int = 1, epoch: int = 0, done: int = 0
    ) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_epoch = self.epoch = epoch
        self.done = done

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; Lightning calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The share of an epoch, also where a resumed run has seen a part of it: Lightning counts on from there."""
        return len(shard(self.length, self.rank, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**31, (self.length,), generator=generator).tolist()
        places = shard(self.length, self.rank, self.world_size)
        for place in places[self.done if self.epoch == self.first_epoch else 0 :]:
            yield order[place], seeds[place]


def shard(length: int, rank: int, world_size: int) -> list[int]:
    """Every `world_size`-th of `length` places, from `rank` on.

    All ranks get equally many, for none may wait for another: the last ones take a first place again if need be.
    """
    return [place % length for place in range(rank, -(-length // world_size) * world_size, world_size)]


class TrainingSamples(Dataset[Sample]):
    """A data set whose random transforms draw from the seed that comes with each index of an `EpochSampler`.

    Args:
        dataset: the data set.
        unreadable: `[N]`, uint8, shared by the processes that load images: an image that cannot be decoded is set to 1
            and the next one that can stands in for it. None: such an image is an error.
    """

    def __init__(self, dataset: DetectionDataset, unreadable: Tensor | None = None) -> None:
        self.dataset = dataset
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        """The sample of an image under a seed.

        Raises:
            ImageError: if the image cannot be decoded, or where others may stand in for it, none of them.
        """
        first, seed = index
        for step in range(len(self)):
            position = (first + step) % len(self)
            try:
                with torch.random.fork_rng(devices=[]):
                    # The CPU's alone, which all transforms draw from; torch.manual_seed would set the GPUs' too.
                    torch.default_generator.manual_seed(seed)
                    return self.dataset[position]
            except ImageError as error:
                if self.unreadable is None:
                    raise _with_option(error) from error
                self.unreadable[position] = 1
        raise ImageError(f"none of the {len(self)} training images can be read as an image; replace them")


class EvaluationSamples(Dataset["Sample | None"]):
    """A data set that is evaluated on, without the images that cannot be decoded.

    Args:
        dataset: the data set.
        unreadable: as for `TrainingSamples`; the sample of such an image is None.
    """

    def __init__(self, dataset: DetectionDataset, unreadable: Tensor | None = None) -> None:
        self.dataset = dataset
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return self.dataset[index]
        except ImageError as error:
            if self.unreadable is None:
                raise _with_option(error) from error
            self.unreadable[index] = 1
            return None


def _with_option(error: ImageError) -> ImageError:
    return ImageError(f"{error}, or pass --skip-bad-images to leave such images out")
