"""The YOLO reader: every form of data.yaml and of labels, and every bad input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from srtod.data import CocoDataset
from srtod.data.yolo import find_yolo, read_yolo

WIDTH, HEIGHT = 100, 50

YAML = "train: images/train\nval: images/val\ntest:\nnames: [car, bus]\nnc: 2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images train/a, train/b and val/c; b has no label file."""
    for name in ("train/a.png", "train/b.jpg", "val/c.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.1 0.2\n\n0 .1 .2 .02 .04\n")
    (tmp_path / "labels/val/c.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def file_names(path: Path, split: str = "train") -> list[str]:
    return [image["file_name"] for image in read_yolo(path, split).content["images"]]


def test_labels(folder: Path) -> None:
    conversion = read_yolo(folder / "data.yaml", "train")
    assert conversion.folder == folder / "images/train"
    assert conversion.content["images"] == [
        {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
    ]
    assert conversion.content["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    first, second = conversion.content["annotations"]
    assert (first["id"], first["image_id"], first["category_id"], first["iscrowd"]) == (1, 1, 2, 0)
    assert first["bbox"] == pytest.approx([45, 20, 10, 10])
    assert first["area"] == pytest.approx(100)
    assert second["bbox"] == pytest.approx([9, 9, 2, 2])
    data = CocoDataset(conversion.content, conversion.folder)
    assert data.class_names == ["car", "bus"]
    assert len(data[1][1]["boxes"]) == 0


def test_polygons_become_boxes(folder: Path) -> None:
    (folder / "labels/train/a.txt").write_text("0 0.1 0.2 0.3 0.2 0.2 0.6\n")
    [entry] = read_yolo(folder / "data.yaml", "train").content["annotations"]
    assert entry["bbox"] == pytest.approx([10, 10, 20, 20])


def test_labels_are_of_the_image_as_it_is_shown(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images/train/a.png", exif=exif)
    conversion = read_yolo(folder / "data.yaml", "train")
    assert conversion.content["annotations"][0]["bbox"] == pytest.approx([22.5, 40, 5, 20])
    assert CocoDataset(conversion.content, conversion.folder)[0][0].shape == (3, WIDTH, HEIGHT)


def test_boxes_without_area_are_dropped_and_counted(folder: Path) -> None:
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0 0.1\n0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0\n")
    conversion = read_yolo(folder / "data.yaml", "train")
    assert conversion.degenerate == 2
    assert len(conversion.content["annotations"]) == 1


def test_rounded_coordinates_are_let_pass(folder: Path) -> None:
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 1.000001 1\n")
    assert len(read_yolo(folder / "data.yaml", "train").content["annotations"]) == 1


def test_label_files_without_an_image_are_counted_and_named(folder: Path) -> None:
    for name in ("c", "d", "sub/e", "f", "g", "h"):
        (folder / f"labels/train/{name}.txt").parent.mkdir(exist_ok=True)
        (folder / f"labels/train/{name}.txt").write_text("\n0 0.5 0.5 0.1 0.1\n")
    (folder / "labels/train/empty.txt").touch()
    (folder / "labels/train/classes.txt").write_text("car\nbus\n")
    (folder / "labels/train/._a.txt").write_bytes(b"\xff\xfe")
    conversion = read_yolo(folder / "data.yaml", "train")
    assert len(conversion.content["annotations"]) == 2
    assert conversion.unused == [f"labels/train/{name}.txt" for name in ("c", "d", "f", "g", "h", "sub/e")]
    named = "labels/train/c.txt, labels/train/d.txt, labels/train/f.txt, labels/train/g.txt, labels/train/h.txt, ..."
    rows = conversion.summary().splitlines()[-2:]
    assert [" ".join(row.split()) for row in rows] == ["label files without an image 6", named]
    with pytest.warns(UserWarning, match="left out 6 label files without an image of the same name: ") as warned:
        conversion.warn_of_dropped()
    assert named in str(warned[0].message)


def test_labels_of_images_in_another_list_have_an_image(folder: Path) -> None:
    (folder / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "labels/train/c.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "train.txt").write_text("images/train/a.png\n")
    conversion = read_yolo(write(folder, "train: train.txt\nnames: [car, bus]"), "train")
    assert conversion.unused == ["labels/train/c.txt"]


def test_images_that_cannot_be_read_are_left_out_with_their_labels(folder: Path) -> None:
    (folder / "images/train/a.png").write_bytes(b"text")
    (folder / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    conversion = read_yolo(folder / "data.yaml", "train")
    assert (conversion.unreadable, conversion.unused) == (["a.png"], [])
    assert [image["file_name"] for image in conversion.content["images"]] == ["b.jpg"]
    assert [entry["image_id"] for entry in conversion.content["annotations"]] == [1]
    with pytest.warns(UserWarning, match="left out 1 files in .* as an image, and their labels: a.png; replace or"):
        conversion.warn_of_dropped()


# --- data.yaml -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train",
    [
        "images/train",
        "./images/train/",
        "../images/train",  # as Roboflow writes it
        "[images/train]",
        "train.txt",
        "lists/train.txt",
    ],
)
def test_where_the_images_are(folder: Path, train: str) -> None:
    (folder / "lists").mkdir()
    (folder / "train.txt").write_text("./images/train/a.png\n\nimages/train/b.jpg\n")
    (folder / "lists/train.txt").write_text(f"../images/train/a.png\n{folder}/images/train/b.jpg\n")
    assert file_names(write(folder, f"train: {train}\nnames: [car, bus]")) == ["a.png", "b.jpg"]


def test_several_folders(folder: Path) -> None:
    path = write(folder, "train: [images/train, images/val]\nnames: [car, bus]")
    conversion = read_yolo(path, "train")
    assert conversion.folder == folder / "images"
    assert file_names(path) == ["train/a.png", "train/b.jpg", "val/c.png"]
    assert len(CocoDataset(conversion.content, conversion.folder)) == 3


@pytest.mark.parametrize("absolute", [False, True])
def test_path(folder: Path, absolute: bool) -> None:
    (folder / "configs").mkdir()
    root = str(folder) if absolute else ".."
    path = folder / "configs/data.yaml"
    path.write_text(f"path: {root}\ntrain: images/train\nnames: [car, bus]\n")
    assert file_names(path) == ["a.png", "b.jpg"]


@pytest.mark.parametrize("names", ["{0: car, 1: bus}", "{1: bus, 0: car}", "[car, bus]", '{"0": car, "1": bus}'])
def test_names(folder: Path, names: str) -> None:
    conversion = read_yolo(write(folder, f"train: images/train\nnames: {names}"), "train")
    assert [category["name"] for category in conversion.content["categories"]] == ["car", "bus"]


def test_labels_beside_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    (folder / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    path = write(tmp_path, "train: set\nnames: [car]")
    assert len(read_yolo(path, "train").content["annotations"]) == 1


def test_the_last_images_folder_is_the_one_replaced(tmp_path: Path) -> None:
    for place in ("images/set/images", "images/set/labels"):
        (tmp_path / place).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/set/images/a.png")
    (tmp_path / "images/set/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    path = write(tmp_path, "train: images/set/images\nnames: [car]")
    assert len(read_yolo(path, "train").content["annotations"]) == 1


def test_splits(folder: Path) -> None:
    path = folder / "data.yaml"
    assert find_yolo(folder) == find_yolo(path) == {"train": path, "val": path}
    assert find_yolo(folder / "images") == {}
    (folder / "data.yml").touch()
    with pytest.raises(ValueError, match=r"has both data.yaml and data.yml"):
        find_yolo(folder)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("names: [car", ValueError, "line 1: not valid YAML"),
        ("- 1", ValueError, "must have one `name: value` a line"),
        ("", ValueError, "has no 'names'"),
        ("train: images/train", ValueError, "has no 'names'"),
        ("train: images/train\nnames: []", ValueError, "'names' must list the classes"),
        ("train: images/train\nnames: 2", ValueError, "'names' must be a list of the classes, as"),
        ("train: images/train\nnames: {1: car, 2: bus}", ValueError, "'names' must number the classes 0, 1, 2, .*1, 2"),
        ("train: images/train\nnames: {a: car}", ValueError, "'names' must number the classes 0, 1, 2"),
        ("train: images/train\nnames: [car]\nnc: 3", ValueError, "'nc' is 3, but 'names' has 1 classes"),
        ("train: images/train\nnames: [car]\nnc: '1'", ValueError, "'nc' must be the number of classes, got '1'"),
        ("names: [car]", ValueError, "has none of the splits train, val, test"),
        ("train: 3\nnames: [car]", ValueError, "'train' must be a folder, a list of images, or a list of these, got 3"),
        ("train: a\nnames: [car]\nnames: [bus]", ValueError, "line 3: names is given twice; keep one"),
        ("train: a\nnames: {0: car, 0: bus}", ValueError, "line 2: 0 is given twice; keep one"),
        ("train: a\nnames: [[car]]", ValueError, "'names' must be a list of the classes"),
        ("train: a\nnames: [car]\nnc: !!int x", ValueError, "line 3: 'x' is not what its tag says"),
        ("train: &a [*a]\nnames: [car]", ValueError, "repeats more than 10000 values by its aliases"),
        ("train: [a, 1]\nnames: [car]", ValueError, "'train' must be a folder"),
        ("train: gone\nnames: [car]", FileNotFoundError, "'train' is 'gone', but there is no .*/gone; correct it"),
        ("train: ../gone\nnames: [car]", FileNotFoundError, r"but there is no .*/\.\./gone or .*/gone; correct it"),
        ("path: /nowhere\ntrain: a\nnames: [car]", FileNotFoundError, "'path' is '/nowhere', but /nowhere does not"),
    ],
)
def test_bad_yaml(folder: Path, text: str, error: type[Exception], message: str) -> None:
    path = write(folder, text)
    with pytest.raises(error, match=message) as caught:
        find_yolo(folder)
    assert str(caught.value).startswith(str(path))


def test_class_names_are_one_line_of_text_even_if_they_look_like_dates(folder: Path) -> None:
    path = write(folder, 'train: images/train\nnames: ["small\\ncar", 2024-13-01]')
    categories = read_yolo(path, "train").content["categories"]
    assert [category["name"] for category in categories] == ["small car", "2024-13-01"]


def test_a_label_path_that_is_no_file(folder: Path) -> None:
    (folder / "labels/train/b.txt").mkdir()
    with pytest.raises(ValueError, match=r"labels/train/b.txt is a folder; pass a file"):
        read_yolo(folder / "data.yaml", "train")
    (folder / "labels/train/b.txt").rmdir()
    os.mkfifo(folder / "labels/train/b.txt")
    with pytest.raises(ValueError, match=r"labels/train/b.txt is a pipe"):
        read_yolo(folder / "data.yaml", "train")


def test_a_test_folder_that_an_export_lacks_is_left_out(folder: Path) -> None:
    path = write(folder, "train: images/train\nval: images/val\ntest: ../test/images\nnames: [car, bus]")
    with pytest.warns(UserWarning, match=r"'test' is '../test/images', but there is no .*without it, test is left out"):
        assert list(find_yolo(folder)) == ["train", "val"]
    write(folder, "train: images/train\ntest: gone\nnames: [car, bus]")
    with pytest.raises(FileNotFoundError, match="'test' is 'gone', but there is no"):
        find_yolo(path)


def test_binary_yaml(folder: Path) -> None:
    (folder / "data.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"data.yaml is not text in UTF-8"):
        find_yolo(folder)


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data.yaml has no split 'test'; it has train, val"):
        read_yolo(folder / "data.yaml", "test")


# --- Labels and images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of the 2 classes 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not one of"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not one of"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not one of"),
        ("0 1.2 0.5 0.1 0.1", r"1\.2 is outside \[0, 1\]"),
        ("0 0.5 -0.1 0.1 0.1", r"-0\.1 is outside \[0, 1\]"),
        ("0 0.5 0.5 nan 0.1", r"nan is outside \[0, 1\]"),
        ("0 0.5 0.5 0.1 inf", r"inf is outside \[0, 1\]"),
        ("0 320 240 64 64", r"320 is outside \[0, 1\]"),
        ("0 0.1 0.1 0.2 0.2 0.3 1.3", r"1\.3 is outside \[0, 1\]"),
        ("0 0.5 0.5 0.1", "or a class and three or more corners x y, got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 numbers"),
        ("car 0.5 0.5 0.1 0.1", "'car 0.5 0.5 0.1 0.1' must be numbers"),
        ("0,0.5,0.5,0.1,0.1", "must be numbers"),
    ],
)
def test_bad_labels(folder: Path, line: str, message: str) -> None:
    (folder / "labels/train/b.txt").write_text(f"\n0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=rf"labels/train/b\.txt: line 3:? ?.*{message}"):
        read_yolo(folder / "data.yaml", "train")


def listed(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "train.txt").write_text("\n".join(f"images/{name}" for name in names))
        write(folder, YAML.replace("images/train", "train.txt"))

    return change


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (
            listed("train/a.png", *(f"gone{index}.png" for index in range(7))),
            FileNotFoundError,
            r"7 of 8 images of .*train.txt are missing: .*gone0.png, .*gone4.png, \.\.\.$",
        ),
        (listed("train/a.png", "train/a.png"), ValueError, r"train/a.png is listed twice; list it once"),
        (listed(), FileNotFoundError, r"'train' has no images; looked in .*train.txt"),
        (
            lambda folder: (folder / "images/train/a.jpg").touch(),
            ValueError,
            r"train/a.jpg and a.png share the label file .*labels/train/a.txt; rename one",
        ),
        (
            lambda folder: (folder / "labels/train/a.txt").unlink(),
            FileNotFoundError,
            r"none of the 2 images of 'train' has a label file; looked for .*labels/train/a.txt for a.png",
        ),
        (
            lambda folder: [path.write_text("text") for path in (folder / "images/train").iterdir()],
            ValueError,
            r"none of the 2 images in .*images/train can be read as an image: a.png, b.jpg; replace them",
        ),
        (
            lambda folder: write(folder, YAML.replace("images/train", "images/train/a.png")),
            ValueError,
            r"a.png must be a folder of images, or a .txt file",
        ),
    ],
)
def test_bad_files(folder: Path, break_it: Callable[[Path], object], error: type[Exception], message: str) -> None:
    break_it(folder)
    with pytest.raises(error, match=message):
        read_yolo(folder / "data.yaml", "train")
