"""Files and folders are there whole, or as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from srtod._support import files as _files
from srtod._support.files import replacing, replacing_folder
from srtod.engine.config import TrainConfig
from srtod.engine.run import start_folder

ERRORS = [ValueError("wrong"), OSError(28, "No space left on device"), KeyboardInterrupt()]


def fill(folder: Path, text: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text(text)
    return folder


def test_a_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write("é")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == "é".encode()
    with replacing(tmp_path / "a", binary=True) as file:
        file.write(b"\xff")
    assert (tmp_path / "a").read_bytes() == b"\xff"
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


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*/a'"), replacing(tmp_path / "a") as file:
        file.write("text")

    def fill_up() -> None:
        with replacing_folder(tmp_path / "b") as folder:
            (folder / "file").symlink_to("/dev/full")
            (folder / "file").write_text("text")

    with pytest.raises(OSError, match=r"No space left on device: .*/b'"):
        fill_up()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(yaml, "safe_dump", full)
        with pytest.raises(OSError, match=r"r2 cannot be made \(No space left on device\); choose another output$"):
            start_folder(tmp_path / "r2", TrainConfig())
    assert not list(tmp_path.iterdir())
    assert start_folder(tmp_path / "r2", TrainConfig()).name == "r2"
    assert start_folder(tmp_path / "r2", TrainConfig()).name == "r2-2"


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "a", "the folder .*/no does not exist")):
        with pytest.raises(OSError, match=message), replacing(path):
            pytest.fail("entered")


def test_all_of_it_is_on_the_disk_before_it_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def syncing(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1])
        if events[-1] == tmp_path.name:
            raise OSError(22, "Invalid argument")  # as some network file systems do

    def moving(self: Path, target: Path) -> Path:
        events.append("move")
        return rename(self, target)

    rename = Path.rename
    monkeypatch.setattr(_files.os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", moving)
    monkeypatch.setattr(Path, "replace", moving)
    with replacing(tmp_path / "a") as file:
        file.write("text")
    assert events == ["part", "move", tmp_path.name]
    events.clear()
    with replacing_folder(tmp_path / "b") as folder:
        fill(folder / "in", "text")
    assert sorted(events[:-2]) == ["file", "in", "part", "sub"]
    assert events[-2:] == ["move", tmp_path.name]


@pytest.mark.parametrize("alone", [False, True])
def test_a_folder(tmp_path: Path, alone: bool) -> None:
    other = fill(tmp_path / ".a.0123.part", "of another process")
    for text in ("first", "second"):
        with replacing_folder(tmp_path / "new" / "a", alone=alone) as folder:
            fill(folder / text, text)
        assert [path.name for path in (tmp_path / "new" / "a").iterdir()] == [text]
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    with replacing_folder(tmp_path / "a", alone=alone):
        pass
    assert other.exists() != alone


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_leaves_the_folder_before(tmp_path: Path, error: BaseException) -> None:
    fill(tmp_path / "a", "before")

    def fail() -> None:
        with replacing_folder(tmp_path / "a", alone=True) as folder:
            fill(folder / "half", "half")
            raise error

    with pytest.raises(type(error), match="a is as it was" if isinstance(error, KeyboardInterrupt) else None):
        fail()
    assert (tmp_path / "a" / "sub" / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("which", [1, 2])
def test_a_failing_rename_leaves_the_folder_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, error: BaseException
) -> None:
    fill(tmp_path / "a", "before")
    rename, calls = Path.rename, []

    def failing(self: Path, target: Any) -> Path:
        calls.append(target)
        if len(calls) == which:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)), replacing_folder(tmp_path / "a", alone=True) as folder:
        fill(folder / "whole", "whole")
    assert len(calls) >= which
    assert (tmp_path / "a" / "sub" / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
