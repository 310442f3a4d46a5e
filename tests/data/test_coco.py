"""The COCO reader: what it returns, how it cleans, how it decodes, and every bad input it names."""

from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from srtod.data import CocoDataset, collate, image_size, list_images, read_coco, read_image
from srtod.evaluation import evaluate_detections

WIDTH, HEIGHT = 40, 30

Content = dict[str, Any]


def annotation(identity: int, image: int, category: int, box: list[float], **more: Any) -> Content:
    area = box[2] * box[3]
    return {"id": identity, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0, **more}


@pytest.fixture
def content() -> Content:
    """Two images; the second is a negative. Categories in descending order of id."""
    return {
        "images": [
            {"id": identity, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for identity, name in ((5, "a.png"), (3, "b.png"))
        ],
        "annotations": [annotation(1, 5, 9, [2.5, 3, 4, 5]), annotation(2, 5, 4, [10, 10, 6, 6])],
        "categories": [{"id": 9, "name": "drone"}, {"id": 4, "name": "bird"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_samples(content: Content, folder: Path) -> None:
    data = CocoDataset(content, folder)
    assert len(data) == 2
    assert (data.class_names, data.category_ids) == (["bird", "drone"], [4, 9])
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, image.shape) == (torch.float32, (3, HEIGHT, WIDTH))
    assert image.is_contiguous()
    expected = np.asarray(Image.open(folder / "a.png"), dtype=np.float32) / 255
    torch.testing.assert_close(image.permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-7)
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert (boxes.format.value, boxes.canvas_size, boxes.dtype) == ("XYXY", (HEIGHT, WIDTH), torch.float32)
    assert boxes.tolist() == [[2.5, 3, 6.5, 8], [10, 10, 16, 16]]
    assert target["labels"].tolist() == [2, 1]
    assert target["labels"].dtype == torch.int64
    assert (target["image_id"], target["file_name"]) == (5, "a.png")


def test_image_without_annotations_is_a_negative(content: Content, folder: Path) -> None:
    _, target = CocoDataset(content, folder)[1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_file_pickle_and_transforms(content: Content, folder: Path) -> None:
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    data = CocoDataset(path, folder, lambda image, target: (image * 0, {"seen": target["image_id"]}))
    image, target = data[1]
    assert image.sum() == 0
    assert target == {"seen": 3}
    data.transforms = None
    assert pickle.loads(pickle.dumps(data))[0][1]["boxes"].tolist() == data[0][1]["boxes"].tolist()


def test_iteration_ends(content: Content, folder: Path) -> None:
    assert len(list(CocoDataset(content, folder))) == 2  # type: ignore[call-overload]


def test_collate(content: Content, folder: Path) -> None:
    data = CocoDataset(content, folder)
    images, targets = collate([data[0], data[1]])
    assert [image.shape for image in images] == [(3, HEIGHT, WIDTH)] * 2
    assert [target["image_id"] for target in targets] == [5, 3]


def test_ground_truth_scores_the_training_boxes_perfectly(content: Content, folder: Path) -> None:
    data = CocoDataset(content, folder)
    results = [
        {
            "image_id": target["image_id"],
            "category_id": data.category_ids[label - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 1.0,
        }
        for _, target in (data[0], data[1])
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
    ]
    assert evaluate_detections(data.ground_truth, results)["AP"] == pytest.approx(1.0)


# --- Boxes that are cleaned ------------------------------------------------------------------------------------------


def test_boxes_partly_outside_are_clipped(content: Content, folder: Path) -> None:
    content["annotations"] = [annotation(1, 5, 9, [-3, -2, 10, 10]), annotation(2, 5, 9, [35, 25, 10, 10])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = CocoDataset(content, folder)
    assert data[0][1]["boxes"].tolist() == [[0, 0, 7, 8], [35, 25, WIDTH, HEIGHT]]


@pytest.mark.parametrize(
    "box", [[5, 5, 0, 4], [5, 5, 4, 0], [5, 5, 0, 0], [-9, 5, 9, 4], [50, 5, 3, 3], [5, HEIGHT, 3, 3], [5, 5, 1e-9, 4]]
)
def test_boxes_without_area_are_dropped_with_a_warning(content: Content, folder: Path, box: list[float]) -> None:
    content["annotations"].append(annotation(77, 5, 9, box))
    with pytest.warns(UserWarning, match=r"left out 1 of 3 boxes.*\(annotation ids 77\)") as caught:
        data = CocoDataset(content, folder)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "test_coco.py"
    assert len(data[0][1]["boxes"]) == 2
    assert len(data.ground_truth["annotations"]) == 3  # what is scored stays as annotated


def test_many_dropped_boxes_are_counted_and_five_named(content: Content, folder: Path) -> None:
    content["annotations"] += [annotation(identity, 3, 4, [1, 1, 0, 1]) for identity in range(100, 120)]
    with pytest.warns(
        UserWarning, match=r"left out 20 of 22 boxes.*\(annotation ids 100, 101, 102, 103, 104, \.\.\.\)"
    ):
        CocoDataset(content, folder)


def test_crowd_regions_are_scored_and_ignored_in_training(content: Content, folder: Path) -> None:
    content["annotations"][0]["iscrowd"] = 1
    data = CocoDataset(content, folder)
    target = data[0][1]
    assert target["labels"].tolist() == [1]
    ignore = target["ignore"]
    assert isinstance(ignore, tv_tensors.BoundingBoxes)
    assert (ignore.format.value, ignore.canvas_size, ignore.dtype) == ("XYXY", (HEIGHT, WIDTH), torch.float32)
    assert ignore.tolist() == [[2.5, 3, 6.5, 8]]
    assert data[1][1]["ignore"].shape == (0, 4)
    assert data.ground_truth["annotations"][0]["iscrowd"] == 1


def test_ignore_regions_are_clipped_and_there_once(content: Content, folder: Path) -> None:
    for identity, category, box in ((10, 9, [-2, 20, 9, 30]), (11, 4, [-2, 20, 9, 30]), (12, 4, [0, 0, 1, 1])):
        content["annotations"].append(annotation(identity, 5, category, box, iscrowd=1))
    data = CocoDataset(content, folder)
    assert data[0][1]["ignore"].tolist() == [[0, 20, 7, HEIGHT], [0, 0, 1, 1]]
    assert len(data[0][1]["boxes"]) == 2


def test_ignore_regions_without_area_are_dropped_with_the_boxes(content: Content, folder: Path) -> None:
    content["annotations"].append(annotation(77, 5, 9, [5, 5, 0, 4], iscrowd=1))
    with pytest.warns(UserWarning, match=r"left out 1 of 3 boxes.*\(annotation ids 77\)"):
        data = CocoDataset(content, folder)
    assert data[0][1]["ignore"].shape == (0, 4)


def test_ignore_regions_are_flipped_with_the_image(content: Content, folder: Path) -> None:
    content["annotations"][0]["iscrowd"] = 1
    _, target = CocoDataset(content, folder, v2.RandomHorizontalFlip(1.0))[0]
    assert target["ignore"].tolist() == [[WIDTH - 6.5, 3, WIDTH - 2.5, 8]]


@pytest.mark.parametrize("left", ["none", "crowd", "outside"])
@pytest.mark.filterwarnings("ignore:.*left out")
def test_nothing_to_train_on(content: Content, folder: Path, left: str) -> None:
    content["annotations"] = {
        "none": [],
        "crowd": [annotation(1, 5, 9, [1, 1, 5, 5], iscrowd=1)],
        "outside": [annotation(1, 5, 9, [100, 1, 5, 5])],
    }[left]
    with pytest.raises(ValueError, match="the COCO data has no box to train on or to evaluate with; pass annotations"):
        CocoDataset(content, folder)
    assert CocoDataset(content, folder, allow_empty=True)[0][1]["boxes"].shape == (0, 4)


# --- Annotations that are refused ------------------------------------------------------------------------------------


def edit(*path: Any, to: Any = ...) -> Callable[[Content], None]:
    """Sets what is at `path` in the content, or removes it."""

    def change(content: Content) -> None:
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        if to is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("images"), "has no 'images'"),
        (edit("annotations"), "has no 'annotations'"),
        (edit("categories"), "has no 'categories'"),
        (edit("images", to={}), "'images' must be a list"),
        (edit("images", to=[]), "lists no images"),
        (edit("categories", to=[]), "lists no categories"),
        (edit("images", 1, "id"), r"images\[1\] has no 'id'"),
        (edit("images", 1, "id", to="3"), r"images\[1\]: 'id' must be an integer, got '3'"),
        (edit("images", 1, "id", to=5), r"images\[1\]: id 5 occurs twice"),
        (edit("images", 1, to=7), r"images\[1\] must be a JSON object, got int"),
        (edit("images", 1, "file_name"), r"images\[1\] has no 'file_name'"),
        (edit("images", 1, "file_name", to=1), r"images\[1\]: 'file_name' must be text"),
        (edit("images", 1, "file_name", to="a.png"), r"images\[1\]: file_name 'a.png' is that of images\[0\] too"),
        (edit("images", 1, "width"), r"images\[1\] has no 'width'"),
        (edit("images", 1, "height", to=0), r"images\[1\]: 'height' must be an integer of at least 1 pixel, .* got 0"),
        (edit("images", 1, "height", to=None), r"images\[1\]: 'height' must be an integer of .*, got None"),
        (edit("categories", 0, "id", to=4), r"categories\[1\]: id 4 occurs twice"),
        (edit("annotations", 1, "id", to=1), r"annotations\[1\]: id 1 occurs twice"),
        (edit("annotations", 1, "image_id", to=99), r"annotations\[1\]: 'image_id' 99 is not among .*; list it"),
        (edit("annotations", 1, "image_id"), r"annotations\[1\] has no 'image_id'"),
        (edit("annotations", 1, "category_id", to=99), r"annotations\[1\]: 'category_id' 99 is not among"),
        (edit("annotations", 1, "category_id", to=True), r"annotations\[1\]: 'category_id' must be an integer"),
        (edit("annotations", 1, "bbox"), r"annotations\[1\] has no 'bbox'"),
        (edit("annotations", 1, "bbox", to=[1, 2, 3]), r"annotations\[1\]: 'bbox' must be four finite numbers"),
        (edit("annotations", 1, "bbox", to=[1, 2, 3, None]), r"annotations\[1\]: 'bbox' must be four finite numbers"),
        (edit("annotations", 1, "bbox", to=5), r"annotations\[1\]: 'bbox' must be four finite numbers .* got 5"),
        (edit("annotations", 1, "bbox", 0, to=float("nan")), r"annotations\[1\]: 'bbox' must be four finite numbers"),
        (edit("annotations", 1, "bbox", 3, to=float("inf")), r"annotations\[1\]: 'bbox' must be four finite numbers"),
        (
            edit("annotations", 1, "bbox", 2, to=-6),
            r"annotations\[1\]: 'bbox' .* without a negative size, got \[10, 10, -6, 6\]",
        ),
        (edit("annotations", 1, "area", to=float("nan")), r"annotations\[1\]: 'area' must be finite"),
        (edit("annotations", 1, "bbox", 0, to=True), r"annotations\[1\]: 'bbox' must be four finite numbers"),
        (edit("annotations", 1, "bbox", 0, to=1e308), r"annotations\[1\]: 'bbox' must be .* up to 2147483647"),
        (edit("annotations", 1, "bbox", 3, to=10**400), r"annotations\[1\]: 'bbox' must be .* up to 2147483647"),
        (edit("annotations", 1, "area", to=10**400), r"annotations\[1\]: 'area' must be finite"),
        (edit("annotations", 1, "id", to=[1]), r"annotations\[1\]: 'id' must be an integer or text, got \[1\]"),
        (edit("annotations", 1, "iscrowd", to="0"), r"annotations\[1\]: 'iscrowd' must be 0 or 1, got '0'"),
        (edit("images", 1, "width", to="40"), r"images\[1\]: 'width' must be an integer .* got '40'"),
        (edit("images", 1, "width", to=10**400), r"images\[1\]: 'width' must be an integer .* up to 2147483647"),
        (edit("images", 1, "file_name", to=None), r"images\[1\]: 'file_name' must be text, .* got None"),
        (edit("images", 1, "file_name", to="a\0.png"), r"images\[1\]: 'file_name' must be text"),
        (edit("images", 1, "file_name", to="../a.png"), r"images\[1\]: file_name '../a.png' leads out of the image"),
        (edit("images", 1, "file_name", to="b/../../a"), r"images\[1\]: file_name 'b/../../a' leads out of the image"),
        (edit("images", 1, "file_name", to="/etc/passwd"), r"file_name '/etc/passwd' leads out .* set allow_outside"),
        (edit("annotations", 1, "area", to=-1), r"annotations\[1\]: 'area' must be finite and not negative"),
    ],
)
def test_bad_annotations(content: Content, folder: Path, change: Callable[[Content], None], message: str) -> None:
    change(content)
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        CocoDataset(path, folder)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"images": [', "is not valid JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "is nested too deeply"),
        (f'{{"images": {"9" * 5000}}}', "holds a number of thousands of digits"),
    ],
)
def test_bad_json(folder: Path, text: str, message: str) -> None:
    path = folder / "train.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"train.json {message}"):
        CocoDataset(path, folder)


def test_binary_instead_of_json(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png is not a text file"):
        CocoDataset(folder / "a.png", folder)


def test_a_pipe_in_place_of_the_file_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "train.json")
    with pytest.raises(ValueError, match=r"train.json is a pipe, a socket or a device; pass a regular file"):
        read_coco(folder / "train.json")


def test_a_mark_of_utf8_and_what_python_writes_for_nan_are_read(content: Content, folder: Path) -> None:
    content["annotations"][0]["segmentation"] = float("nan")
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert len(read_coco(folder / "train.json")["annotations"]) == 2


def test_a_file_name_that_is_no_utf8(content: Content, folder: Path) -> None:
    content["images"][0]["file_name"] = os.fsdecode(b"a\xff.png")
    (folder / "a.png").rename(folder / os.fsdecode(b"a\xff.png"))
    (folder / "train.json").write_text(json.dumps(content))
    data = CocoDataset(folder / "train.json", folder)
    assert data[0][0].shape == (3, HEIGHT, WIDTH)
    (folder / os.fsdecode(b"a\xff.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* are missing .*: a\\udcff.png") as caught:
        CocoDataset(folder / "train.json", folder)
    str(caught.value).encode()


def test_images_outside_the_folder_if_that_is_allowed(content: Content, folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "b.png").rename(folder / "in/b.png")
    content["images"][0]["file_name"] = "../a.png"
    assert CocoDataset(content, folder / "in", allow_outside=True)[0][0].shape == (3, HEIGHT, WIDTH)


def test_category_names_become_one_line(content: Content, folder: Path) -> None:
    content["categories"][0]["name"] = "small\r\ndrone\x00"
    with pytest.warns(UserWarning, match=r"1 category names hold line breaks .*: 'small\\r\\ndrone\\x00'"):
        data = CocoDataset(content, folder)
    assert data.class_names == ["bird", "small drone"]


def test_boxes_far_beyond_their_image_are_warned_of(content: Content, folder: Path) -> None:
    content["annotations"].append(annotation(77, 5, 9, [5, 5, 1e9, 4]))
    with pytest.warns(UserWarning, match=r"clipped 1 of 3 boxes, which reach beyond .* \(annotation ids 77\)"):
        data = CocoDataset(content, folder)
    assert data[0][1]["boxes"][2].tolist() == [5, 5, WIDTH, 9]


def test_messages_use_the_given_name(content: Content, folder: Path) -> None:
    content["images"][0]["file_name"] = "gone.png"
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images of my set are missing"):
        CocoDataset(content, folder, name="my set")


def test_missing_json(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist"):
        CocoDataset(folder / "none.json", folder)


def test_another_type() -> None:
    with pytest.raises(TypeError, match="must be a path or a dict, got int"):
        read_coco(3)  # type: ignore[arg-type]


def test_content_is_left_alone(content: Content, folder: Path) -> None:
    before = copy.deepcopy(content)
    CocoDataset(content, folder)[0]
    assert content == before


# --- Images ----------------------------------------------------------------------------------------------------------


def test_missing_images_are_counted_and_five_named(content: Content, folder: Path) -> None:
    content["images"] += [
        {"id": 100 + i, "file_name": f"gone{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(8)
    ]
    with pytest.raises(FileNotFoundError, match=r"8 of 10 images .*: gone0.png, .*gone4.png, \.\.\.$"):
        CocoDataset(content, folder)


def test_missing_folder(content: Content, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image folder .*nowhere does not exist"):
        CocoDataset(content, folder / "nowhere")


def test_image_of_another_size(content: Content, folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "b.png")
    data = CocoDataset(content, folder)
    with pytest.raises(ValueError, match=rf"b.png is {WIDTH}x{HEIGHT + 1} pixels, but .* says {WIDTH}x{HEIGHT}"):
        data[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_truncated_image(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=rf"a.{suffix} cannot be read as an image"):
        read_image(path)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the image .*none.png does not exist"):
        read_image(tmp_path / "none.png")


RAMP = np.arange(12, dtype=np.float32).reshape(3, 4) / 11
"""A grey ramp in [0, 1]: 4 pixels wide, 3 high."""


def grey8() -> Image.Image:
    return Image.fromarray((RAMP * 255).round().astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_eight_bit_modes(tmp_path: Path, mode: str) -> None:
    picture = grey8().convert(mode) if mode == "P" else grey8().convert("RGB").convert(mode)
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    image = read_image(path)
    assert (image.dtype, image.shape, image.is_contiguous()) == (torch.float32, (3, 3, 4), True)
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), RAMP, atol=0.6 / 255)


def test_colours_keep_their_order(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (255, 51, 0)).save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png")[:, 0, 0], torch.tensor([1.0, 0.2, 0.0]))


def test_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP > 0.5).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == (RAMP > 0.5).astype(float).tolist()


def test_palette_colours_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([0, 0, 0, 255, 51, 0])
    picture.save(tmp_path / "a.png", transparency=1)
    torch.testing.assert_close(read_image(tmp_path / "a.png")[:, 2, 3], torch.tensor([1.0, 0.2, 0.0]))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (255, 51, 0, 0)).save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png")[:, 2, 3], torch.tensor([1.0, 0.2, 0.0]))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_precision(tmp_path: Path, suffix: str) -> None:
    levels = (RAMP * 65535).round().astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.dtype, image.shape, image.is_contiguous()) == (torch.float32, (3, 3, 4), True)
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), levels / np.float32(65535), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range(tmp_path: Path, dtype: type) -> None:
    Image.fromarray((RAMP * 100000).astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif cannot be read as an image .*no known range"):
        read_image(tmp_path / "a.tif")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    grey8().save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 3)
    np.testing.assert_allclose(image[0].numpy(), np.rot90(RAMP, -1), atol=0.6 / 255)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("suffix", "mode", "options"),
    [
        ("png", "L", {}),
        ("png", "I;16", {}),
        ("jpg", "L", {}),
        ("webp", "L", {}),
        *(("tif", mode, {}) for mode in ("L", "I;16", "RGB", "RGBA")),
        *(("tif", mode, {"compression": "tiff_lzw"}) for mode in ("L", "I;16", "RGB")),
    ],
)
def test_a_turned_image_is_turned_back_and_its_size_too(
    tmp_path: Path, suffix: str, mode: str, options: dict[str, str], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    levels = (RAMP * 65535).round().astype(np.uint16)
    picture = Image.fromarray(levels) if mode == "I;16" else grey8().convert(mode)
    picture.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    image = read_image(tmp_path / f"a.{suffix}")
    turned = np.rot90(RAMP, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    width, height = image_size(tmp_path / f"a.{suffix}")
    assert image.shape == (3, height, width) == (3, *turned.shape)
    if suffix in ("png", "tif"):  # without loss
        for channel in image:
            np.testing.assert_allclose(channel.numpy(), turned, atol=0.6 / 255)


def test_image_size_reads_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (400, 300)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    assert image_size(path) == (400, 300)
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        read_image(path)


def test_image_size_of_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        image_size(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"the image .*b.png does not exist"):
        image_size(tmp_path / "b.png")


def test_images_are_listed_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.png", "b/a.JPG", "a.jpeg", "notes.txt", ".hidden.png", "mask.npy"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.jpeg", tmp_path / "b/a.JPG", tmp_path / "c.png"]


# --- Real sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "images", "boxes"),
    [
        ("aerial_cars_kit", "train", 49, 1942),
        ("aerial_cars_kit", "test", 16, 651),
        ("sirst_v2", "test", 103, 134),
        ("drones_rgb", "test", 280, 295),
    ],
)
def test_real_sets(srtod_data: Path, name: str, split: str, images: int, boxes: int) -> None:
    data = CocoDataset(srtod_data / name / f"{split}.json", srtod_data / name / "images")
    assert len(data) == images
    assert len(data.ground_truth["annotations"]) == boxes
    for index in range(0, images, max(1, images // 12)):
        image, target = data[index]
        assert image.shape[0] == 3
        assert 0 <= image.min() <= image.max() <= 1
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
