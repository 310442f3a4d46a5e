"""COCO-format data sets: the reader and its checks.

Everything about a set that can be wrong is looked at once, when it is opened, so that a training run does not stop
hours later on one bad line. Only the pixels wait until an image is asked for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from srtod._support.names import printable, utf8
from srtod._support.reading import parse_json, read_bytes
from srtod._support.schema import decode_each, read_as

from .box_tables import LARGEST, Annotation, AnnotationTable, Identity
from .detection import DetectionDataset, Sample, Target
from .image import read_image

__all__ = ["CocoDataset", "leads_out", "name_some", "read_coco", "require_files"]

NAMED = 5
"""How many of the offending files or boxes a message names."""


class CocoDataset(DetectionDataset):
    """A data set in COCO's detection format (https://cocodataset.org/#format-data).

    Label k stands for the k-th category in ascending order of category id, so that files which list the same
    categories in another order agree. Images without annotations are kept as negatives, with boxes [0, 4].

    Training targets are cleaned. Boxes are clipped to their image, with a warning that counts and names those that
    reach far beyond it. Boxes with no area left (zero-size, or wholly outside) are dropped, with another. Crowd regions
    (`iscrowd`) are no objects but the target's `ignore` regions, whatever their category; one that is annotated for
    several categories is there once. `ground_truth` is the file as it is, crowd regions and dropped boxes included, so
    that a score here equals one computed from the file.

    Args:
        annotations: the JSON file, or its content as a dict.
        images: folder that each image's `file_name` is relative to.
        transforms: called as `transforms(image, target)` on every sample.
        allow_empty: accept a set without a single box to train on (for prediction or timing).
        allow_outside: accept file names that lead out of the folder, such as `../a.png` or `/data/a.png`.
        name: what messages call the set; by default the JSON file.

    Attributes:
        intensity_range: the values of images of more than 8 bits that become 0 and 1, see `srtod.data.read_image`.

    Raises:
        FileNotFoundError: if the JSON file, the folder or any image file is missing.
        ValueError: if the file is not COCO detection data (see `read_coco`), an annotation id or a file name occurs
            twice, an image has no `file_name`, `width` or `height`, a file name leads out of the folder, or no box is
            left to train on.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any],
        images: str | Path,
        transforms: Callable[[Tensor, Target], Sample] | None = None,
        *,
        allow_empty: bool = False,
        allow_outside: bool = False,
        name: str | None = None,
    ) -> None:
        self._source = name or _name(annotations)
        self._ground_truth, table = _read(annotations, self._source)
        self._folder = Path(images)
        self.transforms = transforms
        self.intensity_range: tuple[float, float] | None = None
        categories = sorted(self._ground_truth["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.class_names = [str(category.get("name", category["id"])) for category in categories]
        self._check_images(allow_outside)
        self._boxes, self._labels, self._ignore = self._clean_annotations(table)
        if not allow_empty and not any(len(labels) for labels in self._labels.values()):
            raise ValueError(
                f"{self._source} has no box to train on or to evaluate with; pass annotations with at least one (only "
                "prediction and timing can do without, for which Python has allow_empty=True)"
            )

    @property
    def ground_truth(self) -> dict[str, Any]:
        return self._ground_truth

    def __len__(self) -> int:
        return len(self._ground_truth["images"])

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`.

        Raises:
            ValueError: if the image file cannot be decoded, or has another size than the annotations say.
        """
        entry = self._ground_truth["images"][index]
        path = self._folder / entry["file_name"]
        image = read_image(path, self.intensity_range)
        height, width = image.shape[-2:]
        if (width, height) != (entry["width"], entry["height"]):
            raise ValueError(
                f"{path} is {width}x{height} pixels, but {self._source} says {entry['width']}x{entry['height']}; "
                "its boxes would be misplaced, so correct the file or the annotations"
            )
        boxes, labels, ignore = (arrays[entry["id"]] for arrays in (self._boxes, self._labels, self._ignore))
        return self._sample(image, boxes, labels, entry["id"], entry["file_name"], ignore)

    @property
    def image_files(self) -> list[Path]:
        """The image files, in the order of the samples."""
        return [self._folder / image["file_name"] for image in self._ground_truth["images"]]

    def _check_images(self, allow_outside: bool) -> None:
        entries = self._ground_truth["images"]
        require_files(entries, self._source)
        position: dict[str, int] = {}
        for index, entry in enumerate(entries):
            name = entry["file_name"]
            earlier = position.setdefault(name, index)
            if earlier != index:
                raise ValueError(
                    f"{self._source}: images[{index}]: file_name {name!r} is that of images[{earlier}] too; list each "
                    "image once"
                )
            if not allow_outside and leads_out(name):
                raise ValueError(
                    f"{self._source}: images[{index}]: file_name {name!r} leads out of the image folder; move the "
                    "images, or set allow_outside if you trust the file"
                )
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"the image folder {self._folder} does not exist; pass the folder of the image files"
            )
        missing = [entry["file_name"] for entry in entries if not (self._folder / entry["file_name"]).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(entries)} images of {self._source} are missing from {self._folder}: "
                f"{name_some(missing)}"
            )

    def _clean_annotations(
        self, table: AnnotationTable
    ) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
        """By image id: boxes float32 [M, 4] (x1, y1, x2, y2), labels int64 [M] and ignore regions."""
        seen = set()
        for number in range(len(table)):
            identity = str(table.identity(number))
            if identity in seen:
                raise ValueError(
                    f"{self._source}: annotations[{number}]: id {identity} occurs twice; ids must be unique"
                )
            seen.add(identity)
        images = self._ground_truth["images"]
        image_ids = np.array([image["id"] for image in images])
        order = image_ids.argsort()
        position = order[image_ids.searchsorted(table.image_ids, sorter=order)]  # of each box's image
        limits = np.array([(image["width"], image["height"]) * 2 for image in images], dtype=np.float32)[position]
        corners = table.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        # In float32 as they are trained on: a sliver that rounds to nothing is dropped too.
        boxes = corners.astype(np.float32).clip(0, limits)
        whole = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        self._warn_of(table, ~whole, "left out {} boxes, which have no area inside their image")
        far = whole & ((corners < -limits) | (corners > 2 * limits)).any(axis=1)
        self._warn_of(table, far, "clipped {} boxes, which reach beyond their image by more than its size")

        def by_image(kept: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
            kept = kept[position[kept].argsort(kind="stable")]
            ends = np.bincount(position[kept], minlength=len(images)).cumsum()[:-1]
            return dict(zip(image_ids.tolist(), np.split(values[kept], ends), strict=True))

        labels = np.searchsorted(self.category_ids, table.category_ids) + 1
        objects, regions = (np.flatnonzero(whole & chosen) for chosen in (~table.crowd, table.crowd))
        places = np.column_stack([position[regions], boxes[regions]])
        regions = regions[np.sort(np.unique(places, axis=0, return_index=True)[1])]  # the first of each
        return by_image(objects, boxes), by_image(objects, labels), by_image(regions, boxes)

    def _warn_of(self, table: AnnotationTable, which: np.ndarray, what: str) -> None:
        if which.any():
            ids = [table.identity(number) for number in np.flatnonzero(which).tolist()]
            warnings.warn(
                f"{self._source}: {what.format(f'{len(ids)} of {len(table)}')} (annotation ids {name_some(ids)})",
                stacklevel=4,
            )


_Pixels = Annotated[int, Meta(ge=1, le=LARGEST)] | UnsetType
_SIZE = Meta(description=f"an integer of at least 1 pixel, up to {LARGEST}")


class _Lists(msgspec.Struct):
    images: Annotated[list[Any], Meta(description="a list")]
    annotations: Annotated[list[Any], Meta(description="a list")]
    categories: Annotated[list[Any], Meta(description="a list")]


class _Image(msgspec.Struct):
    id: Identity
    file_name: Annotated[
        Annotated[str, Meta(pattern=r"\A[^\0]+\Z")] | UnsetType,
        Meta(description="text, the image's path in its folder"),
    ] = UNSET
    width: Annotated[_Pixels, _SIZE] = UNSET
    height: Annotated[_Pixels, _SIZE] = UNSET


class _Category(msgspec.Struct):
    id: Identity
    name: Annotated[str | int | float | UnsetType | None, Meta(description="text")] = UNSET


class _File(msgspec.Struct):
    images: list[dict[str, Any]]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]


def read_coco(source: str | Path | Mapping[str, Any], *, name: str | None = None) -> dict[str, Any]:
    """Read and check COCO detection data, as far as training and evaluation both need it.

    Args:
        source: a JSON file, or its content as a dict.
        name: what messages call it; by default the JSON file.

    Returns:
        The content: `images`, `annotations` (boxes [x, y, width, height] in pixels) and `categories`. Of a file, the
        annotations are an `AnnotationTable`, a sequence of dicts with the keys that detection needs. Line breaks and
        control characters in the categories' names are replaced by spaces, with a warning.

    Raises:
        FileNotFoundError: if the file is missing.
        TypeError: if `source` is neither a path nor a dict.
        ValueError: if the file is no regular file, empty or not JSON; one of the three lists or an entry's key is
            missing or has the wrong type; an image or category id occurs twice; an annotation names an unknown image or
            category; a box is not four finite numbers, or has a negative size or area.
    """
    return _read(source, name or _name(source))[0]


def _read(source: str | Path | Mapping[str, Any], name: str) -> tuple[dict[str, Any], AnnotationTable]:
    """The content of COCO data, and its annotations as a table."""
    if isinstance(source, (str, Path)):
        content = _read_file(source)
    elif isinstance(source, Mapping):
        content = dict(source)
    else:
        raise TypeError(f"COCO data must be a path or a dict, got {type(source).__name__}")
    table = content["annotations"] if isinstance(content, dict) and "annotations" in content else None
    if isinstance(table, AnnotationTable):
        lists = read_as(_Lists, content | {"annotations": []}, name)
    else:
        lists = read_as(_Lists, content, name)
        table = AnnotationTable(
            read_as(Annotation, entry, f"{name}: annotations[{index}]") for index, entry in enumerate(lists.annotations)
        )
    ids = {}
    for key, schema, entries in (("images", _Image, lists.images), ("categories", _Category, lists.categories)):
        if not entries:
            raise ValueError(f"{name} lists no {key}")
        ids[key] = _unique_ids(schema, entries, f"{name}: {key}")
    table.check_ids(ids["images"], ids["categories"], lambda number: f"{name}: annotations[{number}]")
    content["categories"] = _with_clean_names(lists.categories, name)
    return content, table


def _read_file(path: str | Path) -> Any:
    """The content of a COCO file; its annotations as a table, unless something in it has to be named."""
    data = read_bytes(path)
    try:
        file = msgspec.json.decode(data, type=_File)
        table = AnnotationTable(decode_each(Annotation, file.annotations))
    except (msgspec.DecodeError, RecursionError):  # it may be slow from here: this takes NaN, or finds what is wrong
        return parse_json(data, path)
    return {"images": file.images, "annotations": table, "categories": file.categories}


def _unique_ids(schema: type[_Image | _Category], entries: list[Any], where: str) -> set[int]:
    ids: set[int] = set()
    for index, entry in enumerate(entries):
        identity = read_as(schema, entry, f"{where}[{index}]").id
        if identity in ids:
            raise ValueError(f"{where}[{index}]: id {identity} occurs twice; ids must be unique")
        ids.add(identity)
    return ids


def _with_clean_names(categories: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Categories whose names fit on a line."""
    broken = [category for category in categories if not str(category.get("name", "")).isprintable()]
    if not broken:
        return categories
    warnings.warn(
        f"{source}: {len(broken)} category names hold line breaks or control characters, which became spaces: "
        f"{name_some(repr(category['name']) for category in broken)}",
        stacklevel=5,
    )
    return [
        category | {"name": printable(str(category["name"]))} if category in broken else category
        for category in categories
    ]


def require_files(images: Sequence[Mapping[str, Any]], source: str) -> None:
    """Checks that all images of COCO data have a `file_name`, `width` and `height`; `source` is what errors call it.

    Raises:
        ValueError: if one has not.
    """
    for index, image in enumerate(images):
        for key in ("file_name", "width", "height"):
            if key not in image:
                raise ValueError(
                    f"{source}: images[{index}] has no {key!r}; write it there, for boxes cannot be checked without"
                )


def leads_out(file_name: str) -> bool:
    """Whether a file name leads out of the folder that it is relative to."""
    return f"{os.path.normpath(file_name)}/".startswith(("/", "../"))


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the COCO data"


def name_some(items: Iterable[Any]) -> str:
    """The first five of some offenders, for a message that counts them."""
    items = [utf8(str(item)) for item in items]
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
