"""What is wrong, or worth knowing, about a set: found before a training run stumbles over it."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srtod._support.reading import require_regular_file

from .coco import leads_out, name_some, require_files
from .image import PERCENTILES, deep_pixels, image_size, read_image
from .statistics import has_area

__all__ = ["Problem", "find_problems", "shared_images", "unlike_categories"]

METRIC_DETECTIONS = 1500
"""Detections of an image that the AI-TOD metric counts."""

EDGE = 0.01
"""What a rounded coordinate may exceed the image by, in pixels."""

SAMPLED = 20
"""Images of a set whose pixels are looked at."""

FLAT, DARK, DEEP_DARK, SATURATED = 0.02, 0.1, 0.25, 0.2
"""Shares of the range that the pixels of a flat and of a dark image, of 8 bits and of more, span or reach at most; and
the share of pixels at the top that makes a saturated one."""

END = 256
"""Bytes at the end of image files by which nearly all that differ do, beside their size."""

AREA_TOLERANCE = 0.02
"""What share of an area may be the rounding of coordinates."""


class Problem(NamedTuple):
    """Something wrong, and all the places where it is.

    Attributes:
        what: the problem, and what becomes of it.
        where: the places, such as `annotation 3 (a.png)`; empty where `what` names them.
    """

    what: str
    where: list[str]

    def __str__(self) -> str:
        if not self.where:
            return f"         {self.what}"
        return f"{len(self.where):>7,}  {self.what}\n         {name_some(self.where)}"


def find_problems(
    content: Mapping[str, Any], folder: str | Path, *, detections: int = 100, decode: bool = False
) -> list[Problem]:
    """Looks for what may be wrong with a set that `srtod.data.read_coco` accepts.

    Args:
        content: the set as COCO data.
        folder: what each image's `file_name` is relative to.
        detections: the most detections an image, of the detector that is to be trained.
        decode: decode every image, which is slow; of others than some, spaced evenly, only the headers are read.

    Returns:
        The problems that there are, those of annotations first.

    Raises:
        ValueError: if an image has no `file_name`, `width` or `height`.
    """
    require_files(content["images"], "the set")
    found: dict[str, list[str]] = defaultdict(list)
    looked_at = _sample(content)
    decoded = {image["file_name"] for image in (content["images"] if decode else looked_at)}
    for what, where in chain(
        _of_boxes(content),
        _of_classes(content),
        _of_counts(content, detections),
        _of_files(content, Path(folder), decoded),
        _of_pixels(looked_at, Path(folder)),
    ):
        found[what].append(where)
    return [Problem(what, where) for what, where in found.items()]


def shared_images(splits: Mapping[str, tuple[Mapping[str, Any], Path]]) -> list[Problem]:
    """Images that are in more than one split, copies under another name too: a test on them was seen in training.

    A `test` that has the images of `val`, as in many a data.yaml, is no leak: neither is trained on.

    Args:
        splits: content and image folder of each split, by name.
    """
    files_of = {
        name: sorted({os.path.realpath(folder / image["file_name"]) for image in content["images"]})
        for name, (content, folder) in splits.items()
    }
    known = _contents(chain.from_iterable(files_of.values()))
    images_of = {name: {known[file]: Path(file).name for file in files} for name, files in files_of.items()}
    if images_of.get("val", {}).keys() == images_of.get("test", {}).keys():
        images_of.pop("test", None)
    holders: dict[str, dict[str, str]] = defaultdict(dict)
    for name, images in images_of.items():
        for image, file in images.items():
            holders[image][name] = file
    found: dict[str, list[str]] = defaultdict(list)
    for places in holders.values():
        if len(places) > 1:
            found[f"images that are in {' and '.join(places)}; a test should not have been seen in training"].append(
                " as ".join(dict.fromkeys(places.values()))
            )
    return [Problem(what, where) for what, where in found.items()]


def _contents(files: Iterable[str]) -> dict[str, str]:
    """What tells the content of each file: the same for files that are alike, byte by byte. Few are read as a whole."""
    ends: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    known = {}
    for file in dict.fromkeys(files):
        try:
            require_regular_file(file)
            with Path(file).open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - END))
                ends[size, stream.read()].append(file)
        except (OSError, ValueError):  # which `_of_files` tells
            known[file] = file
    for alike in ends.values():
        for file in alike:
            known[file] = file if len(alike) == 1 else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return known


def unlike_categories(splits: Mapping[str, tuple[Mapping[str, Any], Path]]) -> list[Problem]:
    """The splits whose categories are not those of the first one.

    Args:
        splits: content and image folder of each split, by name.
    """
    (first, own), *others = (
        (name, {entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]})
        for name, (content, _) in splits.items()
    )
    where = []
    for name, categories in others:
        sides = {"without": own.items() - categories.items(), "with": categories.items() - own.items()}
        differences = [
            f"{word} {' and '.join(f'{identity} {called}' for identity, called in sorted(side))}"
            for word, side in sides.items()
            if side
        ]
        if differences:
            where.append(f"{name} ({', '.join(differences)})")
    what = f"splits with other categories than {first}; training refuses to evaluate the one on the other"
    return [Problem(what, where)] if where else []


def _of_boxes(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    images = {image["id"]: image for image in content["images"]}
    seen: set[tuple[Any, ...]] = set()
    ids: set[Any] = set()
    for index, entry in enumerate(content["annotations"]):
        image, (x, y, width, height) = images[entry["image_id"]], entry["bbox"]
        where = f"annotation {entry.get('id', f'#{index}')} ({image['file_name']})"
        if entry.get("id", index) in ids:
            yield "annotations with the id of an earlier one; training refuses the set", where
        ids.add(entry.get("id", index))
        if width == 0 or height == 0:
            yield "boxes without an area; training leaves them out", where
        elif not has_area(entry["bbox"], image):
            yield "boxes outside their image; training leaves them out", where
        elif x < 0 or y < 0 or x + width > image["width"] + EDGE or y + height > image["height"] + EDGE:
            yield "boxes reaching beyond their image; training clips them", where
        same = (entry["image_id"], entry["category_id"], *entry["bbox"], bool(entry.get("iscrowd")))
        if same in seen:
            yield "boxes that repeat an earlier one of their class; each counts as an object", where
        seen.add(same)
        area = entry.get("area", width * height)
        if not entry.get("iscrowd") and not math.isclose(area, width * height, rel_tol=AREA_TOLERANCE, abs_tol=1):
            yield "objects with an `area` other than their box's; the metric's size bins go by it", where


def _of_classes(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    used = {entry["category_id"] for entry in content["annotations"] if not entry.get("iscrowd")}
    names = Counter(str(category.get("name", category["id"])) for category in content["categories"])
    for category in content["categories"]:
        name = str(category.get("name", category["id"]))
        if category["id"] not in used:
            yield "classes without objects", name
        if names[name] > 1:
            yield "classes with the name of another", f"{name} (id {category['id']})"


def _of_counts(content: Mapping[str, Any], detections: int) -> Iterator[tuple[str, str]]:
    counts = Counter(entry["image_id"] for entry in content["annotations"] if not entry.get("iscrowd"))
    for image in content["images"]:
        count = counts[image["id"]]
        where = f"{image['file_name']} ({count})"
        if not count:
            yield "images without objects; training takes them for background", image["file_name"]
        elif count > METRIC_DETECTIONS:
            yield f"images with more than {METRIC_DETECTIONS} objects; the metric counts no more detections", where
        elif count > detections:
            yield f"images with more than {detections} objects; raise detections_per_image", where


def _of_files(content: Mapping[str, Any], folder: Path, decoded: set[str]) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    for image in content["images"]:
        name, said = image["file_name"], (image["width"], image["height"])
        if name in names:
            yield "images listed again; training refuses the set", name
            continue
        names.add(name)
        if leads_out(name):
            yield "images outside the image folder; training refuses the set without allow_outside", name
            continue
        try:
            size = (_decoded_size if name in decoded else image_size)(folder / name)
        except FileNotFoundError:
            yield f"images missing from {folder}; training refuses the set", name
        except ValueError:
            yield "files that cannot be read as an image", name
        else:
            if size != said:
                where = f"{name} ({size[0]}x{size[1]}, said to be {said[0]}x{said[1]})"
                yield "images of another size than the annotations say; training refuses them", where


def _sample(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Some of the images, evenly spaced."""
    images = [image for image in content["images"] if not leads_out(image["file_name"])]
    count = min(SAMPLED, len(images))
    return [images[number * len(images) // count] for number in range(count)]


def _of_pixels(images: list[Mapping[str, Any]], folder: Path) -> Iterator[tuple[str, str]]:
    """What is dark, flat or saturated among images."""
    for image in images:
        name = image["file_name"]
        try:
            deep = deep_pixels(folder / name)
            # The brightest channel: what is saturated in all three, and dark in all three.
            values = deep if deep is not None else 255 * read_image(folder / name).amax(0).numpy()
        except (FileNotFoundError, ValueError):  # which `_of_files` tells
            continue
        if what := _look(values, is_deep=deep is not None):
            yield f"{what} (of {len(images)} looked at)", name


def _look(values: np.ndarray, *, is_deep: bool) -> str | None:
    """What is wrong with the grey values of an image, and what to do about it."""
    if (values.dtype.kind == "f" and is_deep) or values.max() > 65535:
        return "images of 32 bits or floating-point; train with --intensity-range auto"
    cure = "train with --intensity-range auto" if is_deep else "export them anew with more contrast"
    low, high = np.percentile(values, PERCENTILES)
    top = next(2**bits - 1 for bits in (8, *((10, 12, 14, 16) if is_deep else ())) if values.max() <= 2**bits - 1)
    if high - low <= FLAT * (65535 if is_deep else 255):
        return f"flat images, whose pixels span {FLAT:.0%} of the range or less; {cure}"
    if high <= (DEEP_DARK * 65535 if is_deep else DARK * 255):
        return f"dark images, which use {DEEP_DARK if is_deep else DARK:.0%} of the range or less; {cure}"
    if (values >= top).mean() > SATURATED:
        return f"saturated images, over {SATURATED:.0%} of whose pixels are at the top; export them anew, darker"
    return None


def _decoded_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, all of which is decoded."""
    deep = deep_pixels(path)  # of floating-point images, which cannot be read without a range, too
    height, width = read_image(path).shape[-2:] if deep is None else deep.shape[-2:]
    return width, height
