"""Image files: which ones there are, their size, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from srtod._support.errors import first_line, is_out_of_memory
from srtod._support.reading import require_regular_file

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ImageError",
    "decode_picture",
    "decoding",
    "deep_pixels",
    "fit_intensity_range",
    "image_size",
    "list_images",
    "read_image",
    "scaled",
]

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded, whatever a file's suffix says: Pillow knows more, and starts Ghostscript for EPS."""

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of image files, in lower case; files are taken by them in any case."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright; those from 5 on exchange width and height."""


PERCENTILES = (0.1, 99.9)
"""Between which `fit_intensity_range` takes what is there: dead and hot pixels lie beyond."""

PIXELS_FITTED = 2**16
"""How many pixels of an image it looks at, at most about twice as many."""


class ImageError(ValueError):
    """An image that cannot be decoded."""


def read_image(path: str | os.PathLike[str], intensity_range: tuple[float, float] | None = None) -> Tensor:
    """Decode an image file to float32 [3, H, W] in [0, 1], RGB, as `decode_picture` does.

    Args:
        path: the file.
        intensity_range: as of `decode_picture`.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageError: if the file is no image of one of `FORMATS`, is damaged, has no pixels or more than Pillow's limit
            of 178,956,970 (twice `PIL.Image.MAX_IMAGE_PIXELS`), or holds values without a known range (32-bit, float).
    """
    with _opened(path) as picture:
        # Otherwise Pillow maps what it can into memory, and a grey TIFF with an orientation comes out torn.
        picture.filename = ""
        return decode_picture(picture, intensity_range)


def decode_picture(picture: Image.Image, intensity_range: tuple[float, float] | None = None) -> Tensor:
    """A Pillow picture as float32 [3, H, W] in [0, 1], RGB.

    Grey is repeated to three channels; 16-bit grey is divided by 65535, so that a sensor's 12 or 14 bits come out dark
    without an intensity range; of 16-bit colours Pillow reads the upper 8 bits; palette and CMYK images are
    converted to RGB; transparency is dropped, as OpenCV and most detection code do; the EXIF orientation is applied, as
    every viewer does. Pillow decodes, because torchvision needs it anyway and its modes tell all of these apart.

    Args:
        picture: the picture.
        intensity_range: the values of 16-bit, 32-bit and floating-point grey that become 0 and 1; see `scaled`. It
            changes nothing of 8-bit pictures.

    Raises:
        ValueError: if there are no pixels, or they have no known range (32-bit or float, without an intensity range). A
            damaged file that Pillow has
            only opened so far ends in an error of its decoder, see `decoding`.
    """
    picture.load()
    if (method := UPRIGHT.get(_orientation(picture.getexif))) is not None:
        picture = picture.transpose(method)
    if 0 in picture.size:
        raise ValueError("it has no pixels")
    if not _is_deep(picture):
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    grey = np.array(picture)
    if intensity_range is None and picture.mode == "F":
        raise ValueError("floating-point pixels have no known range without an intensity_range")
    if intensity_range is None and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError("32-bit pixels have no known range without an intensity_range")
    return scaled(grey, intensity_range).expand(3, -1, -1).contiguous()


def scaled(values: np.ndarray, intensity_range: tuple[float, float] | None) -> Tensor:
    """Values of more than 8 bits as float32 in [0, 1]: from low to high, what is beyond clipped, what is no number 0.

    Args:
        values: of any shape.
        intensity_range: low and high; None: 0 and 65535.
    """
    if intensity_range is None:
        return torch.from_numpy(values.astype(np.int64)).to(torch.float32).div_(65535)
    low, high = intensity_range
    return torch.from_numpy((values.astype(np.float64) - low) / (high - low)).clamp_(0, 1).nan_to_num_(0).float()


def deep_pixels(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The grey values [H, W] of an image of more than 8 bits, as they are in the file; None of one of 8 bits.

    Raises:
        FileNotFoundError, ImageError: as `read_image`.
    """
    with _opened(path) as picture:
        picture.filename = ""  # see `read_image`
        return np.array(picture) if _is_deep(picture) else None


def fit_intensity_range(paths: Sequence[str | os.PathLike[str]], most: int = 100) -> tuple[float, float] | None:
    """The 0.1 and 99.9 percentiles of the images of more than 8 bits; None if there are none, or none can be read.

    Args:
        paths: image files.
        most: how many of them are looked at, evenly spaced.

    Raises:
        ValueError: if both percentiles are the same value.
    """
    values = []
    for index in range(min(most, len(paths))):
        try:
            grey = deep_pixels(paths[index * len(paths) // min(most, len(paths))])
        except ImageError:  # reported when it is to be trained on
            continue
        if grey is not None:
            flat = grey[np.isfinite(grey)]
            values.append(flat[:: max(1, flat.size // PIXELS_FITTED)])
    if not values or not any(map(len, values)):
        return None
    low, high = (float(value) for value in np.percentile(np.concatenate(values), PERCENTILES))
    if low == high:
        raise ValueError(
            f"the images have one grey level, {low:g}, to which no intensity_range can be fitted; pass low and high, "
            f"or none"
        )
    return low, high


def _is_deep(picture: Image.Image) -> bool:
    """Whether a picture has grey of more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image in pixels, as `read_image` gives it, from the file's header alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageError: if the file is not an image.
    """
    with _opened(path) as file:
        # Not file.getexif(): for PNG that decodes the pixels, to find what may stand behind them.
        turned = _orientation(partial(Image.Image.getexif, file)) >= 5
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


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """The EXIF orientation, from 1 to 8; 1 where there is none, or where damage hides it: the pixels are still good.

    Pillow's `exif_transpose` also writes all EXIF anew, and fails at any tag of a wrong type.
    """
    try:
        value = read_exif().get(ExifTags.Base.Orientation)
        return int(value) if value in UPRIGHT else 1
    except Exception:  # where bytes are wrong, Pillow stumbles over them in any way
        return 1


@contextmanager
def decoding(name: object, cure: str = "replace it or save it as 8-bit PNG") -> Iterator[None]:
    """Turns whatever Pillow and its decoders raise inside into an `ImageError`, except that memory ran out.

    Args:
        name: what the message calls the image.
        cure: what to do about it.
    """
    try:
        yield
    except Exception as error:  # decoders stumble over wrong bytes in any way
        if is_out_of_memory(error):
            raise
        if isinstance(error, Image.DecompressionBombError):
            cure = "cut it into smaller images"
        raise ImageError(f"{name} cannot be read as an image ({first_line(error)}); {cure}") from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """An image file of one of `FORMATS`, with an error that names it where it cannot be opened or read inside."""
    try:
        require_regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"the image {path} does not exist") from None
    except ValueError as error:
        raise ImageError(str(error)) from error
    with decoding(path), Image.open(path, formats=FORMATS) as file:
        yield file
