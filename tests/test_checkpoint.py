"""Checkpoint files: written whole or not at all, and refused with the reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from srtod.checkpoint import describe, load_detector, write_checkpoint
from srtod.models import build_detector

MODEL = {"name": "faster_rcnn", "num_classes": 2, "backbone": "mobilenet_v2", "channels": 16}


@pytest.fixture
def content() -> dict[str, Any]:
    detector = build_detector(**MODEL)
    return {
        "state_dict": {f"detector.{name}": value for name, value in detector.state_dict().items()},
        "srtod": describe(MODEL, ["drone"], [1]),
        "metrics": {"AP": 0.5},
    }


def test_round_trip(content: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(content, tmp_path / "new" / "a.ckpt")
    trained = load_detector(tmp_path / "new" / "a.ckpt")
    assert trained.metrics == {"AP": 0.5}
    assert torch.equal(
        trained.detector.neck.state_dict()["inner_blocks.0.0.bias"],
        content["state_dict"]["detector.neck.inner_blocks.0.0.bias"],
    )


@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), RuntimeError("file write failed"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_file_before(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"before")

    def failing(content: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        write_checkpoint(content, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt does not exist"):
        load_detector(tmp_path / "absent.ckpt")


def test_a_truncated_file_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        load_detector(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], {"model": {}}])
def test_a_foreign_file_is_refused(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of srtod's training"):
        load_detector(tmp_path / "a.ckpt")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Malicious()))
    torch.save(Malicious(), tmp_path / "torch.ckpt")
    for name in ("pickle.ckpt", "torch.ckpt"):
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            load_detector(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_detector_of_another_version_is_told(content: dict[str, Any], tmp_path: Path) -> None:
    content["srtod"] = content["srtod"] | {"version": "9.9", "model": MODEL | {"channels": 32}}
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"written by srtod 9\.9, holds a detector that srtod .* cannot build"):
        load_detector(tmp_path / "a.ckpt")
