"""Pascal VOC sets: their boxes, classes and splits, what is left out of them, and errors that name the object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from srtod.data import open_folder
from srtod.data.conversion import Conversion
from srtod.data.voc import MOST_BYTES, find_voc, read_voc

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def annotated(name: str, box: tuple[object, ...], more: str = "") -> str:
    sides = "".join(
        f"<{side}> {value} </{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write(path: Path, *objects: str, size: str = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>other.jpg</filename>{size}{''.join(objects)}</annotation>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release with the images a and b for training, and c, whose class alone is bird."""
    (tmp_path / "JPEGImages").mkdir()
    for name in "abc":
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{name}.jpg")
        write(tmp_path / f"Annotations/{name}.xml", annotated("bird" if name == "c" else "drone", (3, 4, 6, 9)))
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c.jpg\n")
    return tmp_path


def boxes(conversion: Conversion) -> list[list[float]]:
    return [entry["bbox"] for entry in conversion.content["annotations"]]


def test_boxes_count_pixels_from_one_and_classes_are_those_of_all_splits(folder: Path) -> None:
    assert find_voc(folder) == {"train": folder, "val": folder}
    write(folder / "Annotations/b.xml", annotated("drone", (1, 1, 40, 30)), annotated("drone", ("7.5", 2, "7.5", 2.25)))
    train, val = (read_voc(folder, split) for split in ("train", "val"))
    assert boxes(train) == [[2, 3, 4, 6], [0, 0, 40, 30], [6.5, 1, 1, 1.25]]
    assert [image["file_name"] for image in train.content["images"]] == ["a.jpg", "b.jpg"]
    assert (
        train.content["categories"]
        == val.content["categories"]
        == [{"id": 1, "name": "bird"}, {"id": 2, "name": "drone"}]
    )
    assert {entry["category_id"] for entry in train.content["annotations"]} == {2}


def test_a_set_with_a_box_at_zero_counts_from_zero(folder: Path) -> None:
    write(folder / "Annotations/c.xml", annotated("bird", (0, 4, 6, 9)))  # in another split
    assert boxes(read_voc(folder, "train")) == [[3, 4, 3, 5]] * 2
    assert boxes(read_voc(folder, "val")) == [[0, 4, 6, 5]]


def test_classes_of_a_file(folder: Path) -> None:
    (folder / "labels.txt").write_text("plane\ndrone\nbird\n")
    conversion = read_voc(folder, "val")
    assert [entry["name"] for entry in conversion.content["categories"]] == ["plane", "drone", "bird"]
    assert conversion.content["annotations"][0]["category_id"] == 3
    (folder / "labels.txt").write_text("drone\n")
    with pytest.raises(
        ValueError, match=r"c\.xml has an object of the class 'bird', which .*labels\.txt does not list"
    ):
        read_voc(folder, "train")


def test_difficult_objects_are_ignore_regions_of_their_class(folder: Path) -> None:
    write(folder / "Annotations/a.xml", annotated("drone", (3, 4, 6, 9), "<difficult>1</difficult>"))
    conversion = read_voc(folder, "train")
    assert [(entry["iscrowd"], entry["category_id"]) for entry in conversion.content["annotations"]] == [(1, 2), (0, 2)]
    assert conversion.ignored == {"difficult": 1}
    _, target = open_folder(folder).splits["train"].dataset()[0]
    assert (len(target["boxes"]), target["ignore"].tolist()) == (0, [[2, 3, 6, 9]])


def test_parts_of_an_object_are_not_read(folder: Path) -> None:
    part = "<part><name>rotor</name><bndbox><xmin>1</xmin></bndbox></part><pose>Left</pose>"
    write(folder / "Annotations/a.xml", annotated("drone", (3, 4, 6, 9), part))
    assert boxes(read_voc(folder, "train"))[0] == [2, 3, 4, 6]


def test_images_with_their_files_beside_them(tmp_path: Path) -> None:
    """What belongs to no image, and images without a file, are left out; those without objects stay."""
    place = tmp_path / "drones"
    for name in ("a.JPG", "b.png", "c.png", "d.png"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(place / name)
    (place / "d.png").write_bytes(b"no image")
    for name, objects in {"a": [annotated("drone", (9, 4, 6, 9))], "b": [], "d": [], "e": []}.items():
        write(place / f"{name}.xml", *objects, annotated("drone", (3, 3, 4, 4)) if name == "e" else "", size="<size/>")
    assert find_voc(place) == {"drones": place}
    conversion = read_voc(place, "drones")
    assert [image["file_name"] for image in conversion.content["images"]] == ["a.JPG", "b.png"]
    assert (conversion.degenerate, conversion.unreadable) == (1, ["d.png"])
    assert (conversion.unlabelled, conversion.unused) == (["c.png"], ["e.xml"])
    with pytest.warns(UserWarning, match="left out") as warned:
        conversion.warn_of_dropped()
    assert any("left out 1 images without a label file of the same name: c.png; add" in str(w.message) for w in warned)
    assert "images without a label file" in conversion.summary()


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.xml is not the XML of an annotation \(no element found: line 1, column 0\); write it again"),
        ("<annotation><object>", r"a\.xml is not the XML of an annotation \(no element found"),
        (BOMB, r"a\.xml is not the XML of an annotation \(it declares a document type\); write it again"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', r"a\.xml is not the XML of an annotation"),
        ("<html/>", r"a\.xml is no VOC annotation: it begins with <html>, not <annotation>; remove it"),
        (annotated("", (1, 1, 2, 2)), r"a\.xml: object 1 has no <name>; name its class"),
        ("<object><name>car</name><robndbox/></object>", r"object 1 \(car\) has no <bndbox>"),
        (
            annotated("car", (1, "x", 2, 2)),
            r"a\.xml: object 1 \(car\): ymin must be a number of pixels, got 'x'; correct",
        ),
        (annotated("car", (1, 1, "nan", 2)), r"xmax must be a number of pixels, got 'nan'"),
        (annotated("car", (1, 1, 2, "1e300")), r"ymax must be a number of pixels, got '1e300'"),
        (
            "<size><width>30</width><height>40</height></size>",
            r"a\.xml tells 30x40 pixels, but a\.jpg has 40x30; annot",
        ),
    ],
)
def test_bad_annotations(folder: Path, text: str, message: str) -> None:
    whole = text.startswith(("<annotation", "<html", "<!", "<?")) or not text
    (folder / "Annotations/a.xml").write_text(text if whole else f"<annotation>{text}</annotation>")
    with pytest.raises(ValueError, match=message):
        read_voc(folder, "train")


def too_long(folder: Path) -> None:
    with (folder / "Annotations/a.xml").open("wb") as file:
        file.truncate(MOST_BYTES + 1)


def another_set(folder: Path) -> None:
    for name in ("VOC2007", "VOC2012"):
        write(folder / name / "Annotations/a.xml")
        (folder / name / "JPEGImages").mkdir()
    (folder / "Annotations/a.xml").rename(folder / "a.xml")
    for file in (folder / "Annotations").glob("*"):
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (
            lambda folder: (folder / "JPEGImages/a.jpg").unlink(),
            FileNotFoundError,
            r"train\.txt: 1 of 2 images are not in ",
        ),
        (
            lambda folder: (folder / "Annotations/b.xml").unlink(),
            FileNotFoundError,
            r"Annotations: b; add them, or take",
        ),
        (
            lambda folder: Image.new("L", (2, 2)).save(folder / "JPEGImages/a.png"),
            ValueError,
            "would share the annotation",
        ),
        (too_long, ValueError, r"a\.xml has 16777217 bytes, more than the 16777216 of any annotation"),
        (another_set, ValueError, "holds several VOC sets: VOC2007, VOC2012; pass one"),
    ],
)
def test_bad_files(folder: Path, break_it: Callable[[Path], object], error: type[Exception], message: str) -> None:
    break_it(folder)
    with pytest.raises(error, match=message):
        read_voc(folder, "train")
