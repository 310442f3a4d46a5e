"""Videos, cameras and streams, by PyAV (`pip install srtod[video]`): frames in, a video of pictures out."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from srtod._support.extras import MissingExtraError
from srtod._support.reading import require_regular_file

__all__ = ["Frame", "Video", "VideoError", "VideoWriter", "is_stream", "is_video"]

SUFFIXES = frozenset(
    {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)
"""Suffixes of video files, in lower case."""

FORMATS = "asf,avi,flv,matroska,mov,mpeg,mpegts"
"""The containers that files may be, whatever their suffix says: playlists, which FFmpeg knows too, open other files."""

SCHEMES = ("http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "tcp", "udp")
"""How the addresses of streams begin."""

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
CAMERA = re.compile(r"(?:/dev/video)?(\d+)")

TIMEOUT = 10.0
"""Seconds without an answer after which a stream is lost."""

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each try to reach a lost stream again."""

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""H.264 by the first that FFmpeg has, or else MPEG-4."""

HIGHEST_RATE = 1000
"""Frames a second; above it a header is wrong."""


class VideoError(ValueError):
    """A video that cannot be read or written."""


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: how many frames come before it.
        time: seconds since the first frame.
        pixels: uint8 `[H, W, 3]`, RGB, upright.
    """

    number: int
    time: float
    pixels: np.ndarray[Any, Any]


def is_stream(source: str) -> bool:
    """Whether a source, by its name, is a stream."""
    return URL.match(source) is not None


def is_video(source: str | os.PathLike[str]) -> bool:
    """Whether a source, by its name, is a stream, a camera or a video file; a file or folder may be called `0`."""
    text = os.fspath(source)
    if is_stream(text):
        return True
    if CAMERA.fullmatch(text):
        return text.startswith("/dev/") or not Path(text).exists()
    return Path(text).suffix.lower() in SUFFIXES and not Path(text).is_dir()


class Video:
    """The frames of a video file, a camera or a stream, read one after the other.

        with Video("clip.mp4", every=5) as video:
            for found in predictor.stream((frame.pixels for frame in video), colour="rgb"):
                print(found)

    A camera or stream that drops is tried again after each of `PAUSES`. Damaged packets are left out, as players do.

    Args:
        source: a file; a camera's number, or its path, such as `/dev/video0`; or a stream's address, such as
            `rtsp://...`.
        every: one of so many frames is given, the first one first.

    Attributes:
        name: what messages call it: an address without passwords.
        rate: frames a second, of all.
        frames: how many are to come, as far as the file says it; None: unknown.
        damaged: number of packets left out so far.
        lost: a sentence, where the reading ended before the video did.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if PyAV is not installed.
        ValueError: if it is no video, nobody answers, the camera is not there, or `every` is less than 1.
    """

    def __init__(self, source: str | os.PathLike[str], *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._av = _pyav()
        self.every = every
        self.damaged = 0
        self.lost = ""
        self._end = Event()
        self.name, self._place, self._how, cure = _how_to_open(os.fspath(source))
        try:
            self._container = self._open()
        except (self._av.FFmpegError, VideoError) as error:
            raise VideoError(f"{self.name} cannot be read as a video ({_reason(error)}); {cure}") from error
        stream = self._container.streams.video[0]
        # A stream has no end that is known; what has one is not to begin anew after it.
        self._is_live = "timeout" in self._how and self._container.duration is None and self._container.size <= 0
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate and 0 < rate <= HIGHEST_RATE else Fraction(25)
        self.frames = -(-stream.frames // every) or None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        number = tries = 0
        begun: float | None = None  # by the clock
        offset = 0.0  # when this connection began
        while not self._end.is_set():
            try:
                if self._container is None:
                    self._container = self._open()
                first: float | None = None
                for frame in self._decoded():
                    tries = 0
                    begun = time.monotonic() if begun is None else begun
                    seconds = float(number / self.rate) if frame.time is None else frame.time
                    first = seconds if first is None else first
                    if number % self.every == 0:
                        yield Frame(number, max(0.0, offset + seconds - first), _upright(frame))
                    number += 1
                    if self._end.is_set():
                        return
                reason = "it ended"
                if not self._is_live:
                    return
            except (self._av.FFmpegError, VideoError) as error:
                reason = _reason(error)
            self.close()
            if not self._is_live or tries == len(PAUSES):
                again = f", and {tries} tries to reach it again failed" if self._is_live else ""
                self.lost = f"{self.name} broke off after {number} frames ({reason}){again}"
                return
            self._pause(PAUSES[tries])
            tries += 1
            offset = 0.0 if begun is None else time.monotonic() - begun

    def stop(self) -> None:
        """Lets the reading end before the next frame."""
        self._end.set()

    def close(self) -> None:
        """Closes the file or the connection."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> Any:
        begun = time.monotonic()
        try:
            container = self._av.open(self._place, **self._how)
        except self._av.FFmpegError as error:
            if "timeout" in self._how and time.monotonic() - begun >= TIMEOUT:
                raise VideoError(f"no answer in {TIMEOUT:g} s") from error
            raise
        try:
            if not container.streams.video:
                raise VideoError("it holds no pictures")
            stream = container.streams.video[0]
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # as of images
            if 0 < most < stream.width * stream.height:
                raise VideoError(
                    f"frames of {stream.width}x{stream.height} pixels are above the limit of {most} pixels"
                )
            stream.thread_type = "AUTO"
        except BaseException:
            container.close()
            raise
        return container

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(self._container.streams.video[0]):
            try:
                frames = packet.decode()
            except self._av.InvalidDataError:
                self.damaged += 1
                continue
            yield from frames

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._end.is_set() and time.monotonic() < until:  # a signal that came in `Event.wait` would lock it
            time.sleep(0.05)


class VideoWriter:
    """Writes pictures as an MP4 video.

    Args:
        path: the file to write.
        rate: frames a second.

    Raises:
        ImportError: if PyAV is not installed.
        OSError: if the file cannot be written.
        ValueError: if the pictures cannot be encoded.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av = _pyav()
        self._path = path
        self._rate = rate.limit_denominator(max(1, int(65535 / rate)))  # MPEG-4 takes no finer ticks
        self._last = -1
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, picture: Image.Image, seconds: float) -> None:
        """Adds a picture of mode "RGB", to be shown at this time; one of another size than the first is cut or padded.

        Times are rounded to the frame rate's ticks, and no tick has two pictures.
        """
        try:
            if self._container is None:
                self._begin(picture)
            size = self._stream.width, self._stream.height
            frame = self._av.VideoFrame.from_ndarray(np.asarray(picture.crop((0, 0, *size))), format="rgb24")
            frame.time_base = 1 / self._rate
            frame.pts = self._last = max(self._last + 1, round(seconds * self._rate))
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise self._named(error) from error

    def close(self) -> None:
        """Makes the file whole."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()
        except self._av.FFmpegError as error:
            raise self._named(error) from error

    def _begin(self, picture: Image.Image) -> None:
        width, height = (side + side % 2 for side in picture.size)  # colours have half the resolution
        encoder = next(name for name in ENCODERS if name in self._av.codecs_available)
        self._container = self._av.open(f"file:{self._path}", "w", format="mp4")
        quality = {"preset": "veryfast", "crf": "20"} if encoder == "libx264" else {}
        self._stream = self._container.add_stream(encoder, rate=self._rate, options=quality)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        if not quality:
            self._stream.bit_rate = int(width * height * self._rate / 5)  # a fifth of a bit for each pixel

    def _named(self, error: Any) -> OSError | VideoError:
        if error.errno in errno.errorcode and error.errno != errno.EINVAL:
            return OSError(error.errno, os.strerror(error.errno), str(self._path))
        return VideoError(f"the pictures cannot be encoded as a video ({_reason(error)}); leave them out")


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("videos, cameras and streams need PyAV; pip install 'srtod[video]'") from error
    return av


def _how_to_open(source: str) -> tuple[str, str, dict[str, Any], str]:
    """Of a source: its name in messages, its place, the other arguments of `av.open`, and what to do if that fails."""
    if is_stream(source):
        parts = urlsplit(source)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"{parts.scheme}:// is no stream; pass a file, or an address of {', '.join(SCHEMES)}")
        name = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        options = {"rtsp_flags": "prefer_tcp"} if parts.scheme.startswith("rtsp") else {}  # UDP loses packets
        how = {"timeout": TIMEOUT, "options": options}
        return name, source, how, "check the address, and that something sends there"
    if is_video(source) and (number := CAMERA.fullmatch(source)):
        place = f"/dev/video{number[1]}"
        if not Path(place).exists():
            here = ", ".join(sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*")))
            raise FileNotFoundError(f"camera {number[1]} is not there; cameras of this machine: {here or 'none'}")
        how = {"timeout": TIMEOUT, "format": "v4l2"}
        return f"camera {number[1]}", place, how, "does another program use it?"
    try:
        require_regular_file(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"the video {source} does not exist") from None
    if not Path(source).stat().st_size:
        raise VideoError(f"{source} is empty; record or copy it again")
    return source, f"file:{source}", {"options": {"format_whitelist": FORMATS}}, "convert it to MP4, or replace it"


def _reason(error: Any) -> str:
    return getattr(error, "strerror", None) or str(error)


def _upright(frame: Any) -> np.ndarray[Any, Any]:
    """The pixels of a decoded frame, turned as players turn it."""
    pixels: np.ndarray[Any, Any] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90) % 4)
