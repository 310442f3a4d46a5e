"""What the models ask of images and targets, each with one clear sentence when it is not so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_image", "check_images", "check_targets", "check_unit_range"]


def check_unit_range(image: Tensor, name: str) -> None:
    """Checks that an image lies in [0, 1].

    Done on the CPU only: on an accelerator the answer would stall the queue, and a traced graph cannot ask.

    Raises:
        ValueError: if a value lies outside [0, 1] or is not finite.
    """
    if image.device.type != "cpu" or image.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (float(bound) for bound in image.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} must be un-normalised, with values in [0, 1], got NaN or infinity; look for a division by zero "
            f"or a damaged file where it comes from"
        )
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # resampling may overshoot a little
        raise ValueError(
            f"{name} must be un-normalised, with values in [0, 1], got values from {low:.4g} to {high:.4g}; "
            f"divide 8-bit values by 255 and leave the normalisation to the detector"
        )


def check_images(images: Any) -> None:
    """Checks RGB images `[3, H, W]` with floating-point values in [0, 1].

    Raises:
        TypeError: if they are no sequence, or an image is not a floating-point tensor.
        ValueError: if the list is empty, or an image has another shape, no pixels or values outside [0, 1].
    """
    if isinstance(images, Tensor) and images.dim() < 4:
        raise ValueError(f"images must be a list of images [3, H, W], got one {list(images.shape)}; pass [image]")
    if not isinstance(images, Sequence | Tensor):
        raise TypeError(f"images must be a list of images [3, H, W], got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError("images is empty; give at least one image [3, H, W]")
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]")


def check_image(image: Any, name: str) -> None:
    """Checks an RGB image `[3, H, W]` with floating-point values in [0, 1].

    Raises:
        TypeError: if it is not a floating-point tensor.
        ValueError: if it has another shape, no pixels or values outside [0, 1].
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        found, first = (image.dtype, "") if isinstance(image, Tensor) else (type(image).__name__, "to_image and ")
        raise TypeError(
            f"{name} must be a floating-point tensor with values in [0, 1], got {found}; convert it with {first}"
            f"to_dtype(image, torch.float32, scale=True) of torchvision.transforms.v2.functional"
        )
    if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(
            f"{name} must be an RGB image [3, H, W] with at least one pixel, got {list(image.shape)}{_rgb_cure(image)}"
        )
    check_unit_range(image, name)


def _rgb_cure(image: Tensor) -> str:
    """How an image of another shape becomes `[3, H, W]`, as the end of a sentence; empty where that cannot be told."""
    if image.dim() == 2 or (image.dim() == 3 and image.shape[0] == 1):
        return "; it looks grey: image.expand(3, -1, -1) makes it RGB"
    if image.dim() == 3 and image.shape[0] == 4:
        return "; it looks like RGBA: image[:3] drops the transparency"
    if image.dim() == 3 and image.shape[2] == 3:
        return "; its channels are last: image.permute(2, 0, 1) puts them first"
    return "; it looks like a batch: list(image) has its images" if image.dim() == 4 else ""


def check_targets(targets: Sequence[dict[str, Any]] | None, images: Sequence[Tensor], num_classes: int) -> None:
    """Checks the ground truth of a training batch.

    Args:
        targets: one dictionary an image: `boxes` `[M, 4]`, (x1, y1, x2, y2) in pixels of the image, floating-point, and
            `labels` `[M]`, int64, from 1 to `num_classes - 1`; optionally `ignore` `[K, 4]`, ignore regions, as boxes,
            but their sides may be 0, as a crop leaves them.
        images: the images of the batch.
        num_classes: number of classes, background included.

    Raises:
        TypeError: if an entry has the wrong type.
        ValueError: if an entry is missing, or has the wrong shape or values.
    """
    if targets is None:
        raise ValueError("targets are needed in training mode; for detections call model.eval() first")
    if len(targets) != len(images):
        raise ValueError(f"there must be one target per image, got {len(targets)} targets for {len(images)} images")
    for index, target in enumerate(targets):
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            raise ValueError(f"targets[{index}] must have the keys 'boxes' and 'labels', missing: {missing}")
        _check_objects(target["boxes"], target["labels"], f"targets[{index}]", num_classes)
        if "ignore" in target:
            _check_ignore_regions(target["ignore"], f"targets[{index}]['ignore']")


def _check_objects(boxes: Any, labels: Any, name: str, num_classes: int) -> None:
    _check_layout(boxes, f"{name}['boxes']", "objects")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}['labels'] must be an int64 tensor, got {found}")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name} must have one label per box, got {len(boxes)} boxes and labels of shape {list(labels.shape)}"
        )
    good_box = boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    good_label = (labels >= 1) & (labels < num_classes)
    if bool((good_box & good_label).all()):  # one question to the device instead of two
        return
    if not bool(good_box.all()):
        first = int((~good_box).nonzero()[0])
        raise ValueError(
            f"{name}['boxes'][{first}] must be finite with x1 < x2 and y1 < y2, got {boxes[first].tolist()}; "
            f"drop such boxes from the data"
        )
    first = int((~good_label).nonzero()[0])
    raise ValueError(
        f"{name}['labels'][{first}] must lie in 1 to {num_classes - 1}, got {int(labels[first])}; "
        f"0 is the background, which num_classes={num_classes} counts"
    )


def _check_ignore_regions(regions: Any, name: str) -> None:
    _check_layout(regions, name, "ignore regions")
    if len(regions) == 0:  # as nearly always: no question to the device, which would stall its queue
        return
    good = regions.isfinite().all(dim=1) & (regions[:, 2:] >= regions[:, :2]).all(dim=1)
    if not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise ValueError(
            f"{name}[{first}] must be finite with x1 <= x2 and y1 <= y2, got {regions[first].tolist()}; "
            f"drop such regions from the data"
        )


def _check_layout(boxes: Any, name: str, content: str) -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        found = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {found}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{name} must have shape [M, 4], got {list(boxes.shape)}; without {content} use torch.zeros(0, 4)"
        )
