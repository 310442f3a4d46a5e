"""The Lightning module: what one training step does, and the optimiser's schedule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from srtod.data import Target
from srtod.models import SelfReconstruction, build_detector
from srtod.models.checkpoint import DESCRIPTION, IMAGE_SIZE, INTENSITY_RANGE, describe

from .config import TrainConfig
from .data import DetectionData, steps_per_epoch
from .distributed import gather, mean

__all__ = ["DetectionModule", "learning_rate_factor", "make_optimizer", "parameter_groups"]

HEAD = "reconstruction_head."
"""What the names of the reconstruction head's parameters have in them."""

WARMUP_FACTOR = 0.001
DEFAULT_WARMUP = 500
STEP_FACTOR = 0.1
ONLY_IN_TRAINING = frozenset({"recompute", "weights"})
"""Arguments of `build_detector` that make no other detector of a checkpoint's weights."""


class DetectionModule(L.LightningModule):
    """Trains a detector by SGD with the paper's schedule: linear warm-up, then steps; both count optimizer steps.

    Logs every loss as `train/<loss>`, their sum as `train/loss`, the `learning_rate`, and the threshold, where
    there is one, in grey levels as `threshold_x255`. Losses are the mean over the run's processes.

    Args:
        config: the run.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class.
    """

    def __init__(self, config: TrainConfig, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.model_arguments = config.model.arguments | {"num_classes": len(class_names) + 1}
        self.detector = build_detector(**self.model_arguments)
        self._pending: list[_Batch] = []  # whose gradients wait for the next step
        self._steps = float("inf")  # of the whole training, from its start on
        self._image_size: list[int] | None = None  # height and width of most training images, likewise
        self._intensity_range: list[float] | None = None  # of the data, likewise
        if config.compile:
            # In place, so that the names of the weights stay. The head's shapes depend on the data, and would have it
            # compiled again and again.
            for part in (self.detector.backbone, self.detector.neck, self.detector.self_reconstruction):
                if part is not None:
                    part.compile()

    def on_train_start(self) -> None:
        self._steps = float(self.trainer.estimated_stepping_batches)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DetectionData):
            self._image_size = list(data.image_size)
            self._intensity_range = None if data.intensity_range is None else list(data.intensity_range)

    def training_step(self, batch: tuple[list[Tensor], list[Target]], batch_index: int) -> Tensor:
        images, targets = batch
        if self.detector.self_reconstruction is not None:
            self.detector.self_reconstruction.set_progress(self.global_step / self._steps)
        losses = self.detector(images, targets)
        parts = torch.stack(list(losses.values()))
        means = mean(parts.detach())
        names = [target["file_name"] for target in targets]
        self._pending.append(_Batch(list(losses), parts.detach(), means, names))
        self.log("train/loss", means.sum(), prog_bar=True, batch_size=len(images))
        logged = dict(zip(losses, means, strict=True))
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=len(images))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.detector.self_reconstruction is not None:
            self._log_reconstruction(self.detector.self_reconstruction, logged)
        return parts.sum()

    def _log_reconstruction(self, reconstruction: SelfReconstruction, losses: dict[str, Tensor]) -> None:
        """Logs the threshold in grey levels and, where the loss is the image's error alone, the PSNR in dB.

        Args:
            reconstruction: the module.
            losses: their means over the run's processes, `[]` each.
        """
        if reconstruction.threshold is not None:
            self.log("threshold_x255", 255 * reconstruction.threshold.detach())
        options = reconstruction.options
        if reconstruction.learns and options.reconstruction_target == "image":
            mse = losses["loss_reconstruction"] / options.reconstruction_weight
            self.log("psnr", -10 * mse.log10())

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], batch_index: int) -> dict[str, Any]:
        return {"detections": self.detector(batch[0]) if batch[0] else []}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; afterwards brings the threshold back into [0, 1]."""
        super().optimizer_step(*args, **kwargs)
        if self.detector.self_reconstruction is not None:
            self.detector.self_reconstruction.clamp_threshold_()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, by the norm; ends the run where the step would bring what is not finite into the weights.

        Only here are losses and gradients looked at, together: for each look the processor waits for the GPU.

        Raises:
            FloatingPointError: if a loss or the gradient is not finite.
        """
        batches, self._pending = self._pending, []
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val is None:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        losses = torch.cat([batch.means for batch in batches])
        # Means and gradients are those of all processes: all stop, and none waits for another.
        *finite, finite_norm = torch.cat([losses, norm.to(losses).reshape(1)]).isfinite().tolist()
        if not all(finite):
            raise FloatingPointError(self._describe(batches, "loss"))
        # Where float16 overflows, its scaler leaves the step out and scales less.
        if not finite_norm and self.config.precision != "16-mixed":
            raise FloatingPointError(self._describe(batches, "gradient"))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.config
        images = config.data.batch_size * config.accumulate * self.trainer.world_size
        lr = config.lr if config.lr_batch is None else config.lr * images / config.lr_batch
        optimizer = make_optimizer(self.detector, config, lr)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # which a trainer has once it fits
        steps = steps_per_epoch(config, len(data.train_set))
        milestones = [epoch * steps for epoch in config.milestones]
        warmup = min(DEFAULT_WARMUP, steps * config.epochs // 10) if config.warmup is None else config.warmup
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup, milestones))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def description(self) -> dict[str, Any]:
        """What checkpoints say of the detector, see `describe`; nothing of what its training alone knows."""
        model = {name: value for name, value in self.model_arguments.items() if name not in ONLY_IN_TRAINING}
        return describe(model, self.class_names, self.category_ids)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        of_data = {IMAGE_SIZE: self._image_size, INTENSITY_RANGE: self._intensity_range}
        checkpoint[DESCRIPTION] = self.description | of_data

    def _describe(self, batches: list[_Batch], culprit: Literal["loss", "gradient"]) -> str:
        """The losses and images, in each process, of the batches whose losses, or whose gradients' sum, broke."""
        own = [batch.describe() for batch in batches if culprit == "gradient" or not batch.parts.isfinite().all()]
        broken = " and ".join(other for others in gather(own) for other in others)
        return (
            f"the {culprit} is no longer finite at step {self.global_step} {broken}; lower lr or clip_grad_norm, or "
            f"lengthen warmup"
        )


class _Batch(NamedTuple):
    """What is told of a batch if a step breaks on it.

    Attributes:
        losses: names of the losses.
        parts: the losses `[L]` in this process.
        means: their means `[L]` over the run's processes.
        images: the file names of its images.
    """

    losses: list[str]
    parts: Tensor
    means: Tensor
    images: list[str]

    def describe(self) -> str:
        values = zip(self.losses, self.parts.tolist(), strict=True)
        return f"({', '.join(f'{name} {value:g}' for name, value in values)}; images {', '.join(self.images)})"


def make_optimizer(detector: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    """The optimiser of a run, at this learning rate."""
    groups = parameter_groups(detector, lr, config.weight_decay, config.threshold_lr, config.reconstruction_lr)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=config.momentum)


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, threshold_lr: float, reconstruction_lr: float = 1.0
) -> list[dict[str, Any]]:
    """The trained parameters in groups for the optimiser: weights, biases and norms, and thresholds.

    Weights alone decay: decay would pull the threshold to 0 whatever the data say, and biases and the scales of norms
    have no need of it (the authors' code decays all). The threshold has a learning rate of its own, because it is about
    0.02 and with that of the weights one step would carry it from end to end of its range. Where the reconstruction
    head has one too, its weights and its biases follow as two more groups.

    Args:
        model: the detector.
        lr: learning rate.
        weight_decay: of the weights, tensors of two or more dimensions.
        threshold_lr: learning rate of thresholds, as a share of `lr`.
        reconstruction_lr: learning rate of the reconstruction head, as a share of `lr`.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    thresholds = [parameter for name, parameter in trained if name.endswith("threshold")]
    head = [parameter for name, parameter in trained if reconstruction_lr != 1 and HEAD in name]
    apart = {id(parameter) for parameter in (*thresholds, *head)}
    others = [parameter for _, parameter in trained if id(parameter) not in apart]
    groups = [
        *_by_decay(others, lr, weight_decay),
        {"params": thresholds, "lr": threshold_lr * lr, "weight_decay": 0.0},
    ]
    return groups + (_by_decay(head, reconstruction_lr * lr, weight_decay) if head else [])


def _by_decay(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weights, which decay, and the rest, which does not."""
    weights, rest = ([p for p in parameters if (p.ndim > 1) == decays] for decays in (True, False))
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": rest, "lr": lr, "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, warmup: int, milestones: Sequence[int]) -> float:
    """The learning rate at a step, as a share of the configured one.

    Args:
        step: the optimiser's step, from 0.
        warmup: steps over which it rises linearly from 0.001 to 1.
        milestones: steps at each of which it drops to a tenth.
    """
    rise = 1.0 if step >= warmup else WARMUP_FACTOR + (1 - WARMUP_FACTOR) * step / warmup
    return rise * STEP_FACTOR ** bisect_right(milestones, step)
