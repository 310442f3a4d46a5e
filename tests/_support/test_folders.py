"""Folders are there whole, or as they were, and stay the folders that they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from srtod._support import files as _files
from srtod._support.folders import remove_leftovers, replacing_folder

from .test_files import ERRORS

CONTENT = ("first", "second", "half", "whole", "sub", "in")


def fill(folder: Path, text: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text(text)
    return folder


def content(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_folder(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with replacing_folder(tmp_path / "new" / "a", CONTENT) as folder:
            fill(folder / text, text)
            assert (tmp_path / "new" / "a" / "first").exists() == (text == "second")
        assert content(tmp_path) == [f"new/a/{text}/sub/file"]


def test_a_folder_that_is_there_stays_with_what_is_of_others(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    inode = (tmp_path / "a").stat().st_ino  # of a mounted folder another one could not take the place
    for text in ("first", "second"):
        with replacing_folder(tmp_path / "link", CONTENT) as folder:
            fill(folder / text, text)
            (tmp_path / "a" / "mine").touch()
        assert content(tmp_path / "a") == sorted([f"{text}/sub/file", "mine"])
    assert (tmp_path / "a").stat().st_ino == inode
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_leaves_the_folder_before(tmp_path: Path, error: BaseException) -> None:
    fill(tmp_path / "a", "before")

    def fail(name: str) -> None:
        with replacing_folder(tmp_path / name, CONTENT) as folder:
            fill(folder / "half", "half")
            raise error

    for name in ("a", "b"):
        is_told = f"{name} is as it was" if isinstance(error, KeyboardInterrupt) else None
        with pytest.raises(type(error), match=is_told):
            fail(name)
    assert content(tmp_path) == ["a/sub/file"]
    assert (tmp_path / "a" / "sub" / "file").read_text() == "before"
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize("error", [OSError(18, "Invalid cross-device link"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_failing_rename_leaves_the_folder_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, error: BaseException, is_done: bool
) -> None:
    fill(tmp_path / "a", "before")
    rename, calls = Path.rename, []

    def failing(self: Path, target: Any) -> Path:
        calls.append(target)
        if len(calls) == which:
            if is_done:
                rename(self, target)
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)), replacing_folder(tmp_path / "a", CONTENT) as folder:
        fill(folder / "whole", "whole")
    assert len(calls) >= which
    assert content(tmp_path) == ["a/sub/file"]
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fill_up() -> None:
        with replacing_folder(tmp_path / "b", CONTENT) as folder:
            (folder / "file").symlink_to("/dev/full")
            (folder / "file").write_text("text")

    with pytest.raises(OSError, match=r"No space left on device: .*/b'"):
        fill_up()
    assert not list(tmp_path.iterdir())


def test_all_of_it_is_on_the_disk_before_it_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = Path.rename

    def syncing(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1])

    monkeypatch.setattr(_files.os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", lambda self, target: [events.append("move"), rename(self, target)][1])
    for place in ("b", "a"):
        (tmp_path / "a").mkdir(exist_ok=True)
        events.clear()
        with replacing_folder(tmp_path / place, CONTENT) as folder:
            fill(folder / "in", "text")
        assert sorted(events[:-2]) == ["file", "in", "part", "sub"]
        assert events[-2:] == ["move", "a" if place == "a" else tmp_path.name]


def test_leftovers_are_known_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (".a.0123abcd.part", "in/.b.json.0123abcd.before"):
        fill(tmp_path / name, "left")
    for name in ("in/.c.0123abcd.part", "c.part", ".c.part", ".c.0123abcd.partial", "in/d.0123abcd.part"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert content(tmp_path) == [".c.0123abcd.partial", ".c.part", "c.part", "in/d.0123abcd.part"]
    assert sorted(os.listdir(tmp_path / "in")) == ["d.0123abcd.part"]  # noqa: PTH208
