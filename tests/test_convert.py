"""`python -m srtod.convert`: the file it writes, the summary it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from srtod import convert as module
from srtod._support.cli import run
from srtod.data import LAYOUTS, CocoDataset, Layout, open_folder
from srtod.data import layouts as registry
from srtod.data.conversion import Conversion

WIDTH, HEIGHT = 80, 60


@pytest.fixture
def visdrone(tmp_path: Path) -> Path:
    """Splits train and val, each with one image of a car, a van and an ignored region."""
    root = tmp_path / "visdrone"
    for split in ("train", "val"):
        folder = root / f"VisDrone2019-DET-{split}"
        for place in ("images", "annotations"):
            (folder / place).mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images/a.jpg")
        lines = "2,3,10,12,1,4,0,2\n30,3,8,9,1,5,1,0\n40,40,20,20,0,0,0,0\n9,9,0,5,1,4,0,0\n"
        (folder / "annotations/a.txt").write_text(lines)
    return root


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for place in ("images", "labels"):
        (root / place).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    (root / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("train: images\nnames: [car, bus]\n")
    return root


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command line in this process and returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    try:
        run(module.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_visdrone(
    visdrone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "val.json"
    assert convert(monkeypatch, "visdrone", visdrone, output, "--split", "val") == 0
    printed = capsys.readouterr().out
    images = visdrone / "VisDrone2019-DET-val/images"
    assert f"{output}: COCO annotations of val; its images are in {images}" in printed
    for row in ("images 1", "without objects 0", "objects 2", "car 1", "van 1", "bus 0", "ignore regions 1"):
        assert row in " ".join(printed.split())
    assert "category 0, ignored regions 1 boxes without area, dropped 1" in " ".join(printed.split())
    data = CocoDataset(output, images)
    target = data[0][1]
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[2, 3, 12, 15], [30, 3, 38, 12]], [4, 5])
    assert target["ignore"].tolist() == [[40, 40, 60, 60]]
    with pytest.warns(UserWarning, match="left out 1 boxes"):
        expected = open_folder(visdrone).splits["val"].read()[0]
    written = json.loads(output.read_text())
    assert written.pop("annotations") == list(expected.pop("annotations"))
    assert written.items() >= expected.items()


def test_yolo(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "train.json"
    assert convert(monkeypatch, "yolo", yolo / "data.yaml", output) == 0
    assert f"its images are in {yolo / 'images'}" in capsys.readouterr().out
    data = CocoDataset(output, yolo / "images")
    assert data.class_names == ["car", "bus"]
    assert data[0][1]["boxes"].tolist() == [[30, 15, 50, 45]]
    assert data[0][1]["labels"].tolist() == [2]


def test_an_existing_file_is_kept(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "train.json"
    output.write_text("mine")
    assert convert(monkeypatch, "yolo", yolo, output) == 2
    assert f"{output} exists; choose another name, or pass --overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert convert(monkeypatch, "yolo", yolo, output, "--overwrite") == 0
    assert len(json.loads(output.read_text())["images"]) == 1


def test_what_is_no_file_needs_no_overwrite_and_stays(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        (tmp_path / "read").open("w") as target,
        subprocess.Popen(["cat", pipe], stdout=target),
        pipe.open("w"),  # waits for the reader
    ):
        assert convert(monkeypatch, "yolo", yolo, pipe) == 0
    assert pipe.is_fifo()
    assert len(json.loads((tmp_path / "read").read_text())["images"]) == 1


def test_nothing_is_half_written(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (yolo / "labels/a.txt").write_text("7 0.5 0.5 0.25 0.5\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.json").write_text("mine")
    assert convert(monkeypatch, "yolo", yolo, out / "train.json", "--overwrite") == 2
    assert "labels/a.txt: line 1: class 7 is not one of the 2 classes" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("train.json", "mine")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("visdrone", "visdrone", "o.json"), "visdrone has the splits train, val; choose one with --split"),
        (("visdrone", "visdrone", "o.json", "--split", "mini"), "has the splits train, val; choose one with --split"),
        (("visdrone", "yolo", "o.json"), "yolo is no visdrone set; looked for images/ and annotations/*.txt"),
        (("yolo", "visdrone", "o.json"), "visdrone is no yolo set; looked for data.yaml"),
        (("yolo", "nowhere", "o.json"), "nowhere does not exist; pass the folder of the set"),
        (("yolo", "yolo", "nowhere/o.json"), "cannot write nowhere/o.json: the folder nowhere does not exist"),
        (("crosses", "yolo", "o.json"), "invalid choice: 'crosses'"),
    ],
)
@pytest.mark.usefixtures("visdrone", "yolo")
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def read_dots(source: Path, split: str) -> Conversion:
    """Reads a file of one `image x y` a line: objects of 4x4 pixels."""
    conversion = Conversion(source, source.parent, {1: split})
    for line in source.read_text().splitlines():
        name, x, y = line.split()
        image = conversion.add_image(source.parent / name)
        assert image is not None
        conversion.add_object(image, 1, [float(x), float(y), 4, 4])
    return conversion


def test_a_layout_is_a_reader_and_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dots = Layout("Dots", "train.dots", lambda path: {file.stem: file for file in path.glob("*.dots")}, read_dots)
    monkeypatch.setattr(registry, "LAYOUTS", (*LAYOUTS, dots))
    monkeypatch.setattr("srtod.data.LAYOUTS", registry.LAYOUTS)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    (tmp_path / "train.dots").write_text("a.png 3 5\n")
    folder = open_folder(tmp_path)
    assert (folder.layout, list(folder.splits)) == ("Dots", ["train"])
    assert folder.splits["train"].dataset()[0][1]["boxes"].tolist() == [[3, 5, 7, 9]]
    assert registry.layout_names().endswith(" or Dots")
    assert convert(monkeypatch, "dots", tmp_path, tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == folder.splits["train"].read()[0]
    capsys.readouterr()
    assert convert(monkeypatch, "crosses", tmp_path, tmp_path / "no.json") == 2
    names = ", ".join(layout.name.lower() for layout in registry.LAYOUTS if layout.read is not None)
    assert f"(choose from {names})" in capsys.readouterr().err.replace("'", "")
