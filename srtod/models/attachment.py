"""Self-reconstruction in a detector of any library, by hooks: the detector's own code stays as it is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from srtod.ops.reference import valid_mask

from .model_inputs import ModelInput, read_call, read_torchvision_transform
from .pyramid_outputs import Key, describe_levels, find_level, replace_level
from .reconstruction import SelfReconstruction

__all__ = ["AttachedSelfReconstruction", "attach"]

NAME = "self_reconstruction"
"""The attached module's name in the model, as in `srtod.models.Detector`."""

Read = Callable[[tuple[Any, ...], Mapping[str, Any]], ModelInput]


class AttachedSelfReconstruction(SelfReconstruction):
    """A `SelfReconstruction` that hooks feed; made by `attach`.

    It is the model's submodule `self_reconstruction`: parameters, checkpoints, devices, copies, `train()` and `eval()`
    follow from that.

    Attributes:
        loss: the reconstruction's loss of the last call in training, `[]`; None before, and in evaluation.
    """

    loss: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        scale: int,
        level: str,
        key: Key | Sequence[Key] | None,
        mean: Sequence[float],
        std: Sequence[float],
        white: float,
        read: Read,
        loss_name: str,
        **options: Any,
    ) -> None:
        super().__init__(channels, scale=scale, **options)
        self.channels, self.level, self.key, self.loss_name = channels, level, key, loss_name
        self.loss = None
        self._read = read
        self._input: ModelInput | None = None  # of the call that runs
        self._was_reached = False
        self._hooked: tuple[nn.Module, list[Any]] | None = None  # a tuple, which makes the model no submodule
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) / white, persistent=False)

    def hook(self, model: nn.Module, source: nn.Module) -> None:
        """Becomes a part of the model; see `attach`."""
        if isinstance(source, GeneralizedRCNNTransform):
            reading = source.register_forward_hook(self._read_transform)
        else:
            reading = source.register_forward_pre_hook(self._read_call, with_kwargs=True)
        replacing = model.get_submodule(self.level).register_forward_hook(self._replace)
        self._hooked = model, [reading, replacing, model.register_forward_hook(self._finish)]
        model.add_module(NAME, self)

    def detach(self) -> None:
        """Leaves the model as it was before `attach`; call it before `torch.compile`, or compile anew."""
        if self._hooked is None:
            return
        model, handles = self._hooked
        for handle in handles:
            handle.remove()
        delattr(model, NAME)
        self._hooked = self._input = self.loss = None

    def _read_transform(self, module: nn.Module, args: Any, output: Any) -> None:
        self._start(read_torchvision_transform(output))

    def _read_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._start(self._read(args, kwargs))

    def _start(self, given: ModelInput) -> None:
        self._input, self._was_reached, self.loss = given, False, None

    def _replace(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the level."""
        if self._input is None:
            raise RuntimeError(
                f"{self.level!r} ran before the image was known; call the model, not its parts, or give attach a "
                f"`source` that runs earlier"
            )
        image, sizes, boxes = self._input
        features = find_level(output, self.key, self.level)
        self._check_level(features, image, output)
        if self.training and boxes is None and self.options.reconstruction_target != "image":
            raise ValueError(
                f"reconstruction_target={self.options.reconstruction_target!r} needs boxes, and the model's call has "
                f"none; give attach a `read` that returns them"
            )
        pixels = self._unnormalise(image, sizes)
        self._was_reached = True
        if not self.training:
            return replace_level(output, self.key, self.enhance(features, pixels, sizes))
        enhanced, reconstruction = self(features, pixels, sizes, boxes)
        # A recursive pyramid runs more than once.
        self.loss = reconstruction.loss if self.loss is None else self.loss + reconstruction.loss
        return replace_level(output, self.key, enhanced)

    def _finish(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: the loss joins its losses, where it returns any."""
        was_reached, self._input, self._was_reached = self._was_reached, None, False
        if not was_reached:
            raise RuntimeError(f"the model's call did not run {self.level!r}; attach to a module that it runs")
        if self.loss is None or not isinstance(output, dict):
            return
        if output and all(_is_loss(value) for value in output.values()):
            output[self.loss_name] = self.loss
        elif _is_loss(output.get("loss")):  # of `transformers`: the sum, beside its summands and the predictions
            output["loss"] = output["loss"] + self.loss
            if isinstance(output.get("loss_dict"), dict):
                output["loss_dict"][self.loss_name] = self.loss

    def _unnormalise(self, image: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Tensor:
        """The image in [0, 1], padding 0, in the dtype of the weights."""
        pixels = image.float() * self.get_buffer("std") + self.get_buffer("mean")
        if image.device.type == "cpu" and image.numel() and not torch.compiler.is_compiling():
            low, high = (float(bound) for bound in pixels.detach().aminmax())
            if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
                raise ValueError(
                    f"the model's input, un-normalised, must lie in [0, 1], got values from {low:.4g} to {high:.4g}; "
                    f"give attach the `mean` and `std` that it is normalised by, and the value of `white` before"
                )
        pixels = pixels.clamp(0, 1)
        if sizes is not None:
            inside = torch.tensor(sizes, dtype=torch.int64).to(image.device, non_blocking=True)
            pixels = pixels * valid_mask(inside, image.shape[2], image.shape[3])
        return pixels.to(next((weight.dtype for weight in self.parameters()), image.dtype))

    def _check_level(self, features: Tensor, image: Tensor, output: Any) -> None:
        size, whole = features.shape[-2:], image.shape[-2:]
        if features.dim() == 4 and all(own == -(-side // self.scale) for own, side in zip(size, whole, strict=True)):
            if features.shape[1] == self.channels:
                return
            cure = f"attach with channels={features.shape[1]}"
        else:
            cure = f"attach to another module, or with the `scale` and `key` of one of {describe_levels(output, whole)}"
        raise ValueError(
            f"the level {self.level!r} must be [N, {self.channels}, h, w] at stride {self.scale} of the image "
            f"{list(image.shape)}, got {list(features.shape)}; {cure}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # What a call leaves behind belongs in no copy: a loss with its graph could not be copied.
        return self.__dict__ | {"loss": None, "_input": None}


TOLERANCE = 0.1
"""How far values may lie outside [0, 1]: the overshoot of a bicubic interpolation."""


def attach(
    model: nn.Module,
    level: str,
    *,
    scale: int = 4,
    channels: int | None = None,
    key: Key | Sequence[Key] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: float = 1.0,
    source: str | None = None,
    read: Read = read_call,
    loss_name: str = "loss_reconstruction",
    **options: Any,
) -> AttachedSelfReconstruction:
    """Puts self-reconstruction behind a module of any detector with a feature pyramid, in place.

        reconstruction = srtod.attach(fasterrcnn_resnet50_fpn(), "backbone", key="0", scale=4)

    From then on the module's output has the enhanced level in place of its own. In training the loss joins the model's
    losses, if the model returns a dictionary of losses, or a dictionary with their sum in `loss`. Otherwise add
    `reconstruction.loss` to yours.

    Attach before `DistributedDataParallel` and `torch.compile`, and before the optimizer is made. All other weights
    and the random generator stay as they are.

    Args:
        model: the detector.
        level: name of the module whose output is the pyramid, or its finest level, as in `model.named_modules()`.
        scale: stride of the level in pixels of the batch.
        channels: channels of the level; by default the module's `out_channels`.
        key: where the level is in the module's output: an index, a key, or several that lead there. None: the output
            itself, or the first entry of a list or dictionary.
        mean: of each channel, that the model's input was normalised by. By default that of torchvision's transform,
            where the model has one, and 0 otherwise.
        std: as `mean`, the standard deviation; 1 otherwise.
        white: value of a white pixel in the units of `mean` and `std`: 1 or 255.
        source: name of the module whose input has the image. By default torchvision's transform, whose output is read,
            where the model has one, and the model itself otherwise.
        read: gives the `ModelInput` from the positional and keyword arguments of the source's call. By default see
            `srtod.models.model_inputs.read_call`.
        loss_name: key of the loss in the model's losses.
        options: see `SelfReconstructionOptions`.

    Returns:
        The attached module, also `model.self_reconstruction`. As in any training, call its `set_progress` before each
        step and its `clamp_threshold_` after it. Its `detach` removes it.

    Raises:
        TypeError: if an option is unknown, or the model is wrapped or compiled already.
        ValueError: if there is no such module, the channels are not known, or the model has self-reconstruction. Later
            calls of the model raise it where the image cannot be found or the level does not fit to it.
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        raise TypeError(f"attach needs the model itself, not a {type(model).__name__} of it; attach before wrapping it")
    if isinstance(model, nn.Sequential):
        raise TypeError(
            f"attach adds a submodule, which a {type(model).__name__} would run as a layer; call it from a module of "
            f"your own, and attach to that"
        )
    if hasattr(model, NAME):
        raise ValueError(f"the {type(model).__name__} has a {NAME!r} already; detach() that first")
    module = _submodule(model, level)
    if channels is None:
        channels = getattr(module, "out_channels", None)
        if not isinstance(channels, int):
            raise ValueError(f"{level!r}, a {type(module).__name__}, does not say its out_channels; set channels")
    transform = next((module for module in model.children() if isinstance(module, GeneralizedRCNNTransform)), None)
    if source is not None:
        origin = _submodule(model, source)
    else:
        origin = model if transform is None or read is not read_call else transform
    with torch.random.fork_rng(devices=[]):
        attached = AttachedSelfReconstruction(
            channels,
            scale=scale,
            level=level,
            key=key,
            mean=mean or (transform.image_mean if transform is not None else (0.0, 0.0, 0.0)),
            std=std or (transform.image_std if transform is not None else (1.0, 1.0, 1.0)),
            white=white,
            read=read,
            loss_name=loss_name,
            **options,
        )
    weight = next(module.parameters(), next(model.parameters(), torch.empty(0)))
    attached.to(weight.device, weight.dtype).train(model.training)
    attached.hook(model, origin)
    return attached


def _submodule(model: nn.Module, name: str) -> nn.Module:
    known = {path: module for path, module in model.named_modules() if path}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    first = [path for path in known if path.count(".") < 2][:20]
    raise ValueError(
        f"the {type(model).__name__} has no module {name!r}; "
        f"{'near is ' + ', '.join(near) if near else 'it has ' + ', '.join(first)}"
    )


def _is_loss(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_loss(each) for each in value)
    return isinstance(value, Tensor) and value.dim() == 0
