"""Only regular files are opened: what else a path may lead to is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srtod._support.reading import require_regular_file


def test_regular_files_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("a")
    require_regular_file(tmp_path / "b")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to("round")
    for path, message in (
        (tmp_path / "pipe", "pipe is a pipe, a socket or a device"),
        (tmp_path / "round", "round is a link that leads back to itself"),
        (tmp_path, "is a folder; pass a file"),
        (tmp_path / "a\0b", "holds a null byte"),
    ):
        with pytest.raises(ValueError, match=message):
            require_regular_file(path)
    with pytest.raises(FileNotFoundError):
        require_regular_file(tmp_path / "none")
