"""`srtod.Predictor`: a checkpoint and images in, objects out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby, islice
from os import PathLike
from pathlib import Path
from typing import TypeAlias, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from srtod.data.image import decode_picture, decoding, read_image
from srtod.models import ImageReconstruction
from srtod.models.checkpoint import load_detector
from srtod.models.checks import check_image

__all__ = ["Picture", "Predictor"]

Picture: TypeAlias = str | PathLike[str] | Image.Image | Tensor
"""What `Predictor` takes for an image."""

Item = TypeVar("Item")


class Predictor:
    """Finds objects with a trained detector.

        predictor = srtod.Predictor("runs/swarm/checkpoints/best.ckpt")
        detections = predictor("a.jpg")                 # an image: a dictionary
        first, second = predictor(["a.jpg", "b.png"])   # a list of images: a list of them
        for box, label, score in zip(first["boxes"], first["labels"], first["scores"]):
            print(predictor.class_names[label - 1], float(score), box.tolist())

    Class names, preprocessing and the detector's options come from the checkpoint. An image is

    - a path: a file of one of `srtod.data.image.FORMATS`, see `srtod.data.read_image`;
    - a PIL image, of any of the modes that files have;
    - a tensor `[3, H, W]`, RGB: floating-point in [0, 1], or uint8 in 0 to 255, as `torchvision.io` decodes it.

    NumPy arrays are refused: whether theirs is RGB or OpenCV's BGR cannot be told. `PIL.Image.fromarray(rgb)` or
    `torch.from_numpy(rgb).permute(2, 0, 1)` say it.

    Args:
        checkpoint: a checkpoint of `python -m srtod.train`.
        device: "auto" for the first GPU where there is one and else the CPU, or a device such as "cuda:1".
        batch_size: the most images at once. Only images of one size that follow each other share a batch, so that no
            image is padded because of another; more than one is faster on a GPU, and changes nothing but rounding.
        autocast: torch.bfloat16 or torch.float16 to let most of the network compute in it, which is faster on a GPU and
            changes scores by some thousandths; None for float32.
        score_threshold: detections must score above this; None for the training run's.
        detections_per_image: the most detections an image; None for the training run's.

    Attributes:
        detector: the detector, in evaluation mode.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
        device: where the detector is.

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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {autocast}")
        options = {"score_threshold": score_threshold, "detections_per_image": detections_per_image}
        self.device = _device(device)
        trained = load_detector(
            Path(checkpoint), self.device, **{name: value for name, value in options.items() if value is not None}
        )
        self.detector = trained.detector
        self.class_names = trained.class_names
        self.category_ids = trained.category_ids
        self.batch_size = batch_size
        self.autocast = autocast

    @overload
    def __call__(self, images: Picture) -> dict[str, Tensor]: ...  # type: ignore[overload-overlap] # text is a Sequence
    @overload
    def __call__(self, images: Sequence[Picture]) -> list[dict[str, Tensor]]: ...
    def __call__(self, images: Picture | Sequence[Picture]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Finds the objects of one image or of several.

        Args:
            images: an image or a sequence of images, which may be empty; images are decoded batch by batch, but all
                detections are held: see `stream` for very many.

        Returns:
            A dictionary of tensors on the CPU, or one for each image of the sequence, best first: `boxes` `[K, 4]`,
            (x1, y1, x2, y2) in pixels of the image, `labels` `[K]` from 1 and `scores` `[K]` in [0, 1].

        Raises:
            FileNotFoundError: if there is no such file.
            TypeError: if something is no image.
            ValueError: if an image cannot be decoded, or has another shape or other values than above.
        """
        if isinstance(images, (str, PathLike, Image.Image, Tensor)):
            return next(self.stream([images]))
        if not isinstance(images, Sequence):
            raise TypeError(f"images must be an image or a list of images, got {_kind(images)}")
        return list(self.stream(images))

    def stream(self, images: Iterable[Picture]) -> Iterator[dict[str, Tensor]]:
        """As a call with a list, but takes images and yields detections batch by batch, for lists without an end."""
        tensors = (as_tensor(image, f"images[{index}]") for index, image in enumerate(images))
        for batch in batches(tensors, self.batch_size, lambda image: image.shape):
            yield from self.detect(batch)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Finds the objects in one batch.

        Args:
            images: `[3, H, W]` in [0, 1], on any device; those of other sizes than the largest are padded.
        """
        with self._precision():
            results = self.detector([image.to(self.device) for image in images])
        return [{name: values.cpu() for name, values in detections.items()} for detections in results]

    def reconstruct(self, image: Tensor) -> ImageReconstruction:
        """The self-reconstruction of an image `[3, H, W]` in [0, 1], see `Detector.reconstruct`.

        Raises:
            RuntimeError: if the detector has no self-reconstruction.
        """
        with self._precision():
            [parts] = self.detector.reconstruct([image.to(self.device)])
        return parts

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def as_tensor(image: Picture, name: str) -> Tensor:
    """An image of any of the kinds that `Predictor` takes as a tensor `[3, H, W]` in [0, 1].

    Args:
        image: the image.
        name: what messages call it where it has no file name.

    Raises:
        FileNotFoundError, TypeError, ValueError: as a call of `Predictor`.
    """
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        with decoding(name, "convert it to a PIL image of mode 'RGB'"):  # Pillow may only have opened its file so far
            return decode_picture(image)
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a path, a PIL image or a tensor [3, H, W], got {_kind(image)}")
    tensor = image / 255 if image.dtype == torch.uint8 else image
    check_image(tensor, name)
    return tensor.to(torch.float32)


def batches(images: Iterable[Item], most: int, shape: Callable[[Item], torch.Size]) -> Iterator[list[Item]]:
    """Groups images of one shape that follow each other, at most so many at once."""
    for _, group in groupby(images, shape):
        while batch := list(islice(group, most)):
            yield batch


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


def _kind(image: object) -> str:
    name = type(image).__name__
    return f"{name}; make it a PIL image by PIL.Image.fromarray, in RGB order" if name == "ndarray" else name
