"""VisDrone-DET sets (https://github.com/VisDrone/VisDrone-Dataset): a text file of boxes beside each image."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .box_tables import LARGEST
from .coco import name_some
from .conversion import Conversion, text_lines
from .image import list_images

__all__ = ["CLASS_NAMES", "find_visdrone", "read_visdrone"]

CLASS_NAMES: Mapping[int, str] = {
    1: "pedestrian",
    2: "people",
    3: "bicycle",
    4: "car",
    5: "van",
    6: "truck",
    7: "tricycle",
    8: "awning-tricycle",
    9: "bus",
    10: "motor",
}
"""The classes that are trained on and scored, by VisDrone's category id."""

IGNORED_CATEGORIES: Mapping[int, str] = {0: "category 0, ignored regions", 11: "category 11, others"}
"""Categories that are neither trained on nor scored, and how a summary names them."""

_FIELDS = ("x", "y", "width", "height", "score", "category", "truncation", "occlusion")
_SPLIT = re.compile(r"train|val|test-dev|test-challenge|test")


def find_visdrone(folder: str | Path) -> dict[str, Path]:
    """The splits of a VisDrone folder: each one's name and its folder with `images/` and `annotations/*.txt`.

    `folder` is such a folder itself, or holds several as they are released: `VisDrone2019-DET-train`, `-val`,
    `-test-dev`. A folder whose name tells no split is a split of that name.

    Returns:
        The splits in alphabetical order of their folders; none, if this is no VisDrone folder.

    Raises:
        ValueError: if two folders are the same split.
    """
    folder = Path(folder)
    splits: dict[str, Path] = {}
    for place in [folder] if _is_split(folder) else sorted(filter(_is_split, folder.glob("*"))):
        name = place.resolve().name  # of the path as it really is: `.` has no name
        match = _SPLIT.search(name.removeprefix("VisDrone2019-DET-"))
        split = match.group() if match else name
        if split in splits:
            raise ValueError(
                f"{folder}: {splits[split].name} and {place.name} are both the VisDrone split {split!r}; pass one of "
                "them, or rename one"
            )
        splits[split] = place
    return splits


def read_visdrone(folder: str | Path) -> Conversion:
    """Read one split of VisDrone-DET, a folder with `images/` and `annotations/*.txt`.

    A line is `x,y,width,height,score,category,truncation,occlusion`, in whole pixels. Categories 1 to 10 keep their
    ids, and their objects `truncation` and `occlusion`. Categories 0 and 11, and boxes of score 0, with which VisDrone
    marks what is not to be counted, are ignore regions and not objects. Boxes without an area are dropped and counted,
    and so are files that cannot be read as an image, with their boxes.

    Args:
        folder: a split's folder, such as `VisDrone2019-DET-train`.

    Returns:
        The set as COCO data, its folder of images, and the counts of what was ignored and dropped.

    Raises:
        FileNotFoundError: if images lack an annotation file, or annotation files an image.
        ValueError: if a line is malformed, two images share an annotation file, or none can be read.
    """
    folder = Path(folder)
    conversion = Conversion(folder, folder / "images", CLASS_NAMES)
    images = _by_stem(folder / "images")
    annotations = {path.stem: path for path in (folder / "annotations").glob("*.txt")}
    for kind, lacking in (
        ("images have no annotation file", images.keys() - annotations.keys()),
        ("annotation files have no image", annotations.keys() - images.keys()),
    ):
        if lacking:
            raise FileNotFoundError(
                f"{folder}: {len(lacking)} {kind} of the same name: {name_some(sorted(lacking))}; add or remove them"
            )
    for stem, path in images.items():
        image = conversion.add_image(path)
        if image is None:
            continue
        for number, line in text_lines(annotations[stem]):
            *box, score, category, truncation, occlusion = _parse(line, f"{annotations[stem]}: line {number}")
            more = {"truncation": truncation, "occlusion": occlusion}
            if category in IGNORED_CATEGORIES:
                conversion.add_ignored(image, [*box], IGNORED_CATEGORIES[category], **more)
            elif score == 0:
                conversion.add_ignored(image, [*box], "score 0", **more)
            else:
                conversion.add_object(image, category, [*box], **more)
    conversion.check_readable()
    return conversion


def _is_split(folder: Path) -> bool:
    """Whether some text file in `annotations/` has an image of its name in `images/`."""
    images, annotations = folder / "images", folder / "annotations"
    if not (images.is_dir() and annotations.is_dir()):
        return False
    texts = set(os.listdir(annotations))  # noqa: PTH208 (10 times faster, and there are thousands)
    return any(f"{os.path.splitext(name)[0]}.txt" in texts for name in os.listdir(images))  # noqa: PTH122, PTH208


def _by_stem(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in list_images(folder):
        if path.parent != folder:
            raise ValueError(f"{path} is in a subfolder of {folder}, where VisDrone has none; move it up")
        other = images.setdefault(path.stem, path)
        if other != path:
            raise ValueError(f"{other} and {path.name} would share the annotation file {path.stem}.txt; rename one")
    return images


def _parse(line: str, where: str) -> list[int]:
    """The eight whole numbers of a line; a comma at its end is tolerated, for some releases have one."""
    try:
        values = [int(text) for text in line.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"{where}: {line!r} must be whole numbers {','.join(_FIELDS)}") from None
    if len(values) != len(_FIELDS):
        raise ValueError(f"{where} must be {len(_FIELDS)} numbers {','.join(_FIELDS)}, got {len(values)}")
    if max(map(abs, values)) > LARGEST:
        raise ValueError(f"{where}: a number is beyond {LARGEST}, more pixels than any image has; correct it")
    category = values[5]
    if category not in CLASS_NAMES and category not in IGNORED_CATEGORIES:
        raise ValueError(f"{where}: category {category} is not one of VisDrone's 0 to 11; correct it")
    return values
