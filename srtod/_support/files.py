"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

__all__ = ["beside", "replacing", "sync", "sync_names"]


@contextmanager
def replacing(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` once all of it is on the disk; after an error `path` is as it was.

    It holds UTF-8 text, or bytes if `binary`. It is opened on entry, so that a long computation inside does not end at
    a folder that cannot be written to. Until it is complete it is `.NAME.*.part` beside its place.

    A link is followed: it stays, and what it leads to is replaced. A device, a pipe and `/dev/stdout` stay too: they
    are sent all of it at the end.

    Raises:
        OSError: if the folder of `path` is missing or not writable; if `path` is a folder, a disk, a socket, or a pipe
            that nobody reads.
    """
    place = _behind_links(Path(path))
    if isinstance(place, int) or (place.exists() and not place.is_file()):
        with _sending(place, Path(path), binary) as file:
            yield file
        return
    if not place.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {place.parent} does not exist; make it first")
    part = beside(place, "part")
    try:
        with _NewFile(part, place) as raw, io.BufferedWriter(raw) as buffer:
            if place.exists():
                os.fchmod(raw.fileno(), stat.S_IMODE(place.stat().st_mode))
            with _as_text(buffer, binary) as file:
                yield file
                file.flush()
                raw.sync()
        try:
            part.replace(place)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(part, place)  # a file that is mounted, as by `docker -v`, cannot be replaced
            part.unlink()
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_names(place.parent)


def beside(path: Path, kind: str) -> Path:
    """A new name beside a path: `.NAME.*.part` of what is being written, `.NAME.*.before` of what it replaces.

    See `srtod._support.folders.is_leftover`.
    """
    name = os.fsdecode(os.fsencode(path.name)[:200])  # names may have 255 bytes
    return path.with_name(f".{name}.{uuid4().hex[:8]}.{kind}")


def sync(path: Path) -> None:
    """Puts a file on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Puts a folder's names on the disk: until then a power cut may bring back what was replaced.

    Some network file systems cannot do it. That is no error, for by now the files are complete and in their place.
    """
    with suppress(OSError):
        sync(folder)


class _NewFile(io.FileIO):
    """A new file, whose errors name the place that it is for: those of `write` and `fsync` name none."""

    def __init__(self, path: Path, place: Path) -> None:
        self.place = place
        super().__init__(path, "x")  # never a file or a link that is there

    def write(self, data: Any, /) -> int:
        with _naming(self.place):
            return super().write(data)

    def sync(self) -> None:
        with _naming(self.place):
            os.fsync(self.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def _as_text(file: IO[bytes], binary: bool) -> Iterator[IO[Any]]:
    """The file itself if `binary`, or one that takes text. Names of files that are not UTF-8 keep their bytes."""
    if binary:
        yield file
        return
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", write_through=True)
    try:
        yield text
    finally:
        with suppress(OSError):  # it has been told by `flush`
            text.detach()


@contextmanager
def _sending(place: Path | int, path: Path, binary: bool) -> Iterator[IO[Any]]:
    """Collects what is written for something that is no regular file, or is open already, and sends it at the end."""
    with _naming(path):
        mode = os.stat(place).st_mode  # noqa: PTH116 (it may be a number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder; pass the path of a file")
    if isinstance(place, Path) and not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise OSError(f"{path} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}; pass the path of a file")
    try:
        # Without O_NONBLOCK the call would wait until somebody reads a pipe.
        descriptor = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(f"nobody reads the pipe {path}; start its reader first") from error
    with io.FileIO(descriptor, "w") as stream:
        if isinstance(place, Path):
            os.set_blocking(descriptor, True)
        collected = io.BytesIO()
        with _as_text(collected, binary) as file:
            yield file
        content = collected.getvalue()
        with _naming(path):
            while content:
                content = content[stream.write(content) :]


def _behind_links(path: Path) -> Path | int:
    """Where links lead: a path, or the number of an open file of this process, such as 1 for `/dev/stdout`."""
    own = os.path.realpath("/proc/self/fd")
    for _ in range(40):  # as many as Linux follows
        if path.name.isdecimal() and os.path.realpath(path.parent) == own:
            return int(path.name)
        if not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
