"""How many images a second are loaded and trained on, and which of the two waits for the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from srtod._support.fields import option
from srtod.data import Target

from .config import TrainConfig
from .data import DetectionData
from .failures import check_machine
from .module import WARMUP_FACTOR, DetectionModule, make_optimizer

__all__ = ["Throughput", "ThroughputConfig", "measure_throughput"]

Batch = tuple[list[Tensor], list[Target]]

HELD_BATCHES = 4
"""Batches that the training step is measured on, in turn: images and objects differ from one to the next."""

WARM_UP = 2
"""Training steps before the clock starts, in which memory is allocated and convolutions are chosen."""

KEPT_UP = 0.9
"""Share of the training step's own speed from which training counts as not waiting; less may be noise."""

SPARE = 1.2
"""How much faster than the training step a loader has to be, to be so beside it too."""


@dataclass(frozen=True)
class ThroughputConfig(TrainConfig):
    """The training run, and how its speed is measured."""

    seconds: float = option(5.0, "how long each speed is measured", within="positive")
    try_workers: tuple[int, ...] | None = option(
        None, "numbers of workers to try beside that of the run; none: 0, half of the cores, and all", within="natural"
    )


class Throughput(NamedTuple):
    """Speeds in images a second.

    Attributes:
        loader: of the loader alone, by number of workers.
        step: of the training step alone, on images at hand.
        both: of training, which loads and steps.
        workers: the workers of the run, with which `both` was measured.
        device: what trains, such as `cuda:0`.
    """

    loader: dict[int, float]
    step: float
    both: float
    workers: int
    device: str

    def __str__(self) -> str:
        """A table of the speeds."""
        rows = [(f"loader alone, {_workers(workers)}", rate) for workers, rate in sorted(self.loader.items())]
        rows.append((f"training step alone, {self.device}", self.step))
        rows.append((f"training, {_workers(self.workers)}", self.both))
        width = max(len(label) for label, _ in rows)
        return "\n".join([f"{'images a second':<{width}}", *(f"{label:<{width}} {rate:>9.1f}" for label, rate in rows)])

    @property
    def verdict(self) -> str:
        """One sentence: which of the two waits for the other, and what to change."""
        share = self.both / self.step
        if share >= KEPT_UP:
            return (
                f"The loader keeps up: training runs at {share:.0%} of the speed of its step; leave workers as it is."
            )
        waits = f"The training step waits for images {1 - share:.0%} of the time"
        enough = [workers for workers, rate in sorted(self.loader.items()) if workers and rate >= SPARE * self.step]
        fastest = max(self.loader, key=self.loader.__getitem__)
        if self.workers in enough:
            return (
                f"{waits}, though the loader alone is fast enough: both need the same cores; lower threads or workers."
            )
        if enough:
            factor = self.loader[enough[0]] / self.step
            loads = "loads" if enough[0] == 1 else "load"
            return f"{waits}; use --workers {enough[0]}, which {loads} {factor:.1f} times as fast as the step trains."
        if self.loader[fastest] > SPARE * self.loader[self.workers]:
            return f"{waits}; use --workers {fastest}, the fastest tried, though still too slow for the step."
        return f"{waits}, and no number of workers tried is faster; shrink the image files, or augment less."


def measure_throughput(config: ThroughputConfig) -> Throughput:
    """Measures the speed of the loader, of the training step and of both together, on the run's own data.

    It trains a model of its own, which is thrown away. One process is measured, that of a single device.

    Args:
        config: the run, and how long to measure.

    Raises:
        FileNotFoundError: if a file of the data is missing.
        ValueError: if the configuration or the data are not as they should be.
    """
    check_machine(replace(config, devices=1, nodes=1))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, verbose=False)
    data = DetectionData(config.data, config.seed)
    own = config.data.workers
    loader = {}
    for workers in sorted({own, *(_some_workers() if config.try_workers is None else config.try_workers)}):
        with_workers = _batches(data, workers)
        loader[workers] = _rate(with_workers, lambda batch: None, config.seconds, warm_up=max(1, workers))
        with_workers.close()  # ends its processes, which would slow down what is measured next
    trainer = _Trainer(config, data)
    held = [trainer.fabric.to_device(batch) for batch in islice(_batches(data, own), HELD_BATCHES)]
    step = _rate(cycle(held), trainer.step, config.seconds, warm_up=WARM_UP)
    both = _rate(
        _batches(data, own), lambda batch: trainer.step(trainer.fabric.to_device(batch)), config.seconds, WARM_UP
    )
    return Throughput(loader, step, both, own, str(trainer.fabric.device))


class _Trainer:
    """A model and its training step, as Lightning runs it but without its logs and checkpoints."""

    def __init__(self, config: TrainConfig, data: DetectionData) -> None:
        self.clip = config.clip_grad_norm
        self.fabric = L.Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
        if config.model.anchor_scale == "auto":  # a step takes as long whatever the scale
            config = replace(config, model=replace(config.model, anchor_scale=None))
        module = DetectionModule(config, data.train_set.class_names, data.train_set.category_ids)
        # At the first step's learning rate, so that the losses stay finite without a warm-up.
        optimizer = make_optimizer(module.detector, config, config.lr * WARMUP_FACTOR)
        self.model, self.optimizer = self.fabric.setup(module.detector.train(), optimizer)

    def step(self, batch: Batch) -> None:
        """Trains on a batch on the device."""
        losses = self.model(*batch)
        self.fabric.backward(torch.stack(list(losses.values())).sum())
        if self.clip is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _batches(data: DetectionData, workers: int) -> Generator[Batch, None, None]:
    """The training batches, one epoch after the other without end."""
    data.config = replace(data.config, workers=workers)
    loader: Any = data.train_dataloader()
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def _rate(batches: Iterator[Batch], use: Callable[[Batch], Any], seconds: float, warm_up: int) -> float:
    """Images a second that come out of `batches` and go through `use`."""
    for batch in islice(batches, warm_up):
        use(batch)
    _wait_for_device()
    images = 0
    start = time.perf_counter()
    while not images or time.perf_counter() < start + seconds:
        batch = next(batches)
        use(batch)
        images += len(batch[0])
    _wait_for_device()
    return images / (time.perf_counter() - start)


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _some_workers() -> set[int]:
    """0, half of the cores and all that this process may use; of many, no more than 16."""
    cores = min(len(os.sched_getaffinity(0)), 16)
    return {0, max(1, cores // 2), cores}


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"
