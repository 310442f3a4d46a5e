"""Checkpoint files: written whole or not at all, and refused with the reason."""

from __future__ import annotations

import os
import pickle
import random
import re
import time
import zipfile
from itertools import cycle
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch

from srtod._version import __version__
from srtod.models import build_detector
from srtod.models.checkpoint import describe, load_detector, read_checkpoint, write_checkpoint
from srtod.models.reconstruction import ReconstructionHead

MODEL = {
    "name": "faster_rcnn",
    "num_classes": 2,
    "backbone": "mobilenet_v2",
    "channels": 16,
    "reconstruction": "subpixel",
}


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


def test_a_checkpoint_from_before_loads(tmp_path: Path) -> None:
    """It names no options of proposals, and its DetectoRS had a plain convolution in the stem."""
    model = {"name": "detectors", "num_classes": 2, "backbone": "resnet18", "channels": 16, "sac": False}
    detector = build_detector(**model, self_reconstruction=False).eval()
    state = {f"detector.{name}": value for name, value in detector.state_dict().items()}
    stems = [name for name in state if re.search(r"\.layers\.0\.0\.(gamma|beta)$", name)]
    assert len(stems) == 4  # of both backbones
    old = {name: value for name, value in state.items() if name not in stems}
    content = {"state_dict": old, "srtod": describe(model | {"self_reconstruction": False}, ["drone"], [1])}
    write_checkpoint(content, tmp_path / "a.ckpt")
    loaded = load_detector(tmp_path / "a.ckpt").detector
    assert (loaded.head.rpn.allowed_border, loaded.head.rpn.post_nms_top_n()) == (None, 1000)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        features, expected = (d.neck(d.backbone(image[None] - 0.5))["p2"] for d in (loaded, detector))
    torch.testing.assert_close(features, expected)


def test_a_checkpoint_that_names_no_reconstruction_has_the_papers_head(content: dict[str, Any], tmp_path: Path) -> None:
    detector = build_detector(**MODEL | {"reconstruction": "paper"})
    content["state_dict"] = {f"detector.{name}": value for name, value in detector.state_dict().items()}
    content["srtod"]["model"] = {name: value for name, value in MODEL.items() if name != "reconstruction"}
    write_checkpoint(content, tmp_path / "a.ckpt")
    loaded = load_detector(tmp_path / "a.ckpt").detector
    assert isinstance(loaded.self_reconstruction.reconstruction_head, ReconstructionHead)  # type: ignore[union-attr]


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


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_checkpoint_that_is_being_written_again_and_again_is_always_read_as_a_whole(
    content: dict[str, Any], tmp_path: Path, is_whole: bool
) -> None:
    """And would not be if it were written in its place: that this test can see."""
    path = tmp_path / "last.ckpt"
    write = write_checkpoint if is_whole else torch.save
    versions = [
        content | {"state_dict": {f"detector.{part}": torch.full((50_000,), k) for part in range(8)}} for k in (1, 2)
    ]
    write_checkpoint(versions[0], path)
    ended, read, broken = Event(), [], 0

    def train() -> None:
        for version in cycle(versions):
            if ended.is_set():
                return
            write(version, path)

    writer = Thread(target=train)
    writer.start()
    try:
        deadline = time.monotonic() + 20
        while (len(set(read)) < 2 or len(read) < 20) and not broken and time.monotonic() < deadline:
            try:
                weights = read_checkpoint(path)["state_dict"].values()
                [value] = {int(weight.max()) for weight in weights}
                read.append(value)
            except ValueError:  # damaged, or of both versions
                broken += 1
    finally:
        ended.set()
        writer.join()
    assert broken == (not is_whole)
    assert not is_whole or set(read) == {1, 2}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt does not exist"):
        load_detector(tmp_path / "absent.ckpt")


def test_a_full_disk_is_told_as_such(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a\.ckpt could not be written \(No space left on device\); the one before"):
        write_checkpoint(content, tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_torch_makes_of_a_full_disk_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match=r"a\.ckpt could not be written \(No space left on device\)"):
        write_checkpoint({}, tmp_path / "a.ckpt")


@pytest.mark.parametrize("length", [0, 5000, -1000])
def test_a_truncated_file_is_refused(content: dict[str, Any], tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged or not a checkpoint"):
        load_detector(path)


def test_zeros_within_the_weights_are_found(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content, path)
    damaged = bytearray(path.read_bytes())
    weights = max(content["state_dict"].values(), key=torch.numel)
    start = damaged.index(weights.numpy().tobytes())
    damaged[start : start + 4096] = bytes(4096)
    path.write_bytes(damaged)
    torch.load(path, weights_only=True)  # notices nothing
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged"):
        load_detector(path)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), PermissionError(13, "no", "a")]
)
def test_other_errors_of_reading_are_not_called_damage(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    write_checkpoint(content, tmp_path / "a.ckpt")
    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(type(error)) as raised:
        read_checkpoint(tmp_path / "a.ckpt")
    assert raised.value is error


def test_a_folder_is_told_as_such(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder; pass a \.ckpt file of a training run"):
        load_detector(tmp_path)
    write_checkpoint(content, tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(IsADirectoryError, match=r"is a folder; pass .*/checkpoints/best\.ckpt$"):
        load_detector(tmp_path)


def test_damaged_files_are_refused_whatever_is_wrong_in_them(content: dict[str, Any], tmp_path: Path) -> None:
    path, generator, refused = tmp_path / "a.ckpt", random.Random(0), set()
    write_checkpoint(content, path)
    whole = path.read_bytes()
    directory = whole.rindex(b"data.pkl")  # the archive's, in the central directory
    for _ in range(150):
        damaged = bytearray(whole)
        for low, high in ((0, 3000), (directory - 100, len(whole))):  # of pickle and archive; weights fill the rest
            for place in generator.sample(range(low, high), generator.choice([0, 1, 4])):
                damaged[place] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)  # some bytes change nothing but a number
        except ValueError as error:
            refused.add(type(error.__cause__))
    assert len(refused) > 3


@pytest.mark.parametrize(
    "foreign",
    [
        *({"state_dict": {}}, [1, 2], {"model": {}}, {"state_dict": {}, "srtod": {"version": "0"}}),
        {"state_dict": {}, "srtod": describe({}, ["drone", 3], [1, 2])},  # type: ignore[list-item]
        {"state_dict": {}, "srtod": describe({}, ["drone"], [1, 2])},
        {"state_dict": {}, "srtod": describe({}, ["drone"], [1]), "metrics": [0.5]},
        {"state_dict": {}, "srtod": describe({}, ["drone"], [1]) | {"image_size": [[], 128]}},
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of srtod's training"):
        load_detector(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            None,
            torch.nan,
            r"a\.ckpt holds NaN or infinity in the weight detector\..*; use another checkpoint of the run$",
        ),
        (None, -torch.inf, "holds NaN or infinity in the weight"),
        (7, torch.zeros(1), r"a\.ckpt names a weight by int, not by text; use another checkpoint of the run$"),
        ("detector.more", [1.0], "holds something else than a plain tensor as the weight detector.more"),
        ("detector.more", torch.zeros(1).expand(10**13), "something else than a plain tensor"),  # 4 bytes, not 40 TB
        ("detector.more", torch.zeros(1, device="meta"), "something else than a plain tensor"),
    ],
)
def test_weights_that_are_no_finite_tensors_are_refused(
    content: dict[str, Any], tmp_path: Path, name: Any, value: Any, message: str
) -> None:
    if name is None:
        next(iter(content["state_dict"].values())).view(-1)[-1] = value
    else:
        content["state_dict"][name] = value
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path / "a.ckpt")


def test_options_in_place_of_the_files_are_not_blamed_on_it(content: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"^score_threshold must be from 0 to less than 1, got 2$"):
        load_detector(tmp_path / "a.ckpt", score_threshold=2)
    with pytest.raises(TypeError, match=r"^build_detector has no option 'score_treshold'"):
        load_detector(tmp_path / "a.ckpt", score_treshold=0.5)


def test_weights_that_a_checkpoint_names_are_not_fetched(content: dict[str, Any], tmp_path: Path) -> None:
    content["srtod"]["model"] = MODEL | {"weights": str(tmp_path / "absent.pth")}
    write_checkpoint(content, tmp_path / "a.ckpt")
    load_detector(tmp_path / "a.ckpt")


def test_a_compressed_file_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    """What torch writes is never compressed, and a few kilobytes may unfold to any size."""
    write_checkpoint(content, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"b\.ckpt is damaged"):
        load_detector(tmp_path / "b.ckpt")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is a pipe, a socket or a device"):
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
    message = r"written by srtod 9\.9, holds a detector that srtod .* cannot build .*; install srtod 9\.9 to use it$"
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path / "a.ckpt")
    content["srtod"] = content["srtod"] | {"version": __version__}
    write_checkpoint(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"cannot build .*; use another checkpoint$"):
        load_detector(tmp_path / "a.ckpt")
