"""Image files: which ones there are, their size, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

__all__ = ["SUFFIXES", "ImageError", "decode_picture", "image_size", "list_images", "read_image"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of image files, in lower case; files are taken by them in any case."""

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class ImageError(ValueError):
    """An image file that cannot be decoded."""


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Decode an image file to float32 [3, H, W] in [0, 1], RGB, as `decode_picture` does.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageError: if the file is not an image, is truncated, or holds values without a known range (32-bit, float).
    """
    with _opened(path) as picture:
        # Otherwise Pillow maps what it can into memory, and a grey TIFF with an orientation comes out torn.
        picture.filename = ""
        return decode_picture(picture)


def decode_picture(picture: Image.Image) -> Tensor:
    """A Pillow picture as float32 [3, H, W] in [0, 1], RGB.

    Grey is repeated to three channels; 16-bit grey is divided by 65535, so that a sensor's 12 or 14 bits come out dark
    and want to be stretched before; of 16-bit colours Pillow reads the upper 8 bits; palette and CMYK images are
    converted to RGB; transparency is dropped, as OpenCV and most detection code do; the EXIF orientation is applied, as
    every viewer does. Pillow decodes, because torchvision needs it anyway and its modes tell all of these apart.

    Raises:
        ValueError: if the pixels have no known range (32-bit, float).
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if not picture.mode.startswith("I"):
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    grey = np.array(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit pixels have no known range")
    return torch.from_numpy(grey).to(torch.float32).div_(65535).expand(3, -1, -1).contiguous()


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image in pixels, as `read_image` gives it, from the file's header alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageError: if the file is not an image.
    """
    with _opened(path) as file:
        # Not file.getexif(): for PNG that decodes the pixels, to find what may stand behind them.
        turned = Image.Image.getexif(file).get(ExifTags.Base.Orientation) in _TURNED
        width, height = file.size
        if isinstance(file, TiffImageFile):  # of which Pillow gives the size as turned
            width, height = (int(file.tag_v2[tag]) for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    return (height, width) if turned else (width, height)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder and its subfolders, by their suffix, in alphabetical order."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122 (much faster)
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """An image file, with an error that names it where it cannot be opened or read inside."""
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"the image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all four
        raise ImageError(f"{path} cannot be read as an image ({error}); replace it or save it as 8-bit PNG") from error
