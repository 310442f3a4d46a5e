"""The share of the test images that passes the filter of the difference map."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from srtod.models import SelfReconstruction

from ..distributed import mean
from ..module import DetectionModule

__all__ = ["FilterShare"]


class FilterShare(Callback):
    """Logs the share of the test images' pixels where the filter is above 1, as `filter_share`.

    It uses the difference maps that an evaluation computes anyway. Padding does not count. Without a threshold nearly
    all pixels pass. A detector whose enhancement has no filter logs nothing.
    """

    def __init__(self) -> None:
        self._passed = torch.zeros((), dtype=torch.float64)
        self._total = 0
        self._sizes: list[tuple[int, int]] = []  # of the batch's images, without padding
        self._hooks: list[RemovableHandle] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DetectionModule)
        plug = module.detector.self_reconstruction
        if plug is not None and plug.enhancer is not None:
            # float64: float32 cannot count beyond 2**24.
            self._passed = torch.zeros((), dtype=torch.float64, device=module.device)
            self._total = 0
            self._hooks = [  # on the enhancer: inference does not call the forward of `SelfReconstruction`
                module.detector.transform.register_forward_hook(self._note_sizes),
                plug.enhancer.register_forward_hook(partial(self._count, plug)),
            ]

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        passed, total = mean(torch.stack([self._passed, self._passed.new_tensor(self._total)])).tolist()
        if total:
            module.log("filter_share", passed / total)

    def _note_sizes(self, transform: nn.Module, arguments: tuple[Any, ...], result: tuple[Any, ...]) -> None:
        """Called after the forward of `DetectionTransform`."""
        self._sizes = result[0].image_sizes

    @torch.compiler.disable
    def _count(
        self, plug: SelfReconstruction, enhancer: nn.Module, arguments: tuple[Tensor, Tensor], enhanced: Tensor
    ) -> None:
        """Adds a batch; called after `enhancer(features, difference)`, whatever the size of the difference map."""
        scale = plug.reconstruction_head.scale
        filters = plug.filter(arguments[1], (enhanced.shape[-2], enhanced.shape[-1]))
        for part, (height, width) in zip(filters, self._sizes, strict=True):
            passes = part[:, : -(-height // scale), : -(-width // scale)] > 1
            self._passed += passes.sum()
            self._total += passes.numel()
