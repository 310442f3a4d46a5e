"""Pascal VOC sets (http://host.robots.ox.ac.uk/pascal/VOC): an XML file of boxes for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from srtod._support.names import printable
from srtod._support.reading import require_regular_file

from .box_tables import LARGEST
from .coco import name_some
from .coco_folder import split_word
from .conversion import Conversion, text_lines
from .image import SUFFIXES

__all__ = ["find_voc", "read_voc"]

LISTS = ("train", "val", "trainval", "test")
LABELS = ("labels.txt", "classes.txt")
SIDES = ("xmin", "ymin", "xmax", "ymax")

MOST_BYTES = 2**24
"""The longest annotation file that is read: tens of thousands of objects."""


class _Part(NamedTuple):
    """Where a split is: the folders of its images and of its annotations, and the list of its images, if any."""

    images: Path
    annotations: Path
    names: Path | None


class _Object(NamedTuple):
    name: str
    box: list[float]  # xmin, ymin, xmax, ymax, as written
    is_difficult: bool


class _Annotation(NamedTuple):
    size: tuple[int, int] | None  # width and height, where they are told
    objects: list[_Object]


def find_voc(folder: str | Path) -> dict[str, Path]:
    """The splits of a VOC set, each with the set's folder, see `read_voc`.

    Raises:
        ValueError: if there are several sets, or two folders for the same split.
    """
    return dict.fromkeys(_parts(Path(folder)), Path(folder))


def read_voc(folder: str | Path, split: str) -> Conversion:
    """Read one split of a Pascal VOC set.

    The folder is laid out in one of three ways. As the authors release it, or with the folder `VOC2007` or its like
    around it: `JPEGImages/`, `Annotations/*.xml`, and a list for each split, `ImageSets/Main/train.txt`, val, trainval
    and test; without a list it is one split, called like the folder. As exports have it: folders train, valid and test
    of images with an XML file beside each. Or one such folder. Images and XML files belong together by their names.

    The classes are those of `labels.txt` or `classes.txt` in the folder, a line each, or else the names in the XML
    files of all splits, sorted. Class k has the category id k + 1.

    VOC counts pixels from 1, and `xmax` and `ymax` belong to the box (PASCAL VOC2012 Development Kit, section 4): 3 to
    6 are four pixels, from 2 to 6 here. Many tools count from 0 instead, and 3 to 6 are three pixels. A set in which
    some box begins below 1 is taken for one of these.

    Objects marked `difficult` are ignore regions of their class: VOC neither demands them nor counts them as false.
    Boxes without an area, files that cannot be read as an image, images without an XML file, and XML files without an
    image are left out and counted. Segmentation is not read.

    Args:
        folder: the folder of the set.
        split: the name of the split.

    Returns:
        The set as COCO data, its folder of images, and what was left out.

    Raises:
        FileNotFoundError: if an image of a list is missing, or its XML file, or no image has one.
        ValueError: if an XML file is malformed, or tells another size than its image has; or no image can be read.
    """
    folder = Path(folder)
    parts = _parts(folder)
    if split not in parts:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(parts)}")
    part = parts[split]
    pictures = _by_stem(part.images)
    files = {place: _xml_files(place) for place in {part.annotations for part in parts.values()}}
    read = {file: _read_annotation(file) for named in files.values() for file in named.values()}
    classes = _class_names(folder, read)
    ids = {name: identity for identity, name in enumerate(classes, start=1)}
    first = 1 - any(min(entry.box[:2]) < 1 for annotation in read.values() for entry in annotation.objects)

    conversion = Conversion(folder, part.images, dict(enumerate(classes, start=1)))
    own = files[part.annotations]
    for name in _names(part, pictures, own, conversion):
        image = conversion.add_image(pictures[name])
        if image is None:
            continue
        size, objects = read[own[name]]
        if size not in (None, (image["width"], image["height"])):
            raise ValueError(
                f"{own[name]} tells {size[0]}x{size[1]} pixels, but {pictures[name].name} has "
                f"{image['width']}x{image['height']}; annotate the image as it is, or correct the size"
            )
        for entry in objects:
            left, top, right, bottom = entry.box
            box = [left - first, top - first, right - left + first, bottom - top + first]
            if entry.is_difficult:
                conversion.add_ignored(image, box, "difficult", ids[entry.name])
            else:
                conversion.add_object(image, ids[entry.name], box)
    conversion.check_readable()
    return conversion


def _parts(folder: Path) -> dict[str, _Part]:
    """The splits of a set, by name; none, if what is there is no VOC set."""
    if not folder.is_dir():
        return {}
    roots = [place for place in (folder, *sorted(folder.glob("VOC*"))) if _is_release(place)]
    if len(roots) > 1:
        raise ValueError(f"{folder} holds several VOC sets: {name_some([root.name for root in roots])}; pass one")
    for root in roots:
        images, annotations, lists = root / "JPEGImages", root / "Annotations", root / "ImageSets/Main"
        named = {split: lists / f"{split}.txt" for split in LISTS if (lists / f"{split}.txt").is_file()}
        if named:
            return {split: _Part(images, annotations, file) for split, file in named.items()}
        return {root.resolve().name: _Part(images, annotations, None)}
    parts: dict[str, _Part] = {}
    inside = [place for place in sorted(folder.glob("*")) if place.is_dir() and split_word(place.name)]
    for place in [folder] if _is_mixed(folder) else inside:
        if _is_release(place):
            part = _Part(place / "JPEGImages", place / "Annotations", None)
        elif _is_mixed(place):
            part = _Part(place, place, None)
        else:
            continue
        name = place.resolve().name
        split = split_word(name) or name
        if split in parts:
            raise ValueError(f"{folder} has two folders of the split {split!r}, one is {name}; rename one")
        parts[split] = part
    return parts


def _is_release(folder: Path) -> bool:
    """Whether a folder is laid out as VOC's authors have it."""
    return (folder / "JPEGImages").is_dir() and next((folder / "Annotations").glob("*.xml"), None) is not None


def _is_mixed(folder: Path) -> bool:
    """Whether some XML file has an image of its name beside it."""
    names = [os.path.splitext(name) for name in os.listdir(folder)]  # noqa: PTH122, PTH208 (10 times faster)
    annotations = {stem for stem, suffix in names if suffix == ".xml"}
    return bool(annotations) and any(suffix.lower() in SUFFIXES and stem in annotations for stem, suffix in names)


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without the suffix."""
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            other = images.setdefault(path.stem, path)
            if other != path:
                raise ValueError(f"{other} and {path.name} would share the annotation {path.stem}.xml; rename one")
    return images


def _xml_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.xml")) if not path.name.startswith(".")}


def _names(part: _Part, pictures: dict[str, Path], files: dict[str, Path], conversion: Conversion) -> list[str]:
    """The images of a split, without suffix; what belongs to none of them is noted."""
    if part.names is None:
        conversion.unlabelled = [pictures[name].name for name in pictures if name not in files]
        conversion.unused = [files[name].name for name in files if name not in pictures]
        names = [name for name in pictures if name in files]
        if not names:
            raise FileNotFoundError(
                f"none of the {len(files)} annotations in {part.annotations} has an image of its name in {part.images}"
                f"; looked for {name_some(list(files))} with {', '.join(SUFFIXES)}"
            )
        return names
    words = [line.split()[0] for _, line in text_lines(part.names)]
    names = list(dict.fromkeys(Path(word).stem if Path(word).suffix.lower() in SUFFIXES else word for word in words))
    for lacking, where in (
        ([name for name in names if name not in pictures], part.images),
        ([name for name in names if name not in files], part.annotations),
    ):
        if lacking:
            raise FileNotFoundError(
                f"{part.names}: {len(lacking)} of {len(names)} images are not in {where}: {name_some(lacking)}; add "
                f"them, or take them out of the list"
            )
    return names


def _class_names(folder: Path, read: dict[Path, _Annotation]) -> list[str]:
    """The classes in the order of their ids."""
    used = {entry.name: file for file, annotation in read.items() for entry in annotation.objects}
    listed = [folder / name for name in LABELS if (folder / name).is_file()]
    if not listed:
        if not used:
            raise ValueError(f"{folder} has no object from which to learn the classes; list them in {LABELS[0]}")
        return sorted(used)
    names = list(dict.fromkeys(printable(line) for _, line in text_lines(listed[0])))
    if unknown := sorted(used.keys() - set(names)):
        raise ValueError(
            f"{used[unknown[0]]} has an object of the class {unknown[0]!r}, which {listed[0]} does not list; add it"
        )
    if not names:
        raise ValueError(f"{listed[0]} is empty; list the classes, one a line, or remove the file")
    return names


def _read_annotation(path: Path) -> _Annotation:
    root = _parse(path)
    if root.tag != "annotation":
        raise ValueError(f"{path} is no VOC annotation: it begins with <{root.tag[:40]}>, not <annotation>; remove it")
    size = tuple(_pixels(root.findtext(f"size/{side}")) for side in ("width", "height"))
    objects = list(_objects(root, path))
    return _Annotation((size[0], size[1]) if all(size) else None, objects)


def _pixels(text: str | None) -> int:
    """A side of the image; 0, as some tools write, where it is not told."""
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _objects(root: Element, path: Path) -> Iterator[_Object]:
    for number, entry in enumerate(root.iterfind("object"), start=1):
        name = printable((entry.findtext("name") or "").strip())
        where = f"{path}: object {number} ({name})" if name else f"{path}: object {number}"
        if not name:
            raise ValueError(f"{where} has no <name>; name its class")
        if entry.find("bndbox") is None:
            raise ValueError(f"{where} has no <bndbox>, the only form of objects that is read; give it a box")
        box = [_number(entry.findtext(f"bndbox/{side}"), f"{where}: {side}") for side in SIDES]
        yield _Object(name, box, (entry.findtext("difficult") or "").strip().lower() in ("1", "true"))


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise ValueError(f"{where} must be a number of pixels, got {(text or '').strip()[:40]!r}; correct it")
    return value


def _parse(path: Path) -> Element:
    """The root of an XML file. Entities, which can unfold to any size, need a document type: that is refused.

    `defusedxml` would do the same, by a parser in Python; this is expat itself.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    require_regular_file(path)
    if (length := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {length} bytes, more than the {MOST_BYTES} of any annotation; remove it")
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not the XML of an annotation ({error}); write it again") from None
    return builder.close()
