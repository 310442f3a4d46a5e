"""What a detector of another library is given: its batch of images, their sizes and boxes, found in its call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

__all__ = ["ModelInput", "read_call", "read_torchvision_transform", "sizes_of_mask"]


class ModelInput(NamedTuple):
    """The batch that a detector works on.

    Attributes:
        image: `[N, 3, H, W]`, floating-point, normalised as the detector wants it.
        sizes: (height, width) of each image without its padding; None if there is no padding.
        boxes: the objects of each image, `[M, 4]`, (x1, y1, x2, y2) in pixels of the batch; None if not known.
    """

    image: Tensor
    sizes: Sequence[tuple[int, int]] | None = None
    boxes: Sequence[Tensor] | None = None


def read_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModelInput:
    """Finds the batch among the arguments of a call, and in dictionaries among them.

    The image is the first floating-point tensor `[N, 3, H, W]`. The rest is found where libraries have it:

    - `transformers`: sizes in `pixel_mask`; boxes in the dictionaries of `labels`, relative centres and sizes;
    - Ultralytics: boxes in `bboxes`, relative centres and sizes, with `batch_idx`;
    - torchvision's convention: boxes in a list of dictionaries, corners in pixels.

    Raises:
        ValueError: if there is no such tensor.
    """
    found = dict(_arguments(args, kwargs))
    image = next((value for value in found.values() if _is_image(value)), None)
    if image is None:
        given = ", ".join(f"{name}: {_describe(value)}" for name, value in found.items()) or "nothing"
        raise ValueError(
            f"no argument of the call is an image, a floating-point tensor [N, 3, H, W]; it got {given}; give attach a "
            f"`read` that finds it, or a `source` whose input it is"
        )
    mask = found.get("pixel_mask")
    return ModelInput(image, None if mask is None else sizes_of_mask(mask), _find_boxes(found, image))


def read_torchvision_transform(output: Any) -> ModelInput:
    """The batch that torchvision's `GeneralizedRCNNTransform` returns, with its targets in the batch's pixels."""
    batch, targets = output
    return ModelInput(batch.tensors, batch.image_sizes, None if targets is None else [t["boxes"] for t in targets])


def sizes_of_mask(mask: Tensor) -> list[tuple[int, int]]:
    """(height, width) of the images whose pixels a mask `[N, H, W]` marks with 1."""
    rows, columns = mask.bool().any(dim=2).sum(dim=1), mask.bool().any(dim=1).sum(dim=1)
    return [(height, width) for height, width in torch.stack([rows, columns], dim=1).tolist()]


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in [*((f"args[{index}]", value) for index, value in enumerate(args)), *kwargs.items()]:
        if isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4 and value.shape[1] == 3


def _find_boxes(found: Mapping[str, Any], image: Tensor) -> list[Tensor] | None:
    if {"bboxes", "batch_idx"} <= found.keys():
        owners = found["batch_idx"].flatten()
        return [_corners(found["bboxes"][owners == index], image) for index in range(len(image))]
    targets = next((value for value in found.values() if _are_targets(value)), None)
    if targets is None:
        return None
    return [_corners(t["boxes"], image) if "class_labels" in t else t["boxes"] for t in targets]


def _are_targets(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, Mapping) and "boxes" in each for each in value)


def _corners(boxes: Tensor, image: Tensor) -> Tensor:
    """Corners in pixels of the batch, from relative (cx, cy, w, h)."""
    height, width = image.shape[2:]
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners.to(image.device) * image.new_tensor([width, height, width, height])


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__
