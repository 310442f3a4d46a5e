"""YOLO sets (https://docs.ultralytics.com/datasets/detect): data.yaml, and a text file of boxes for each image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from srtod._support.entries import read_entries
from srtod._support.names import printable
from srtod._support.schema import read_as

from .coco import name_some
from .conversion import Conversion, text_lines
from .image import SUFFIXES, list_images

__all__ = ["find_yolo", "read_yolo"]

SPLITS = ("train", "val", "test")

_ROUNDING = 1e-4
"""How far beyond [0, 1] a coordinate may be: less than half a pixel, by the rounding of whoever wrote the labels."""


def find_yolo(path: str | Path) -> dict[str, Path]:
    """The splits that a YOLO set has, each with the data.yaml that tells of it.

    Args:
        path: the YAML file, or the folder that holds `data.yaml` or `data.yml`.

    Returns:
        The splits that the file has, of train, val and test; none, if there is no such file.

    Raises:
        ValueError: if the file is not valid (see `read_yolo`), or there are two.

    Warns of a test folder that is not there, where those of train and val are.
    """
    path = Path(path)
    places = [path] if path.suffix in (".yaml", ".yml") else []
    files = [file for file in (*places, path / "data.yaml", path / "data.yml") if file.is_file()]
    if len(files) > 1:
        raise ValueError(f"{path} has both data.yaml and data.yml; pass the one that is meant")
    return {split: file for file in files for split in _read_yaml(file, warn=True)[1]}


def read_yolo(path: str | Path, split: str) -> Conversion:
    """Read one split of a YOLO set.

    `train`, `val` and `test` in the YAML file are each a folder of images (subfolders included), a text file that lists
    images relative to itself, or a list of these; they are relative to `path`, and that to the YAML file. As exports
    often have it, `../train/images` may also mean `train/images`. `names` lists the classes; `nc` may tell how many.

    The labels of an image are in the text file of its path with the last folder `images` replaced by `labels`, or
    beside the image where no folder is called `images`; an image without one has no objects. A line is `class cx cy
    width height`, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, of which the box is taken; all in [0, 1] of the image's
    size, as it is shown. Class k has the category id k + 1. Boxes without an area are dropped and counted, and files
    that cannot be read as an image, left out with their labels, and label files without an image of the same name are
    listed.

    Args:
        path: data.yaml.
        split: train, val or test.

    Returns:
        The set as COCO data, the innermost folder that holds all of its images, and what was left out of it.

    Raises:
        FileNotFoundError: if a folder, a list or an image of a list is missing, there is no image, or no image at all
            has a label file.
        ValueError: if the YAML file or a label is malformed, two images share a label file, or no image can be read.
    """
    path = Path(path)
    class_names, sources = _read_yaml(path)
    if split not in sources:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(sources)}")
    images = [image for source in sources[split] for image in _images_of(source, path)]
    if not images:
        raise FileNotFoundError(f"{path}: {split!r} has no images; looked in {name_some(sources[split])}")
    labels = _label_files(images)
    if not any(label.exists() for label in labels):
        raise FileNotFoundError(
            f"{path}: none of the {len(images)} images of {split!r} has a label file; looked for {labels[0]} for "
            f"{images[0].name}"
        )
    folder = Path(os.path.commonpath([image.parent for image in images]))
    conversion = Conversion(path, folder, dict(enumerate(class_names, start=1)))
    for image, label in zip(images, labels, strict=True):
        entry = conversion.add_image(image)
        if entry is None:
            continue
        for number, line in text_lines(label) if label.exists() else ():
            kind, box = _parse(line, len(class_names), f"{label}: line {number}")
            x, y, width, height = box
            pixels = [x * entry["width"], y * entry["height"], width * entry["width"], height * entry["height"]]
            conversion.add_object(entry, kind + 1, pixels)
    conversion.check_readable()
    unused = _labels_without_image(sources[split], images, labels)
    conversion.unused = [os.path.relpath(file, path.parent) for file in unused]
    return conversion


_Name = str | int | float
_Split = Annotated[
    str | list[str] | None, Meta(description="a folder, a list of images, or a list of these")
]  # an empty `test:` is common


class _Yaml(msgspec.Struct):
    """data.yaml, as far as it is used."""

    names: Annotated[
        list[_Name] | dict[int | str, _Name],
        Meta(description="a list of the classes, as `names: [car, bus]` or `names: {0: car}`"),
    ]
    nc: Annotated[int | None, Meta(description="the number of classes")] = None
    path: Annotated[str | int | None, Meta(description="a folder")] = None
    train: _Split = None
    val: _Split = None
    test: _Split = None


def _read_yaml(path: Path, *, warn: bool = False) -> tuple[list[str], dict[str, list[Path]]]:
    """The class names of a YAML file, and where the images of each split are; `warn` of a test folder that is not."""
    content = read_as(_Yaml, read_entries(path).as_dict(path), str(path))
    names = _class_names(content, path)
    root = path.parent
    if content.path:
        root /= str(content.path)
        if not root.is_dir():
            raise FileNotFoundError(
                f"{path}: 'path' is {content.path!r}, but {root} does not exist; correct it, or remove it if the "
                "images are beside the file"
            )
    sources: dict[str, list[Path]] = {}
    for split in SPLITS:
        if given := getattr(content, split):
            parts = given if isinstance(given, list) else [given]
            try:
                sources[split] = [_existing(root, part, f"{path}: {split!r}") for part in parts]
            except FileNotFoundError as error:
                # Exports name a test folder that they lack; train and val, before it, are enough to train.
                if split != "test" or sources.keys() != {"train", "val"}:
                    raise
                if warn:
                    warnings.warn(f"{error}; without it, test is left out", stacklevel=3)
    if not sources:
        raise ValueError(f"{path} has none of the splits {', '.join(SPLITS)}; add one, such as `train: images/train`")
    return names, sources


def _class_names(content: _Yaml, path: Path) -> list[str]:
    names = content.names
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        order = [str(number) for number in range(len(names))]
        if numbered.keys() != set(order):
            raise ValueError(f"{path}: 'names' must number the classes 0, 1, 2, ..., got {name_some(names)}")
        names = [numbered[number] for number in order]
    if not names:
        raise ValueError(f"{path}: 'names' must list the classes, as `names: [car, bus]` or `names: {{0: car}}`")
    if content.nc not in (None, len(names)):
        raise ValueError(f"{path}: 'nc' is {content.nc}, but 'names' has {len(names)} classes; correct one of them")
    return [printable(str(name)) for name in names]


def _existing(root: Path, part: str, where: str) -> Path:
    """A folder or file of a split, its path without `..`."""
    tried = [root / part] + [root / part.removeprefix("../")] * part.startswith("../")
    for place in tried:
        if place.exists():
            return Path(os.path.abspath(place))  # noqa: PTH100 (Path.resolve would follow links)
    raise FileNotFoundError(f"{where} is {part!r}, but there is no {' or '.join(map(str, tried))}; correct it")


def _images_of(source: Path, yaml_file: Path) -> list[Path]:
    """The images of a folder, or of a text file that lists them, relative to itself."""
    if source.is_dir():
        return list_images(source)
    if source.suffix != ".txt":
        raise ValueError(f"{yaml_file}: {source} must be a folder of images, or a .txt file that lists images")
    images = [Path(os.path.abspath(source.parent / line)) for _, line in text_lines(source)]  # noqa: PTH100
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(images)} images of {source} are missing: {name_some(missing)}")
    return images


def _label_files(images: list[Path]) -> list[Path]:
    """The label file of each image."""
    owner: dict[Path, Path] = {}
    for image in images:
        label = _in_labels(image.with_suffix(".txt"))
        if label in owner:
            raise ValueError(
                f"{image} is listed twice; list it once"
                if owner[label] == image
                else f"{owner[label]} and {image.name} share the label file {label}; rename one of them"
            )
        owner[label] = image
    return list(owner)


def _in_labels(path: Path) -> Path:
    """A path with its last folder `images` replaced by `labels`; the path itself where no folder is called so."""
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _labels_without_image(sources: list[Path], images: list[Path], labels: list[Path]) -> list[Path]:
    """The label files in the folders of a split's labels that no image belongs to, of this split or of another.

    Files that hold something else, such as `classes.txt`, and empty ones, which say nothing, are none.
    """
    folders = {Path(parent) for source in sources if source.is_dir() for parent, _, _ in os.walk(_in_labels(source))}
    folders |= {label.parent for label in labels}
    # Two splits that are lists of images may share their folders: an image that is not listed is an image all the same.
    neighbours = {image.parent for image in images}
    named = set(labels) | {_in_labels(file).with_suffix(".txt") for place in neighbours for file in _pictures(place)}
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*.txt"))
    return [file for file in files if file not in named and _is_label_file(file)]


def _pictures(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _is_label_file(path: Path) -> bool:
    """Whether the first line of a text file has the numbers of a label."""
    try:
        _, line = next(text_lines(path), (0, ""))
        return len([float(word) for word in line.split()]) >= 5
    except ValueError:
        return False


def _parse(line: str, classes: int, where: str) -> tuple[int, tuple[float, float, float, float]]:
    """The class number of a label, and its box (x, y, width, height) in [0, 1]."""
    try:
        kind, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f"{where}: {line!r} must be numbers `class cx cy width height`") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f"{where} must be `class cx cy width height`, or a class and three or more corners x y, got "
            f"{len(values) + 1} numbers"
        )
    if not kind.is_integer() or not 0 <= kind < classes:
        raise ValueError(f"{where}: class {kind:g} is not one of the {classes} classes 0 to {classes - 1}")
    for value in values:
        if not -_ROUNDING <= value <= 1 + _ROUNDING:  # nan too
            raise ValueError(f"{where}: {value:g} is outside [0, 1]; coordinates are shares of the image's size")
    if len(values) == 4:
        x, y, width, height = values
        return int(kind), (x - width / 2, y - height / 2, width, height)
    x, y = min(values[::2]), min(values[1::2])
    return int(kind), (x, y, max(values[::2]) - x, max(values[1::2]) - y)
