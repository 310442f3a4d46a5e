"""`srtod.Predictor`: a checkpoint and images in, objects out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from os import PathLike, fspath
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srtod._support.machine import processor
from srtod.data.image import decode_picture, decoding, read_image, scaled
from srtod.models import ImageReconstruction
from srtod.models.checkpoint import load_detector
from srtod.models.checks import check_image
from srtod.visualization import drawn_from

from .detections import Detections
from .merging import suppress
from .slicing import Slicing, detect_sliced

__all__ = ["Colour", "Picture", "Predictor"]

Picture: TypeAlias = "str | PathLike[str] | Image.Image | Tensor | np.ndarray[Any, Any]"
"""What `Predictor` takes for an image."""

Colour = Literal["rgb", "bgr"]
"""The order of a NumPy image's channels: BGR is OpenCV's."""

ACROSS_CLASSES = 0.5
"""The intersection over the smaller box from which two boxes of any classes are taken for one object."""

INSTRUCTIONS = {torch.bfloat16: ("bf16",), torch.float16: ("fp16", "asimdhp")}
"""What the names of a processor's instruction sets for a type hold, of x86 and of ARM."""

Item = TypeVar("Item")


class Predictor:
    """Finds objects with a trained detector.

        predictor = srtod.Predictor("runs/swarm/checkpoints/best.ckpt")
        detections = predictor("a.jpg")                 # an image: its `Detections`
        first, second = predictor(["a.jpg", "b.png"])   # a list of images: a list of them
        for box, name, score in zip(first["boxes"], first.names, first["scores"]):
            print(name, float(score), box.tolist())
        first.save("found.png")

    Class names, preprocessing and the detector's options come from the checkpoint. An image is

    - a path: a file of one of `srtod.data.image.FORMATS`, see `srtod.data.read_image`;
    - a PIL image, of any of the modes that files have;
    - a tensor `[3, H, W]`, RGB: floating-point in [0, 1], or uint8 in 0 to 255, as `torchvision.io` decodes it;
    - a NumPy array `[H, W, 3]` or, grey, `[H, W]`, uint8 in 0 to 255, if `colour` says whether it is RGB or BGR; or
      uint16, which is scaled as 16-bit files are.

    Files, PIL images and arrays of more than 8 bits are scaled by the intensity range of the training run.

    Args:
        checkpoint: a checkpoint of `python -m srtod.train`: a file, or its address, see `srtod.load`.
        device: "auto" for the first GPU where there is one and else the CPU, or a device such as "cuda:1".
        batch_size: the most images at once. Only images of one size that follow each other share a batch, so that no
            image is padded because of another; more than one is faster on a GPU, and changes nothing but rounding.
        autocast: torch.bfloat16 or torch.float16 to let most of the network compute in it, which is faster on a GPU and
            on a CPU with instructions for it, and changes scores by some thousandths; None for float32. Warns of a CPU
            without them.
        score_threshold: detections must score above this; None for the training run's.
        detections_per_image: the most detections an image; None for the training run's, which hold for each tile of a
            sliced image.
        slicing: how images that are larger than a tile are cut, the size of the tiles alone, or "auto" for tiles of the
            training images' size; None: images go whole through the detector.
        class_agnostic_nms: whether an object is reported once even if several classes claim it: of boxes that overlap
            by over half of the smaller one, the best stays.
    Attributes:
        detector: the detector, in evaluation mode.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
        device: where the detector is.
        drawn_from: the score from which detections are drawn, where no other is asked for: that of the best F1 in the
            evaluation that came with the checkpoint, or 0.5 where the checkpoint is older.

        intensity_range: the values of images of more than 8 bits that become 0 and 1; None: 0 and 65535.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        IsADirectoryError: if it is a folder.
        ValueError: if the checkpoint is damaged or foreign, the device is not there, or an option is out of its range.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        device: str | torch.device = "auto",
        *,
        batch_size: int = 1,
        autocast: torch.dtype | None = None,
        score_threshold: float | None = None,
        detections_per_image: int | None = None,
        slicing: Slicing | int | Literal["auto"] | None = None,
        class_agnostic_nms: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {autocast}")
        options = {"score_threshold": score_threshold, "detections_per_image": detections_per_image}
        self.device = _device(device)
        if autocast is not None and self.device.type == "cpu":
            _warn_of_emulation(autocast)
        trained = load_detector(
            checkpoint, self.device, **{name: value for name, value in options.items() if value is not None}
        )
        self.detector = trained.detector
        self.class_names = trained.class_names
        self.category_ids = trained.category_ids
        self.drawn_from = drawn_from(trained.metrics)
        self.intensity_range = trained.intensity_range
        self.batch_size = batch_size
        self.autocast = autocast
        self.class_agnostic_nms = class_agnostic_nms
        self.slicing = Slicing(slicing) if isinstance(slicing, int | str) else slicing
        if self.slicing is not None and self.slicing.size == "auto":
            self.slicing = replace(self.slicing, size=_training_size(trained.image_size, checkpoint))
        self._most = detections_per_image

    @overload
    def __call__(self, images: Picture, *, colour: Colour | None = None) -> Detections: ...  # type: ignore[overload-overlap] # text is a Sequence
    @overload
    def __call__(self, images: Sequence[Picture], *, colour: Colour | None = None) -> list[Detections]: ...
    def __call__(
        self, images: Picture | Sequence[Picture], *, colour: Colour | None = None
    ) -> Detections | list[Detections]:
        """Finds the objects of one image or of several.

        Args:
            images: an image or a sequence of images, which may be empty; images are decoded batch by batch, but all
                detections are held: see `stream` for very many.
            colour: the order of the channels of NumPy arrays; None: they are refused.

        Returns:
            The image's `Detections`, or a list of those of each image: a dictionary of `boxes` `[K, 4]`, (x1, y1, x2,
            y2) in pixels of the image, `labels` `[K]` from 1 and `scores` `[K]` in [0, 1], best first, on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError: if something is no image.
            ValueError: if an image cannot be decoded, or has another shape or other values than above.
        """
        if isinstance(images, (str, PathLike, Image.Image, Tensor, np.ndarray)):
            return next(self.stream([images], colour=colour))
        if not isinstance(images, Sequence):
            raise TypeError(f"images must be an image or a list of images, got {type(images).__name__}")
        return list(self.stream(images, colour=colour))

    def stream(self, images: Iterable[Picture], *, colour: Colour | None = None) -> Iterator[Detections]:
        """As a call with a list, but takes images and yields detections batch by batch, for lists without an end."""
        if colour not in (None, "rgb", "bgr"):
            raise ValueError(f"colour must be 'rgb', 'bgr' or None, got {colour!r}")
        span = self.intensity_range
        pairs = ((image, as_tensor(image, f"images[{index}]", colour, span)) for index, image in enumerate(images))
        for batch in batches(pairs, self.batch_size, lambda pair: pair[1].shape):
            for (image, tensor), found in zip(batch, self.detect([tensor for _, tensor in batch]), strict=True):
                yield Detections(
                    found,
                    size=(tensor.shape[1], tensor.shape[2]),
                    class_names=self.class_names,
                    category_ids=self.category_ids,
                    name=fspath(image) if isinstance(image, (str, PathLike)) else "",
                    read=partial(as_tensor, image, "the image", colour, span),
                    drawn_from=self.drawn_from,
                )

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Finds the objects in one batch; with `slicing` in each image by itself, its tiles in batches.

        Args:
            images: `[3, H, W]` in [0, 1], on any device; those of other sizes than the largest are padded.
        """
        slicing = self.slicing
        if slicing is None or all(max(image.shape[-2:]) <= slicing.pixels for image in images):
            results = self._detect(images)
        else:
            results = [
                detect_sliced(image, self._detect, slicing, batch_size=self.batch_size, detections=self._most)
                for image in images
            ]
        if self.class_agnostic_nms:
            results = [self._across_classes(result) for result in results]
        return [{name: values.cpu() for name, values in detections.items()} for detections in results]

    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        with self._precision():
            results: list[dict[str, Tensor]] = self.detector([image.to(self.device) for image in images])
        return results

    def _across_classes(self, result: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = suppress(result["boxes"], result["scores"], overlap="ios", threshold=ACROSS_CLASSES)
        return {name: values[kept] for name, values in result.items()}

    def reconstruct(self, image: Picture, *, colour: Colour | None = None) -> ImageReconstruction:
        """The self-reconstruction of an image, see `Detector.reconstruct`; the image goes whole through the detector.

        Raises:
            RuntimeError: if the detector has no self-reconstruction.
            FileNotFoundError, TypeError, ValueError: as a call.
        """
        with self._precision():
            tensor = as_tensor(image, "the image", colour, self.intensity_range)
            [parts] = self.detector.reconstruct([tensor.to(self.device)])
        return parts

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def as_tensor(
    image: Picture,
    name: str,
    colour: Colour | None = None,
    intensity_range: tuple[float, float] | None = None,
) -> Tensor:
    """An image of any of the kinds that `Predictor` takes as a tensor `[3, H, W]` in [0, 1].

    Args:
        image: the image.
        name: what messages call it where it has no file name.
        colour: the order of the channels of a NumPy array.
        intensity_range: the values of more than 8 bits that become 0 and 1; None: 0 and 65535.

    Raises:
        FileNotFoundError, TypeError, ValueError: as a call of `Predictor`.
    """
    if isinstance(image, (str, PathLike)):
        return read_image(image, intensity_range)
    if isinstance(image, Image.Image):
        with decoding(name, "convert it to a PIL image of mode 'RGB'"):  # Pillow may only have opened its file so far
            return decode_picture(image, intensity_range)
    if isinstance(image, np.ndarray):
        return _from_array(image, name, colour, intensity_range)
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a path, a PIL image or a tensor [3, H, W], got {type(image).__name__}")
    tensor = image / 255 if image.dtype == torch.uint8 else image
    check_image(tensor, name)
    return tensor.to(torch.float32)


def _from_array(
    image: np.ndarray[Any, Any], name: str, colour: Colour | None, intensity_range: tuple[float, float] | None
) -> Tensor:
    if colour is None:
        raise TypeError(f"{name} is a NumPy array, which may be RGB or OpenCV's BGR; set colour to 'rgb' or 'bgr'")
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] != 3)
        or not image.size
    ):
        raise ValueError(
            f"{name} must be uint8 or uint16 [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}; scale other "
            f"ranges to 0 to 255 and leave out alpha"
        )
    pixels = np.stack([image] * 3, axis=2) if image.ndim == 2 else image if colour == "rgb" else image[:, :, ::-1]
    if image.dtype == np.uint16:
        return scaled(np.ascontiguousarray(pixels.transpose(2, 0, 1)), intensity_range)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    return tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def batches(images: Iterable[Item], most: int, shape: Callable[[Item], torch.Size]) -> Iterator[list[Item]]:
    """Groups images of one shape that follow each other, at most so many at once."""
    for _, group in groupby(images, shape):
        while batch := list(islice(group, most)):
            yield batch


def _training_size(size: tuple[int, int] | None, checkpoint: str | PathLike[str]) -> int:
    if size is None:
        raise ValueError(
            f"{fspath(checkpoint)} was written before checkpoints knew the size of their training images; pass the "
            f"size of tiles as a number, such as 640"
        )
    return max(size)


def _warn_of_emulation(dtype: torch.dtype) -> None:
    _, supported = processor()
    if supported and not any(part in name for name in supported for part in INSTRUCTIONS[dtype]):
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this processor has no instructions for {name}: detections are right, but take longer than in float32; "
            f"use 32-true (autocast=None) here",
            stacklevel=3,
        )


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # of "meta" nothing comes back
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(name)!r} cannot be used ({reason}); pass 'auto', 'cpu' or 'cuda'") from error
    return device
