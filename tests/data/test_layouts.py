"""Data folders: each layout is told by itself, its splits and images are found, and what cannot be told is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from srtod.data import open_folder

WIDTH, HEIGHT = 40, 30


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def write_coco(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": identity, "file_name": name, "width": WIDTH, "height": HEIGHT} for identity, name in enumerate(names, 1)
    ]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 5], "area": 20, "iscrowd": 0}
    path.write_text(json.dumps({"images": images, "annotations": [box], "categories": [{"id": 1, "name": "drone"}]}))


def write_text(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco(root: Path) -> None:
    for split in ("train", "val"):
        write_images(root / f"{split}2017", f"{split}.png")
        write_coco(root / f"annotations/instances_{split}2017.json", f"{split}.png")
        write_text(root / f"annotations/captions_{split}2017.json", "{}")


def flat_coco(root: Path) -> None:
    for split in ("train", "test"):
        write_images(root / "images", f"{split}.png")
        write_coco(root / f"{split}.json", f"{split}.png")
    write_text(root / "detections_test.json", "[]")  # results are no annotations
    write_text(root / "metrics.json", "{}")


def roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_images(root / split, f"{split}.png")
        write_coco(root / split / "_annotations.coco.json", f"{split}.png")


def droneswarms(root: Path) -> None:
    for split in ("train", "test"):
        write_images(root / split / "JPEGImages", f"{split}.png")
        write_coco(root / split / f"{split}.json", f"{split}.png")


def aitod(root: Path) -> None:
    for split in ("train", "val", "trainval", "test"):
        write_images(root / split / "images", f"{split}.png")
        write_coco(root / f"annotations/aitod_{split}_v1.json", f"{split}.png")


def aitod_v2(root: Path) -> None:
    for split in ("trainval", "test"):
        write_images(root / "images" / split, f"{split}.png")
        write_coco(root / f"annotations/aitodv2_{split}.json", f"{split}.png")


def visdrone(root: Path) -> None:
    for split in ("train", "val", "test-dev"):
        folder = root / f"VisDrone2019-DET-{split}"
        write_images(folder / "images", f"{split}.jpg")
        write_text(folder / f"annotations/{split}.txt", "2,3,4,5,1,4,0,0\n")


def yolo(root: Path) -> None:
    for split in ("train", "val"):
        write_images(root / "images" / split, f"{split}.png")
        write_text(root / f"labels/{split}/{split}.txt", "0 0.5 0.5 0.1 0.2\n")
    write_text(root / "data.yaml", "train: images/train\nval: images/val\nnames: [drone]\n")


XML = """<annotation><object><name>drone</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>6</xmax><ymax>8</ymax></bndbox>
</object></annotation>"""


def voc(root: Path) -> None:
    place = root / "VOC2007"
    for split in ("train", "val", "test"):
        write_images(place / "JPEGImages", f"{split}.jpg")
        write_text(place / f"Annotations/{split}.xml", XML)
        write_text(place / f"ImageSets/Main/{split}.txt", f"{split}\n")
        write_text(place / f"ImageSets/Main/drone_{split}.txt", f"{split}  1\n")


def voc_export(root: Path) -> None:
    for split in ("train", "valid"):
        write_images(root / split, f"{split}.rf.1.jpg")
        write_text(root / split / f"{split}.rf.1.xml", XML)


@pytest.mark.parametrize(
    ("write", "layout", "splits", "chosen"),
    [
        (coco, "COCO", ["train", "val"], ("train", "val")),
        (flat_coco, "COCO", ["train", "test"], ("train", "test")),
        (roboflow, "COCO", ["train", "val", "test"], ("train", "val")),
        (droneswarms, "DroneSwarms", ["train", "test"], ("train", "test")),
        (aitod, "AI-TOD", ["train", "val", "trainval", "test"], ("trainval", "test")),
        (aitod_v2, "AI-TOD-v2", ["trainval", "test"], ("trainval", "test")),
        (visdrone, "VisDrone", ["train", "val", "test-dev"], ("train", "val")),
        (yolo, "YOLO", ["train", "val"], ("train", "val")),
        (voc, "VOC", ["train", "val", "test"], ("train", "val")),
        (voc_export, "VOC", ["train", "val"], ("train", "val")),
    ],
)
def test_layouts_are_told(
    tmp_path: Path, write: Callable[[Path], None], layout: str, splits: list[str], chosen: tuple[str, str]
) -> None:
    write(tmp_path)
    folder = open_folder(tmp_path)
    assert (folder.layout, list(folder.splits)) == (layout, splits)
    train, test = folder.choose()
    assert (train.name, test.name) == chosen
    for name, split in folder.splits.items():
        data = split.dataset()
        image, target = data[0]
        assert Path(target["file_name"]).stem.startswith(name)  # val: valid.png too
        assert image.shape == (3, HEIGHT, WIDTH)
        assert len(target["boxes"]) == 1


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    aitod(tmp_path)
    folder = open_folder(tmp_path)
    train, test = folder.choose("train", "val")
    assert (train.name, test.name) == ("train", "val")
    with pytest.raises(ValueError, match=r"\(AI-TOD\) has no split mini; it has train, val, trainval, test"):
        folder.choose("mini")


def test_trainval_is_never_evaluated_on_val(tmp_path: Path) -> None:
    for split in ("trainval", "val"):
        write_images(tmp_path / "images", f"{split}.png")
        write_coco(tmp_path / f"{split}.json", f"{split}.png")
    with pytest.raises(ValueError, match="has no split test or test-dev; it has val, trainval"):
        open_folder(tmp_path).choose()


def test_only_a_test_set(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_coco(tmp_path / "test.json", "a.png")
    with pytest.raises(ValueError, match="has no split trainval or train; it has test"):
        open_folder(tmp_path).choose()


# --- Where the images are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    ["val/images", "val/JPEGImages", "val", "valid", "images/val", "images/val/images", "images", ".", "val2017"],
)
def test_image_folders_of_coco(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path / folder, "a.png", "b.png")
    write_coco(tmp_path / "annotations/instances_val2017.json", "a.png", "b.png")
    content, images = open_folder(tmp_path).splits["val"].read()
    assert images.resolve() == (tmp_path / folder).resolve()
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]


def test_the_folder_with_the_most_images_is_taken(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "a.png")
    write_images(tmp_path / "images", "a.png", "b.png")
    write_coco(tmp_path / "train.json", "a.png", "b.png", "c.png")
    split = open_folder(tmp_path).splits["train"]
    assert split.read()[1] == tmp_path / "images"
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of .*train.json are missing from .*images: c.png$"):
        split.dataset()


def test_trainval_of_the_images_of_train_and_val(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "a.png", "b.png")
    write_images(tmp_path / "val", "c.png")
    write_images(tmp_path / "test", "d.png")
    write_coco(tmp_path / "annotations/aitodv2_trainval.json", "a.png", "b.png", "c.png")
    data = open_folder(tmp_path).splits["trainval"].dataset()
    assert [data[index][1]["file_name"] for index in range(3)] == ["train/a.png", "train/b.png", "val/c.png"]


def test_no_image_is_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_coco(tmp_path / "train.json", *(f"{index}.png" for index in range(9)))
    message = r"none of the 9 images of .*train.json was found: 0.png, .*4.png, \.\.\.; looked in .*images"
    with pytest.raises(FileNotFoundError, match=message):
        open_folder(tmp_path).splits["train"].read()


def test_absent_images_are_counted_and_five_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png")
    write_coco(tmp_path / "train.json", "a.png", *(f"gone{index}.png" for index in range(8)))
    message = r"8 of 9 images of .*train.json are missing from .*images: gone0.png, .*gone4.png, \.\.\.$"
    with pytest.raises(FileNotFoundError, match=message):
        open_folder(tmp_path).splits["train"].dataset()


# --- What cannot be told ---------------------------------------------------------------------------------------------


def test_no_known_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_text(tmp_path / "annotations.json", "{}")  # tells no split
    with pytest.raises(FileNotFoundError, match="has no known layout") as caught:
        open_folder(tmp_path)
    for name in (
        "COCO",
        "*.json",
        "DroneSwarms",
        "JPEGImages",
        "aitod_*.json",
        "aitodv2_*",
        "annotations/*.txt",
        "data.yaml",
    ):
        assert name in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the data folder .*nowhere does not exist"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("layouts", "names"),
    [
        ((visdrone, yolo), ("VisDrone", "VisDrone2019-DET-test-dev", "YOLO", "data.yaml")),
        ((flat_coco, yolo), ("COCO", "test.json", "YOLO", "data.yaml")),
        ((flat_coco, visdrone), ("COCO", "test.json", "VisDrone", "VisDrone2019-DET-test-dev")),
    ],
)
def test_mixed_layouts_are_named(
    tmp_path: Path, layouts: tuple[Callable[[Path], None], ...], names: tuple[str, ...]
) -> None:
    for write in layouts:
        write(tmp_path)
    with pytest.raises(
        ValueError, match=r"mixes layouts: .*; pass the data.yaml, the COCO files, or a subfolder"
    ) as caught:
        open_folder(tmp_path)
    for name in names:
        assert name in str(caught.value)


def test_the_cures_of_mixed_layouts(tmp_path: Path) -> None:
    for write in (flat_coco, visdrone, yolo):
        write(tmp_path)
    assert open_folder(tmp_path / "data.yaml").layout == "YOLO"
    assert list(open_folder(tmp_path / "VisDrone2019-DET-val").splits) == ["val"]
    assert list(open_folder(tmp_path / "train.json").splits) == ["train"]


def test_text_files_without_images_are_not_visdrone(tmp_path: Path) -> None:
    coco(tmp_path)
    write_images(tmp_path / "images", "a.png")
    write_text(tmp_path / "annotations/README.txt", "what this is")
    assert open_folder(tmp_path).layout == "COCO"


@pytest.mark.parametrize("names", [("train.json", "train_mini.json"), ("aitod_train_v1.json", "aitodv2_train.json")])
def test_two_files_of_one_split(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_coco(tmp_path / name, "a.png")
    with pytest.raises(ValueError, match=rf"{names[0]} and .*{names[1]} are both annotations of 'train'; pass the one"):
        open_folder(tmp_path)


def test_two_folders_of_one_visdrone_split(tmp_path: Path) -> None:
    for folder in ("VisDrone2019-DET-val", "val-copy"):
        write_images(tmp_path / folder / "images", "a.jpg")
        write_text(tmp_path / folder / "annotations/a.txt")
    with pytest.raises(ValueError, match="VisDrone2019-DET-val and val-copy are both the VisDrone split 'val'"):
        open_folder(tmp_path)


def test_a_list_is_taken_for_results_and_named_where_it_is_missed(tmp_path: Path) -> None:
    write_text(tmp_path / "train.json", "[]")
    message = r"\(taken for results, as a list and no object with 'images': .*train.json\)$"
    with pytest.raises(FileNotFoundError, match=rf"has no known layout.* {message}"):
        open_folder(tmp_path)
    write_images(tmp_path / "images", "a.png")
    write_coco(tmp_path / "test.json", "a.png")
    with pytest.raises(ValueError, match=rf"has no split train; it has test.* {message}"):
        open_folder(tmp_path).choose("train")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "train.json is empty"),
        ('{"images": [', ValueError, "train.json is not valid JSON"),
        ("{}", ValueError, "train.json has no 'images'"),
    ],
)
def test_a_broken_file_is_named_when_it_is_read(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    write_text(tmp_path / "train.json", text)
    folder = open_folder(tmp_path)
    with pytest.raises(error, match=message):
        folder.splits["train"].read()


def change(content: dict[str, Any], **values: Any) -> None:
    content["annotations"].append(content["annotations"][0] | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": 1}, r"train.json: annotations\[1\]: id 1 occurs twice"),
        (
            {"id": 2, "image_id": 7},
            r"train.json: annotations\[1\]: 'image_id' 7 is not among the ids .*; list it there",
        ),
        ({"id": 2, "category_id": 7}, r"train.json: annotations\[1\]: 'category_id' 7 is not among"),
    ],
)
def test_errors_of_a_split_name_its_file(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    write_images(tmp_path / "images", "a.png")
    path = tmp_path / "train.json"
    write_coco(path, "a.png")
    content = json.loads(path.read_text())
    change(content, **values)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path).splits["train"].dataset()


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    flat_coco(tmp_path)
    path = tmp_path / "images/train.png"
    path.write_bytes(path.read_bytes()[:60])
    data = open_folder(tmp_path).splits["train"].dataset()
    with pytest.raises(ValueError, match=r"images/train.png cannot be read as an image"):
        data[0]


# --- Real sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train_images", "test_images"),
    [("aerial_cars_kit", 49, 16), ("sirst_v2", 411, 103), ("drones_rgb", 968, 280)],
)
def test_real_sets(srtod_data: Path, name: str, train_images: int, test_images: int) -> None:
    folder = open_folder(srtod_data / name)
    assert folder.layout == "COCO"
    train, test = (split.dataset() for split in folder.choose())
    assert (len(train), len(test)) == (train_images, test_images)
    assert train[0][1]["ignore"].shape == (0, 4)
