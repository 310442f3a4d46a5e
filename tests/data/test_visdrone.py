"""The VisDrone reader: what is an object, what is ignored, in training and in evaluation, and every bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from srtod.data import CocoDataset, open_folder
from srtod.data.visdrone import CLASS_NAMES, find_visdrone, read_visdrone
from srtod.evaluation import evaluate_detections

WIDTH, HEIGHT = 80, 60

LINES = """\
2,3,10,12,1,4,0,2
30,3,8,9,1,10,1,0,

40,40,20,20,0,0,0,0
1,50,5,6,1,11,0,1
70,50,6,7,0,4,0,0
9,9,0,5,1,4,0,0
"""
"""A car, a motor with a comma too many, an ignored region, others, a car of score 0, and a box without width."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, the second one empty."""
    root = tmp_path / "VisDrone2019-DET-val"
    for place in ("images", "annotations"):
        (root / place).mkdir(parents=True)
    for name, text in (("a", LINES), ("b", "")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"images/{name}.jpg")
        (root / f"annotations/{name}.txt").write_text(text)
    return root


def test_objects(folder: Path) -> None:
    conversion = read_visdrone(folder)
    assert conversion.folder == folder / "images"
    assert conversion.content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
    ]
    objects = [entry for entry in conversion.content["annotations"] if not entry["iscrowd"]]
    assert [(entry["category_id"], entry["bbox"], entry["area"]) for entry in objects] == [
        (4, [2, 3, 10, 12], 120),
        (10, [30, 3, 8, 9], 72),
    ]
    assert [(entry["truncation"], entry["occlusion"]) for entry in objects] == [(0, 2), (1, 0)]
    names = [(category["id"], category["name"]) for category in conversion.content["categories"]]
    assert names == list(enumerate(CLASS_NAMES.values(), start=1))
    assert (len(names), names[3], names[9]) == (10, (4, "car"), (10, "motor"))


def test_ignore_regions_are_crowds_of_every_category(folder: Path) -> None:
    conversion = read_visdrone(folder)
    crowds = [entry for entry in conversion.content["annotations"] if entry["iscrowd"]]
    regions = [[40, 40, 20, 20], [1, 50, 5, 6], [70, 50, 6, 7]]
    assert [entry["bbox"] for entry in crowds] == [region for region in regions for _ in range(10)]
    assert [entry["category_id"] for entry in crowds] == list(range(1, 11)) * 3
    identities = [entry["id"] for entry in conversion.content["annotations"]]
    assert identities == list(range(1, len(identities) + 1))
    target = CocoDataset(conversion.content, conversion.folder)[0][1]
    assert target["ignore"].tolist() == [[40, 40, 60, 60], [1, 50, 6, 56], [70, 50, 76, 57]]
    assert target["labels"].tolist() == [4, 10]


def test_counts(folder: Path) -> None:
    conversion = read_visdrone(folder)
    assert conversion.degenerate == 1
    assert conversion.ignored == {"category 0, ignored regions": 1, "category 11, others": 1, "score 0": 1}
    rows = {line.rsplit(maxsplit=1)[0]: int(line.split()[-1]) for line in conversion.summary().splitlines()}
    assert rows["images"] == 2
    assert rows["  without objects"] == 1
    assert rows["objects"] == 2
    assert (rows["  car"], rows["  motor"], rows["  bus"]) == (1, 1, 0)
    assert rows["ignore regions"] == 3
    assert rows["  score 0"] == 1
    assert rows["boxes without area, dropped"] == 1


def test_dropped_boxes_are_warned_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"VisDrone2019-DET-val: left out 1 boxes, which have no area"):
        open_folder(folder).splits["val"].read()


@pytest.mark.parametrize("box", ["9,9,5,0", "9,9,-5,5", "80,9,5,5", "9,60,5,5", "-9,9,9,5"])
@pytest.mark.parametrize("rest", ["1,4,0,0", "0,0,0,0"])
def test_boxes_without_area_are_dropped(folder: Path, box: str, rest: str) -> None:
    (folder / "annotations/b.txt").write_text(f"{box},{rest}\n")
    conversion = read_visdrone(folder)
    assert conversion.degenerate == 2
    assert {entry["image_id"] for entry in conversion.content["annotations"]} == {1}


def test_a_detection_in_an_ignored_region_is_no_false_positive(folder: Path) -> None:
    truth = read_visdrone(folder).content

    def detection(box: list[float], score: float) -> dict[str, object]:
        return {"image_id": 1, "category_id": 4, "bbox": box, "score": score}

    found = detection([2, 3, 10, 12], 0.5)
    assert evaluate_detections(truth, [found])["AP"] == pytest.approx(0.5)  # of two classes, one is found
    for inside in ([45, 45, 9, 9], [1, 51, 4, 4], [70, 50, 6, 7]):
        assert evaluate_detections(truth, [found, detection(inside, 0.9)])["AP"] == pytest.approx(0.5)
    outside = detection([45, 15, 9, 9], 0.9)
    assert evaluate_detections(truth, [found, outside])["AP"] == pytest.approx(0.25)


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_splits_of_a_release(folder: Path) -> None:
    assert find_visdrone(folder) == {"val": folder}
    assert find_visdrone(folder.parent) == {"val": folder}
    folder.rename(folder.parent / "mine")
    assert list(find_visdrone(folder.parent / "mine")) == ["mine"]


def test_no_visdrone_folder(tmp_path: Path, folder: Path) -> None:
    (folder / "annotations/a.txt").rename(folder / "annotations/c.txt")
    (folder / "annotations/b.txt").unlink()
    assert find_visdrone(tmp_path) == {}


def test_images_without_annotation_file(folder: Path) -> None:
    for index in range(7):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"images/x{index}.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"7 images have no annotation file of the same name: x0, .*x4, \.\.\.;"
    ):
        read_visdrone(folder)


def test_annotation_files_without_image(folder: Path) -> None:
    for index in range(7):
        (folder / f"annotations/x{index}.txt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"7 annotation files have no image of the same name: x0, .*x4, \.\.\.;"
    ):
        read_visdrone(folder)


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1,4,0", "must be 8 numbers x,y,width,height,score,category,truncation,occlusion, got 7"),
        ("1,2,3,4,1,4,0,0,0", "must be 8 numbers .*, got 9"),
        ("1,2,3,4,1,12,0,0", "category 12 is not one of VisDrone's 0 to 11"),
        ("1,2,3,4,1,-1,0,0", "category -1 is not one of"),
        ("1,2,x,4,1,4,0,0", "'1,2,x,4,1,4,0,0' must be whole numbers"),
        ("1,2,nan,4,1,4,0,0", "must be whole numbers"),
        (f"1,2,{'9' * 400},4,1,4,0,0", "a number is beyond 2147483647, more pixels than any image has"),
        (f"1,2,{'9' * 5000},4,1,4,0,0", "must be whole numbers"),
        ("0 0.5 0.5 0.1 0.1", "must be whole numbers"),
    ],
)
def test_bad_lines(folder: Path, line: str, message: str) -> None:
    (folder / "annotations/b.txt").write_text(f"\n2,3,10,12,1,4,0,2\n{line}\n")
    with pytest.raises(ValueError, match=rf"annotations/b\.txt: line 3:? ?.*{message}"):
        read_visdrone(folder)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda folder: _break_all(folder / "images"),
            r"none of the 2 images in .*images can be read .*: a.jpg, b.jpg",
        ),
        (lambda folder: (folder / "annotations/b.txt").write_bytes(b"\xff\xfe\x00"), r"b.txt is not a text file"),
        (lambda folder: (folder / "images/b.png").touch(), r"b.jpg and b.png would share the annotation file b.txt"),
        (lambda folder: _move(folder / "images", "b.jpg"), r"more/b.jpg is in a subfolder of .*images"),
    ],
)
def test_bad_files(folder: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        read_visdrone(folder)


def test_images_that_cannot_be_read_are_left_out_with_their_boxes(folder: Path) -> None:
    complete = read_visdrone(folder).content
    for index in range(7):
        (folder / f"images/x{index}.jpg").write_bytes(b"text")
        (folder / f"annotations/x{index}.txt").write_text(LINES)
    conversion = read_visdrone(folder)
    assert conversion.content == complete
    assert conversion.unreadable == [f"x{index}.jpg" for index in range(7)]
    named = "x0.jpg, x1.jpg, x2.jpg, x3.jpg, x4.jpg, ..."
    assert f"files that cannot be read as an image 7 {named}" in " ".join(conversion.summary().split())
    conversion.degenerate = 0
    with pytest.warns(UserWarning, match="left out 7 files in .*images that cannot be read as an image, and") as warned:
        conversion.warn_of_dropped()
    assert named in str(warned[0].message)


def _break_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"text")


def _move(folder: Path, name: str) -> None:
    (folder / "more").mkdir()
    (folder / name).rename(folder / "more" / name)
