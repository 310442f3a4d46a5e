"""Files are there whole, or as they were; what is no regular file is never replaced."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import srtod
from srtod._support import files as _files
from srtod._support.files import replacing

ERRORS = [ValueError("wrong"), OSError(28, "No space left on device"), KeyboardInterrupt()]


def write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text)


def test_a_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write("é\udcff")  # the second is how Python reads a name of a file that is not UTF-8
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == "é".encode() + b"\xff"
    (tmp_path / "a").chmod(0o640)
    with replacing(tmp_path / "a", binary=True) as file:
        file.write(b"\xff")
    assert (tmp_path / "a").read_bytes() == b"\xff"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_leaves_the_file_before(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("before")

    def fail() -> None:
        with replacing(tmp_path / "a") as file:
            file.write("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_that_others_gave_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_text("of the user")
    (tmp_path / "victim").write_text("of the user")
    (tmp_path / "b.part").symlink_to("victim")
    for name in ("a", "b", "n" * 255):
        write(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "a.part").read_text() == (tmp_path / "victim").read_text() == "of the user"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "1.json").write_text("before")
    (tmp_path / "latest.json").symlink_to("results/1.json")
    (tmp_path / "link").symlink_to(tmp_path / "latest.json")
    (tmp_path / "next.json").symlink_to("results/2.json")
    write(tmp_path / "link", "after")
    write(tmp_path / "next.json", "new")
    assert (tmp_path / "results" / "1.json").read_text() == "after"
    assert (tmp_path / "results" / "2.json").read_text() == "new"
    assert all((tmp_path / name).is_symlink() for name in ("link", "latest.json", "next.json"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links.*loop"):
        write(tmp_path / "loop", "text")


@pytest.fixture
def device(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a device of Linux's memory devices, 3 for null and 7 for full.

    Root gets one of its own, as a test that fails could replace the machine's.
    """

    def make(minor: int) -> Path:
        place = tmp_path / "device"
        if os.geteuid() != 0:
            return Path({3: "/dev/null", 7: "/dev/full"}[minor])
        try:
            os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            place.open("w").close()
        except PermissionError:
            pytest.skip("this container may not make devices")
        return place

    return make


def test_a_device_stays(tmp_path: Path, device: Callable[[int], Path]) -> None:
    null = device(3)
    (tmp_path / "link").symlink_to(null)
    for path in (null, tmp_path / "link"):
        write(path, "text")
        assert stat.S_ISCHR(null.lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


def test_a_full_device_is_told(device: Callable[[int], Path]) -> None:
    full = device(7)
    with pytest.raises(OSError, match=rf"No space left on device: '{full}'"):
        write(full, "text")


def test_a_pipe_is_written_through_once_somebody_reads_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"nobody reads the pipe .*/pipe; start its reader first"):
        write(pipe, "text")
    with (tmp_path / "read").open("w") as target, subprocess.Popen(["cat", pipe], stdout=target) as reader:
        with pipe.open("w"):  # waits for the reader
            write(pipe, "text" * 100_000)  # more than a pipe holds
        assert reader.wait(timeout=30) == 0
    assert (tmp_path / "read").read_text() == "text" * 100_000
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("redirect", ["", "> out", ">> out", "| cat"])
def test_standard_output_is_written_through(tmp_path: Path, redirect: str) -> None:
    code = "from srtod._support.files import replacing\nprint('before', flush=True)\n"
    code += "with replacing('stdout') as file: file.write('text\\n')\nprint('after')"
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is, which a test that fails could replace
    (tmp_path / "out").write_text("old\n")
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$CODE" {redirect}'],
        cwd=tmp_path,
        env={**os.environ, "CODE": code, "PYTHONPATH": str(Path(srtod.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "stdout").is_symlink()
    found = (tmp_path / "out").read_text() + done.stdout
    assert found == ("" if redirect == "> out" else "old\n") + "before\ntext\nafter\n"


def listen(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, r"place is a folder; pass the path of a file"),
        (listen, r"place is a socket; pass the path of a file"),
        (lambda path: path.symlink_to("no/file"), r"cannot write .*/place: the folder .*/no does not exist; make it"),
    ],
)
def test_what_cannot_be_written_is_told_at_once(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "place")
    with pytest.raises(OSError, match=message), replacing(tmp_path / "place"):
        pytest.fail("entered")


def test_a_mounted_file_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "a").write_text("before")
    inode = (tmp_path / "a").stat().st_ino
    monkeypatch.setattr(Path, "replace", busy)  # as Linux answers for the target of a bind mount
    write(tmp_path / "a", "after")
    assert ((tmp_path / "a").read_text(), (tmp_path / "a").stat().st_ino) == ("after", inode)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_all_of_it_is_on_the_disk_before_it_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace = Path.replace

    def syncing(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1])
        if events[-1] == tmp_path.name:
            raise OSError(22, "Invalid argument")  # as some network file systems do

    monkeypatch.setattr(_files.os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", lambda self, target: [events.append("move"), replace(self, target)][1])
    write(tmp_path / "a", "text")
    assert events == ["part", "move", tmp_path.name]
