"""Image files from elsewhere: damaged, mislabelled, too large, or no files at all."""

from __future__ import annotations

import os
import random
import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image, ImageFile, features

from srtod.data import ImageError, decode_picture, image_size, read_image
from srtod.data.image import FORMATS

ORIENTATION = ExifTags.Base.Orientation


def picture() -> Image.Image:
    """24 x 16 pixels of noise."""
    return Image.frombytes("RGB", (24, 16), random.Random(0).randbytes(24 * 16 * 3))


def with_exif(kind: int, value: int, orientation: int = 6, count: int = 1) -> bytes:
    """EXIF of an orientation, and behind it the samples per pixel (0x0115) as a value of any kind."""
    entries = struct.pack("<HHIHH", ORIENTATION, 3, 1, orientation, 0) + struct.pack(
        "<HHII", 0x0115, kind, count, value
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        with_exif(2, 0x00414243),  # text in place of a number: Pillow cannot write it back
        with_exif(12, 10**9),  # lies far behind the end
        with_exif(13, 8),  # of a kind that is none
        with_exif(5, 8, count=2**31),
    ],
    ids=["text", "behind the end", "unknown kind", "endless"],
)
def test_sloppy_exif_beside_an_orientation(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of the EXIF
        assert image_size(path) == (16, 24)
        turned = read_image(path)
    picture().save(tmp_path / f"plain.{suffix}")
    assert torch.equal(turned, read_image(tmp_path / f"plain.{suffix}").rot90(-1, (1, 2)))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0no tiff", with_exif(3, 1, orientation=77)])
def test_exif_without_a_readable_orientation_is_left_aside(tmp_path: Path, exif: bytes) -> None:
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (24, 16)
    assert read_image(tmp_path / "a.jpg").shape == (3, 16, 24)


def test_an_eps_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    picture().save(tmp_path / "a.jpg", "EPS")
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.jpg cannot be read as an image \(cannot identify image file"):
            read(tmp_path / "a.jpg")
    assert not (tmp_path / "started").exists()


def test_the_formats_are_read_whatever_the_suffix_says(tmp_path: Path) -> None:
    has_codec = {"JPEG2000": features.check("jpg_2000"), "WEBP": features.check("webp")}
    for kind in FORMATS:
        if has_codec.get(kind, True):
            picture().save(tmp_path / "a.dat", kind)
            assert image_size(tmp_path / "a.dat") == (24, 16)
            assert read_image(tmp_path / "a.dat").shape == (3, 16, 24)


@pytest.mark.parametrize(
    "error", [struct.error("unpack"), RuntimeError("x"), KeyError(3), AssertionError(), IndexError()]
)
def test_whatever_a_decoder_raises_is_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: Any) -> None:
        raise error

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    with pytest.raises(
        ImageError, match=r"a\.png cannot be read as an image \(.+\); replace it or save it as 8-bit PNG$"
    ):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_no_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: Any) -> None:
        raise error

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    with pytest.raises(type(error)):
        read_image(tmp_path / "a.png")


def test_too_many_pixels_are_to_be_cut(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 20000 10000 255\n")
    for read in (read_image, image_size):
        with pytest.raises(
            ImageError, match=r"a\.ppm cannot .* limit of 178956970 pixels.*; cut it into smaller images$"
        ):
            read(tmp_path / "a.ppm")


def test_an_image_without_pixels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no pixels"):
        decode_picture(Image.new("RGB", (0, 4)))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, message in (("pipe.png", "is a pipe"), ("loop.png", "leads back to itself"), (".", "is a folder")):
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=message):
                read(tmp_path / name)


def test_damaged_files_give_an_image_or_one_sentence(tmp_path: Path) -> None:
    """Of every format; the sizes that the two readers tell agree."""
    generator, refused = random.Random(0), 0
    path = tmp_path / "a.dat"
    exif = Image.Exif()
    exif[ORIENTATION], exif[ExifTags.Base.Make] = 6, "maker"
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"):
        buffer = BytesIO()
        picture().save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        whole = buffer.getvalue()
        for _ in range(40):
            damaged = bytearray(whole[: generator.choice([None, generator.randrange(len(whole))])])
            for place in generator.sample(range(min(len(damaged), 300)), min(len(damaged), generator.choice([1, 4]))):
                damaged[place] = generator.choice([0, 1, 127, 255])
            path.write_bytes(damaged)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    size, (_, height, width) = image_size(path), read_image(path).shape
                assert size == (width, height)
            except ImageError as error:
                assert str(error).startswith(f"{path} cannot be read as an image (")  # noqa: PT017 (most are refused)
                assert "\n" not in str(error)  # noqa: PT017
                refused += 1
    assert 50 < refused < 270
