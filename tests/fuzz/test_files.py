"""Whatever a file holds, reading it works or ends in one sentence: no traceback, no hang, nothing half-written.

`SRTOD_FUZZ=100 pytest tests/fuzz` looks a hundred times as long.
"""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from srtod import convert, evaluate
from srtod._support.cli import run
from srtod.data import CocoDataset, read_image
from srtod.data.image import ImageError, image_size
from srtod.engine import TrainConfig
from srtod.models.checkpoint import load_detector
from srtod.train import parse_run

FUZZ = settings(
    max_examples=25 * int(os.environ.get("SRTOD_FUZZ", "1")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    print_blob=True,
)
MOST_SECONDS = 10
"""A command that needs more for a file of some hundred bytes hangs."""

SPECIAL: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e308, float("nan"), float("inf"), 10**400, "", " ", "a\nb", "\x00", "\ud800",
    "../../etc/passwd", "/etc/passwd", "0", "1e9", [], {}, [[]], [None], [1, 2, 3], [0, 0, 1e9, 1e9], {"id": {}},
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.recursive(st.integers(-3, 3), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a tree of dictionaries and lists."""
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one to three of its values replaced, taken away or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([("",), *(path for path in places(tree) if path)]))
        if last == "":
            return draw(VALUES)
        parent = tree
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "double"]))
        if kind == "remove":
            del parent[last]
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = draw(VALUES)
        if not isinstance(tree, dict | list) or not tree:
            break
    return tree


@st.composite
def edits(draw: st.DrawFn, size: int) -> list[tuple[str, int, bytes]]:
    """Cuts, overwrites or lengthens so many bytes, in one to four places."""
    kinds = st.sampled_from(["overwrite", "insert", "cut", "remove"])
    edit = st.tuples(kinds, st.integers(0, size), st.binary(max_size=6))
    return draw(st.lists(edit, min_size=1, max_size=4))


def edited(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(content)
    for kind, place, piece in changes:
        if kind == "overwrite":
            data[place : place + len(piece)] = piece
        elif kind == "insert":
            data[place:place] = piece
        elif kind == "cut":
            del data[place:]
        else:
            del data[place : place + 1 + len(piece)]
    return bytes(data)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Hypothesis keeps what it draws: for large files, draw the edits alone."""
    return edits(len(content)).map(lambda changes: edited(content, changes))


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what hangs, by an error that nothing expects."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def ends_by(kind: type[Exception], named: str) -> Iterator[None]:
    """Lets an error of this kind pass that names the file."""
    try:
        yield
    except kind as error:
        if named not in str(error):
            raise


def works_or_says_why(
    command: Callable[[list[str]], None], arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs a command: its status is 0 or 2, an error is one line, and no part of a file is left in the folder."""
    capsys.readouterr()
    status: Any = 0
    with bounded():
        try:
            run(lambda: command(arguments))
        except SystemExit as end:
            status = end.code or 0
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert status in (0, 2), printed
    assert status == 0 or (lines and "error: " in lines[-1]), printed
    assert "Traceback" not in printed, printed
    assert status == 0 or len(lines[-1]) < 2000, printed
    assert not list(folder.rglob("*.part")), sorted(folder.rglob("*"))


FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
TRUTH: dict[str, Any] = {
    "info": {"year": 2024, "description": "two images"},
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 6, 6], "area": 36, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [9.5, 8, 12, 5], "area": 60, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "drone"}, {"id": 2, "name": "bird", "supercategory": "animal"}],
}
RESULTS = [
    {"image_id": 1, "category_id": 1, "bbox": [4, 4, 6, 6], "score": 0.75},
    {"image_id": 2, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5},
]
CONFIGURATION = {
    "extends": "base/cpu",
    "detector": "faster_rcnn",
    "anchor_scale": 2.0,
    "threshold": "auto",
    "milestones": [8, 11],
    "min_size": [256, 320],
    "epochs": 2,
    "lr": 0.01,
}
DATA_YAML = {"path": ".", "train": "images", "val": "images", "nc": 2, "names": ["drone", "bird"]}

VOC_XML = b"""<?xml version="1.0" encoding="utf-8"?>
<annotation><size><width>40</width><height>30</height></size><object><name>drone</name><difficult>0</difficult>
<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images, in `images/`, and room for what describes them."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def as_yaml(tree: Any) -> bytes:
    return yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def hostile(tree: Any, written: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(mutated(tree).map(written), damaged(written(tree)))


@FUZZ
@given(content=hostile(TRUTH, as_json))
def test_ground_truth(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "annotations.json").write_bytes(content)
    (folder / "results.json").write_bytes(as_json(RESULTS))
    works_or_says_why(evaluate.main, ["images/annotations.json", "results.json"], folder, capsys)

    def train(arguments: list[str]) -> None:
        data = CocoDataset(*arguments)
        for index in range(len(data)):
            data[index]

    works_or_says_why(train, ["images/annotations.json", "images"], folder, capsys)


@FUZZ
@given(content=hostile(RESULTS, as_json))
def test_detections(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "truth.json").write_bytes(as_json(TRUTH))
    (folder / "results.json").write_bytes(content)
    arguments = ["truth.json", "results.json", "--json", "metrics.json", "--overwrite"]
    works_or_says_why(evaluate.main, arguments, folder, capsys)


@FUZZ
@given(data=hostile(DATA_YAML, as_yaml), label=damaged(b"0 0.5 0.5 0.1 0.2\n1 0.25 0.25 0.1 0.1\n"))
def test_yolo(data: bytes, label: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_bytes(label)
    (folder / "data.yaml").write_bytes(data)
    works_or_says_why(convert.main, ["yolo", "data.yaml", "out.json", "--overwrite"], folder, capsys)


@FUZZ
@given(label=damaged(b"4,4,6,6,1,4,0,0\n9,8,12,5,0,0,0,0\n"))
def test_visdrone(label: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "a.txt").write_bytes(label)
    (folder / "annotations" / "b.txt").write_bytes(b"")
    works_or_says_why(convert.main, ["visdrone", ".", "out.json", "--overwrite"], folder, capsys)


@FUZZ
@given(annotation=damaged(VOC_XML), names=damaged(b"a\nb\n"))
def test_voc(annotation: bytes, names: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder / "voc"
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    if not (root / "JPEGImages").exists():
        (root / "JPEGImages").symlink_to(folder / "images")
    (root / "Annotations" / "a.xml").write_bytes(annotation)
    (root / "Annotations" / "b.xml").write_bytes(VOC_XML)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(names)
    works_or_says_why(convert.main, ["voc", "voc", "out.json", "--overwrite"], folder, capsys)


@FUZZ
@given(content=hostile(CONFIGURATION, as_yaml))
def test_configurations(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_bytes(content)

    def read(arguments: list[str]) -> None:
        parse_run(TrainConfig, arguments, prog="train", description="", epilog="")

    works_or_says_why(read, ["--config", "run.yaml"], folder, capsys)


@FUZZ
@given(data=st.data(), kind=st.sampled_from(FORMATS), mode=st.sampled_from(["RGB", "L"]))
def test_images(data: st.DataObject, kind: str, mode: str, folder: Path) -> None:
    whole = io.BytesIO()
    Image.linear_gradient("L").resize((20, 12)).convert(mode).save(whole, kind)
    path = folder / "damaged"
    path.write_bytes(data.draw(damaged(whole.getvalue())))
    for read in (read_image, image_size):
        with bounded(), ends_by(ImageError, str(path)):
            read(path)


@FUZZ
@given(data=st.data())
def test_checkpoints(data: st.DataObject, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.ckpt"
    if data.draw(st.booleans()):
        whole = checkpoint.read_bytes()
        path.write_bytes(edited(whole, data.draw(edits(len(whole)))))
    else:
        content = torch.load(checkpoint, weights_only=True)
        content["srtod"] = data.draw(mutated(content["srtod"]))
        torch.save(content, path)
    with bounded(), ends_by(ValueError, str(path)):
        load_detector(path)
