"""`python -m srtod.inspect`: what it prints, the picture that it leaves, and how it ends on bad input."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srtod import inspect
from srtod._support.cli import run
from srtod.engine import DataConfig, DetectionData, TrainConfig
from srtod.models.anchors import fit_anchor_scale
from srtod.train import parse_run


@pytest.fixture(autouse=True)
def cars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A COCO folder `cars` of one training and one test image with an object each, in the current folder."""
    folder = tmp_path / "cars"
    (folder / "images").mkdir(parents=True)
    for split, size in (("train", 8), ("test", 20)):
        Image.effect_noise((64, 48), 50).save(folder / "images" / f"{split}.png")
        content: dict[str, Any] = {
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 64, "height": 48}],
            "annotations": [{"id": 5, "image_id": 1, "category_id": 2, "bbox": [4, 4, size, size], "iscrowd": 0}],
            "categories": [{"id": 2, "name": "car"}, {"id": 3, "name": "bus"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str:
    """The exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["inspect", *arguments])
    try:
        run(inspect.main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "cars", "--decode") == 1
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[0] == "cars: COCO layout"
    assert "verytiny, 0-8 px 1 (100 %) 0 (0 %)" in lines
    assert "small, 16-32 px 0 (0 %) 1 (100 %)" in lines
    fit = fit_anchor_scale(torch.tensor([[8.0, 8.0]]))
    names = "faster_rcnn, cascade_rcnn, detectors, tridentnet"
    assert f"{fit.scale:g} for {names} (mean IoU {fit.mean_iou:.2f})" in lines
    assert lines.count("1 classes without objects") == 2
    assert printed.endswith(
        "runs/inspect/cars.png: sizes, objects per image, classes\n"
        "to train: python -m srtod.train --data cars --config small\n"
    )
    assert [str(path) for path in Path().rglob("*.png") if "images" not in path.parts] == ["runs/inspect/cars.png"]
    with Image.open("runs/inspect/cars.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50


def test_a_file_with_its_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "cars/train.json", "cars/images", "--plot", "sizes.png") == 1
    assert "train: worth a look" in capsys.readouterr().out
    assert Path("sizes.png").is_file()
    assert not Path("runs").exists()


def test_no_picture_is_overwritten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/inspect")
    folder.mkdir(parents=True)
    (folder / "cars.png").write_text("mine")
    assert call(monkeypatch, "cars") == 1
    assert (folder / "cars.png").read_text() == "mine"
    assert (folder / "cars-2.png").is_file()
    capsys.readouterr()
    assert call(monkeypatch, "cars", "--plot", "runs/inspect/cars.png") == 2
    printed = capsys.readouterr()
    assert printed.err == "error: runs/inspect/cars.png exists; pass another --plot, or move it away\n"
    assert not printed.out  # it says so before it works


def test_problems_of_files_and_between_splits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(Path("cars/test.json").read_text())
    content["images"].append({"id": 2, "file_name": "train.png", "width": 64, "height": 48})
    content["images"].append({"id": 3, "file_name": "gone.png", "width": 64, "height": 48})
    Path("cars/test.json").write_text(json.dumps(content))
    assert call(monkeypatch, "cars") == 1
    printed = capsys.readouterr().out
    assert "images missing from cars/images; training refuses the set\n         gone.png" in printed
    assert "all splits: worth a look" in printed
    assert (
        "images that are in train and test; a test should not have been seen in training\n         train.png" in printed
    )


def test_categories_that_differ_between_splits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(Path("cars/test.json").read_text())
    content["categories"] = [{"id": 2, "name": "car"}, {"id": 3, "name": "van"}, {"id": 4, "name": "bus"}]
    Path("cars/test.json").write_text(json.dumps(content))
    assert call(monkeypatch, "cars") == 1
    printed = capsys.readouterr().out
    line = "1  splits with other categories than train; training refuses to evaluate the one on the other\n"
    assert f"{line}         test (without 3 bus, with 3 van and 4 bus)\n" in printed


def test_decoding_is_suggested_where_it_was_not_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "only 20 images a split were decoded; --decode takes all\n\nruns/inspect/cars"
    assert call(monkeypatch, "cars") == 1
    printed = capsys.readouterr().out
    assert hint in printed
    assert "other categories" not in printed
    assert call(monkeypatch, "cars", "--decode") == 1
    assert hint not in capsys.readouterr().out


def test_what_a_reader_leaves_out_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / "air" / folder).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "air/images/a.jpg")
    (tmp_path / "air/annotations/a.txt").write_text("1,1,4,4,1,4,0,0\n1,1,0,4,1,4,0,0\n9,9,9,9,0,0,0,0\n")
    assert call(monkeypatch, "air") == 1
    printed = capsys.readouterr().out
    assert printed.startswith("air: VisDrone layout\n")
    assert "left out 1 boxes, which have no area inside their image" in printed
    assert "ignore regions 1" in [" ".join(line.split()) for line in printed.splitlines()]


def test_labels_without_an_image_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "air" / folder).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "air/images/a.jpg")
    for name in "ab":
        (tmp_path / f"air/labels/{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "air/data.yaml").write_text("train: images\nnames: [car]\n")
    assert call(monkeypatch, "air") == 1
    printed = capsys.readouterr().out
    assert "train: worth a look\n" in printed
    assert "left out 1 label files without an image of the same name: labels/b.txt; add the images" in printed


def test_an_export_that_lacks_its_test_folder_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a `test` that is `val` is no leak."""
    for split in ("train", "valid"):
        for folder in ("images", "labels"):
            (tmp_path / "air" / split / folder).mkdir(parents=True)
        Image.effect_noise((64, 48), 50).save(tmp_path / f"air/{split}/images/{split}.png")
        (tmp_path / f"air/{split}/labels/{split}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for test in ("../test/images", "../valid/images"):
        text = f"train: ../train/images\nval: ../valid/images\ntest: {test}\nnames: [car]\n"
        (tmp_path / "air/data.yaml").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert call(monkeypatch, "air") == 0, capsys.readouterr().out
            data = DetectionData(DataConfig(data="air"), 0)
        assert (len(data.train_set), len(data.test_set)) == (1, 1)


def test_a_set_without_objects(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        content = json.loads(Path(f"cars/{split}.json").read_text())
        Path(f"cars/{split}.json").write_text(json.dumps(content | {"annotations": []}))
    assert call(monkeypatch, "cars") == 1
    assert "no objects in train to fit anchors to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["cars/images"], "has no known layout"),
        (["cars/train.json", "nowhere"], "the image folder nowhere does not exist"),
        (["nowhere.json", "cars/images"], "nowhere.json does not exist"),
        (["cars", "--plot", "nowhere/a.png"], "cannot write nowhere/a.png: the folder nowhere does not exist"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().glob("*.png"))
    assert not Path("runs").exists()


def training_command(printed: str) -> list[str]:
    """The arguments of `train` in the command that is printed at last."""
    start, arguments = printed.splitlines()[-1].split("srtod.train ")
    assert start == "to train: python -m "
    return shlex.split(arguments)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), []),
        (("val", "test"), ["--train-split", "val", "--test-split", "test"]),
    ],
)
def test_the_training_command_fits_the_set(
    names: tuple[str, str],
    splits: list[str],
    cars: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crowded = json.loads((cars / "train.json").read_text())
    crowded["annotations"] = [crowded["annotations"][0] | {"id": number} for number in range(1, 132)]
    other = json.loads((cars / "test.json").read_text())
    for path in cars.glob("*.json"):
        path.unlink()
    for name, content in zip(names, (crowded, other), strict=True):
        (cars / f"{name}.json").write_text(json.dumps(content))
    folder = cars.rename(cars.with_name("my cars"))
    assert call(monkeypatch, "my cars") == 1
    arguments = training_command(capsys.readouterr().out)
    assert arguments == ["--data", "my cars", "--config", "small", *splits, "--detections-per-image", "200"]
    config = parse_run(TrainConfig, arguments)
    data = DetectionData(config.data, config.seed)
    assert (len(data.train_set[0][1]["labels"]), len(data.test_set[0][1]["labels"])) == (131, 1)
    assert (config.model.anchor_scale, config.model.weights) == ("auto", None)
    assert folder.is_dir()


@pytest.mark.parametrize("names", [("train",), ("trainval", "val"), ("train", "trainval")])
def test_nothing_is_left_to_evaluate_on(
    names: tuple[str, ...], cars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (cars / "train.json").read_text()
    for path in cars.glob("*.json"):
        path.unlink()
    for name in names:
        (cars / f"{name}.json").write_text(content)
    assert call(monkeypatch, "cars") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("to train, lay out a split to train on and one to evaluate on in one folder")


@pytest.mark.parametrize("name", ["sirst_v2", "aerial_cars_kit"])
def test_real_sets(
    srtod_data: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(srtod_data / name)) == 1
    objects = {"sirst_v2": "514 134", "aerial_cars_kit": "1,942 651"}[name]
    assert f"objects {objects}" in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_set_that_fits_has_status_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("cars").glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"categories": content["categories"][:1]}))
    assert call(monkeypatch, "cars") == 0
    printed = capsys.readouterr().out
    assert "train: no problems found" in printed
    assert "worth a look" not in printed
    config = Path("mine.yaml")
    config.write_text("extends: small\nanchor_scale: 16\n")
    assert call(monkeypatch, "cars", "--config", "mine.yaml", "--min-size", "10", "--json", "found.json") == 1
    printed = capsys.readouterr().out
    assert "1  objects of less than 2 pixels at the size that the detector works at; raise --min-size\n" in printed
    assert "         train.png (1.7)\n" in printed  # 8 x 10 / 48
    assert printed.splitlines()[-1].endswith("--data cars --config mine.yaml --min-size 10")
    found = json.loads(Path("found.json").read_text())
    assert found["splits"]["train"] == {"images": 1, "objects": 1, "ignore_regions": 0, "classes": {"car": 1}}
    [small, missed] = found["problems"]
    assert (small["split"], small["where"]) == ("train", ["train.png (1.7)"])
    assert (missed["split"], missed["where"]) == ("test", ["test.png"])
    assert "that anchors of scale 16 miss (IoU below 0.3) and those of scale" in missed["problem"]
    assert found["train"] == printed.splitlines()[-1].removeprefix("to train: ")
    assert call(monkeypatch, "cars", "--json", "found.json") == 2
    assert capsys.readouterr().err == "error: found.json exists; pass another --json, or move it away\n"
