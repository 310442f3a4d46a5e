"""Every problem of a set is found, named and counted; a good set has none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srtod.data import CocoDataset
from srtod.data import problems as data_problems
from srtod.data.problems import find_problems, shared_images


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """A set without a problem: two images with an object each, of two classes."""
    for name in ("a.png", "b.png"):
        Image.effect_noise((64, 48), 50).save(tmp_path / name)
    return {
        "images": [{"id": i, "file_name": f"{name}.png", "width": 64, "height": 48} for i, name in enumerate("ab")],
        "annotations": [annotation(0, 0, [1.5, 2, 10, 10]), annotation(1, 1, [54, 38, 10, 10])],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
    }


def annotation(identity: int, image: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": image, "category_id": 1 + image, "bbox": box} | more


def problems(content: dict[str, Any], folder: Path, *, decode: bool = False) -> dict[str, list[str]]:
    return {what.split(";")[0]: where for what, where in find_problems(content, folder, decode=decode)}


@pytest.mark.parametrize("decode", [False, True])
def test_a_good_set_has_none(content: dict[str, Any], tmp_path: Path, decode: bool) -> None:
    content["annotations"].append(annotation(2, 0, [0, 0, 30, 30], iscrowd=1, area=5))
    CocoDataset(content, tmp_path)
    assert problems(content, tmp_path, decode=decode) == {}


@pytest.mark.parametrize(
    ("box", "more", "what"),
    [
        ([5, 5, 0, 3], {}, "boxes without an area"),
        ([5, 5, 3, 0], {}, "boxes without an area"),
        ([64, 5, 3, 3], {}, "boxes outside their image"),
        ([-9, 5, 3, 3], {}, "boxes outside their image"),
        ([-1, 5, 3, 3], {}, "boxes reaching beyond their image"),
        ([60, 40, 3, 8.5], {}, "boxes reaching beyond their image"),
        ([1.5, 2, 10, 10], {}, "boxes that repeat an earlier one of their class"),
        ([20, 20, 10, 10], {"area": 60}, "objects with an `area` other than their box's"),
        ([20, 20, 10, 10], {"id": 0}, "annotations with the id of an earlier one"),
    ],
)
def test_boxes(content: dict[str, Any], tmp_path: Path, box: list[float], more: dict[str, Any], what: str) -> None:
    content["annotations"].append(annotation(2, 0, box, **more))
    assert problems(content, tmp_path) == {what: [f"annotation {more.get('id', 2)} (a.png)"]}


def test_rounded_coordinates_are_no_problem(content: dict[str, Any], tmp_path: Path) -> None:
    content["annotations"].append(annotation(2, 0, [53.001, 20, 11, 9.9], area=110))
    assert problems(content, tmp_path) == {}


def test_classes(content: dict[str, Any], tmp_path: Path) -> None:
    content["categories"] += [{"id": 3, "name": "van"}, {"id": 4, "name": "car"}]
    assert problems(content, tmp_path) == {
        "classes without objects": ["van", "car"],
        "classes with the name of another": ["car (id 1)", "car (id 4)"],
    }


def test_images_with_no_objects_and_with_very_many(content: dict[str, Any], tmp_path: Path) -> None:
    content["annotations"][:1] = []
    content["categories"][:1] = []
    content["annotations"] += [annotation(2 + index, 1, [index % 50, index // 50, 1, 1]) for index in range(100)]
    found = problems(content, tmp_path)
    assert found == {"images without objects": ["a.png"], "images with more than 100 objects": ["b.png (101)"]}
    content["annotations"] += [annotation(200 + index, 1, [index % 50, index // 50, 2, 2]) for index in range(1400)]
    assert problems(content, tmp_path)["images with more than 1500 objects"] == ["b.png (1501)"]
    [_, problem] = find_problems(content | {"annotations": content["annotations"][:20]}, tmp_path, detections=19)
    assert str(problem) == "      1  images with more than 19 objects; raise detections_per_image\n         b.png (20)"


def test_files(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"text")
    assert problems(content, tmp_path) == {
        f"images missing from {tmp_path}": ["a.png"],
        "files that cannot be read as an image": ["b.png"],
    }


def test_files_outside_the_folder_are_not_opened(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "in/b.png")
    content["images"][0]["file_name"] = "../a.png"
    assert problems(content, tmp_path / "in") == {"images outside the image folder": ["../a.png"]}


def test_size_of_images(content: dict[str, Any], tmp_path: Path) -> None:
    Image.effect_noise((48, 64), 50).save(tmp_path / "a.png")
    what = "images of another size than the annotations say"
    assert problems(content, tmp_path) == {what: ["a.png (48x64, said to be 64x48)"]}


def test_decoding_finds_a_truncated_image(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    expected = {"files that cannot be read as an image": ["b.png"]}
    assert problems(content, tmp_path) == expected  # few images are all decoded
    monkeypatch.setattr(data_problems, "SAMPLED", 1)
    assert problems(content, tmp_path) == {}
    assert problems(content, tmp_path, decode=True) == expected


def test_an_image_listed_twice(content: dict[str, Any], tmp_path: Path) -> None:
    content["images"].append({"id": 2, "file_name": "a.png", "width": 64, "height": 48})
    assert problems(content, tmp_path) == {"images without objects": ["a.png"], "images listed again": ["a.png"]}


def test_an_entry_without_a_size_is_an_error(content: dict[str, Any], tmp_path: Path) -> None:
    del content["images"][1]["width"]
    with pytest.raises(ValueError, match=r"images\[1\] has no 'width'"):
        find_problems(content, tmp_path)


def test_images_in_two_splits(content: dict[str, Any], tmp_path: Path) -> None:
    test = content | {"images": content["images"][1:]}
    [problem] = shared_images({"train": (content, tmp_path), "test": (test, tmp_path)})
    assert problem.what.startswith("images that are in train and test")
    assert problem.where == ["b.png"]
    assert shared_images({"train": (content, tmp_path), "test": (test, tmp_path / "other")}) == []
    both = {"val": (test, tmp_path), "test": (test, tmp_path)}
    assert shared_images(both) == []
    [problem] = shared_images({"train": (content, tmp_path)} | both)
    assert problem.what.startswith("images that are in train and val;")


def test_copies_of_an_image_in_two_splits(content: dict[str, Any], tmp_path: Path) -> None:
    splits: dict[str, tuple[dict[str, Any], Path]] = {}
    for split, names in {"train": ("a", "b"), "val": ("c", "b"), "test": ("d", "e")}.items():
        (tmp_path / split).mkdir()
        for name, source in zip(names, "ab", strict=True):
            shutil.copy(tmp_path / f"{source}.png", tmp_path / split / f"{name}.png")
        images = [{"file_name": f"{name}.png"} for name in names]
        splits[split] = ({"images": images}, tmp_path / split)
    [problem] = shared_images(splits)  # test is val again
    assert problem.what.startswith("images that are in train and val;")
    assert problem.where == ["a.png as c.png", "b.png"]
    same_end = bytearray((tmp_path / "test/d.png").read_bytes())
    same_end[30] += 1
    (tmp_path / "test/d.png").write_bytes(same_end)
    problems = shared_images(splits)
    assert [problem.what.partition(";")[0] for problem in problems] == [
        "images that are in train and val",
        "images that are in train and val and test",
    ]
    assert [problem.where for problem in problems] == [["a.png as c.png"], ["b.png as e.png"]]


def test_a_problem_is_counted_and_its_first_places_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["annotations"] += [annotation(2 + index, 0, [5, 5, 0, 0]) for index in range(1234)]
    lines = str(find_problems(content, tmp_path)[0]).splitlines()
    places = ", ".join(f"annotation {identity} (a.png)" for identity in range(2, 7))
    assert lines == ["  1,234  boxes without an area; training leaves them out", f"         {places}, ..."]


NOISE = np.random.default_rng(0).random((48, 64))


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        ((10 * NOISE).astype(np.uint8), "dark images, which use 10% of the range or less"),
        ((200 + 4 * NOISE).astype(np.uint8), "flat images, whose pixels span 2% of the range or less"),
        (np.where(NOISE < 0.3, 255, 200 * NOISE).astype(np.uint8), "saturated images, over 20% of whose pixels"),
        (np.where(NOISE < 0.1, 255, 200 * NOISE).astype(np.uint8), None),
        ((16383 * NOISE).astype(np.uint16), "dark images, which use 25% of the range or less"),
        ((8000 + 900 * NOISE).astype(np.uint16), "flat images, whose pixels span 2% of the range or less"),
        ((16384 + 40000 * NOISE).astype(np.uint16), None),
        (np.where(NOISE < 0.3, 65535, 60000 * NOISE).astype(np.uint16), "saturated images"),
        (NOISE.astype(np.float32), "images of 32 bits or floating-point"),
    ],
)
def test_dark_flat_and_saturated_images(
    content: dict[str, Any], tmp_path: Path, pixels: np.ndarray, what: str | None
) -> None:
    content["images"][0]["file_name"] = "a.tif"
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    found = find_problems(content, tmp_path)
    assert [problem.where for problem in found] == ([] if what is None else [["a.tif"]])
    for problem in found:
        assert problem.what.startswith(what or "")
        cure = "train with --intensity-range auto" if pixels.dtype != np.uint8 else "export them anew"
        assert ("saturated" in problem.what) or cure in problem.what
        assert problem.what.endswith("(of 2 looked at)")
