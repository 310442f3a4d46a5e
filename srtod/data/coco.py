"""COCO-format data sets: the reader and its checks.

Everything about a set that can be wrong is looked at once, when it is opened, so that a training run does not stop
hours later on one bad line. Only the pixels wait until an image is asked for.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .detection import DetectionDataset, Sample, Target
from .image import read_image

__all__ = ["CocoDataset", "check_box", "field", "name_some", "read_coco", "read_json"]

NAMED = 5
"""How many of the offending files or boxes a message names."""


class CocoDataset(DetectionDataset):
    """A data set in COCO's detection format (https://cocodataset.org/#format-data).

    Label k stands for the k-th category in ascending order of category id, so that files which list the same
    categories in another order agree. Images without annotations are kept as negatives, with boxes [0, 4].

    Training targets are cleaned: boxes are clipped to their image; boxes with no area left (zero-size, or wholly
    outside) are dropped, with one warning that counts and names them. Crowd regions (`iscrowd`) are no objects but the
    target's `ignore` regions, whatever their category; one that is annotated for several categories is there once.
    `ground_truth` is the file as it is, crowd regions and dropped boxes included, so that a score here equals one
    computed from the file.

    Args:
        annotations: the JSON file, or its content as a dict.
        images: folder that each image's `file_name` is relative to.
        transforms: called as `transforms(image, target)` on every sample.
        allow_empty: accept a set without a single box to train on (for prediction or timing).
        name: what messages call the set; by default the JSON file.

    Raises:
        FileNotFoundError: if the JSON file, the folder or any image file is missing.
        ValueError: if the file is not COCO detection data (see `read_coco`), an annotation id or a file name occurs
            twice, an image has no `file_name`, `width` or `height`, or no box is left to train on.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any],
        images: str | Path,
        transforms: Callable[[Tensor, Target], Sample] | None = None,
        *,
        allow_empty: bool = False,
        name: str | None = None,
    ) -> None:
        self._source = name or _name(annotations)
        self._ground_truth = read_coco(annotations, name=self._source)
        self._folder = Path(images)
        self.transforms = transforms
        categories = sorted(self._ground_truth["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.class_names = [str(category.get("name", category["id"])) for category in categories]
        self._check_images()
        self._boxes, self._labels, self._ignore = self._clean_annotations()
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
        image = read_image(path)
        height, width = image.shape[-2:]
        if (width, height) != (entry["width"], entry["height"]):
            raise ValueError(
                f"{path} is {width}x{height} pixels, but {self._source} says {entry['width']}x{entry['height']}; "
                "its boxes would be misplaced, so correct the file or the annotations"
            )
        boxes, labels, ignore = (arrays[entry["id"]] for arrays in (self._boxes, self._labels, self._ignore))
        return self._sample(image, boxes, labels, entry["id"], entry["file_name"], ignore)

    def _check_images(self) -> None:
        entries = self._ground_truth["images"]
        position: dict[str, int] = {}
        for index, entry in enumerate(entries):
            where = f"{self._source}: images[{index}]"
            earlier = position.setdefault(field(entry, "file_name", str, where), index)
            if earlier != index:
                raise ValueError(
                    f"{where}: file_name {entry['file_name']!r} is that of images[{earlier}] too; list each image once"
                )
            for key in ("width", "height"):
                if field(entry, key, Integral, where) < 1:
                    raise ValueError(f"{where}: {key!r} must be at least 1 pixel, got {entry[key]}")
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

    def _clean_annotations(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
        """By image id: boxes float32 [M, 4] (x1, y1, x2, y2), labels int64 [M] and ignore regions."""
        label_of = {category: label for label, category in enumerate(self.category_ids, start=1)}
        limits = {image["id"]: (image["width"], image["height"]) * 2 for image in self._ground_truth["images"]}
        boxes: dict[int, list[np.ndarray]] = defaultdict(list)
        labels: dict[int, list[int]] = defaultdict(list)
        ignore: dict[int, dict[tuple[float, ...], None]] = defaultdict(dict)  # a set that keeps its order
        dropped = []
        seen = set()
        for index, annotation in enumerate(self._ground_truth["annotations"]):
            identity = str(annotation.get("id", f"#{index}"))
            if identity in seen:
                raise ValueError(
                    f"{self._source}: annotations[{index}]: id {identity} occurs twice; ids must be unique"
                )
            seen.add(identity)
            image = annotation["image_id"]
            x, y, width, height = annotation["bbox"]
            # In float32 as they are trained on: a sliver that rounds to nothing is dropped too.
            box = np.array([x, y, x + width, y + height], dtype=np.float32).clip(0, limits[image])
            if not (box[2] > box[0] and box[3] > box[1]):
                dropped.append(identity)
            elif annotation.get("iscrowd"):
                ignore[image][tuple(box.tolist())] = None
            else:
                boxes[image].append(box)
                labels[image].append(label_of[annotation["category_id"]])
        if dropped:
            warnings.warn(
                f"{self._source}: left out {len(dropped)} of {len(seen)} boxes, which have no area inside their image "
                f"(annotation ids {name_some(dropped)})",
                stacklevel=3,
            )
        return (
            {image: np.array(boxes[image], dtype=np.float32).reshape(-1, 4) for image in limits},
            {image: np.array(labels[image], dtype=np.int64) for image in limits},
            {image: np.array(list(ignore[image]), dtype=np.float32).reshape(-1, 4) for image in limits},
        )


def read_coco(source: str | Path | Mapping[str, Any], *, name: str | None = None) -> dict[str, Any]:
    """Read and check COCO detection data, as far as training and evaluation both need it.

    Args:
        source: a JSON file, or its content as a dict.
        name: what messages call it; by default the JSON file.

    Returns:
        The content: `images`, `annotations` (boxes [x, y, width, height] in pixels) and `categories`.

    Raises:
        FileNotFoundError: if the file is missing.
        TypeError: if `source` is neither a path nor a dict.
        ValueError: if the file is empty or not JSON; one of the three lists or an entry's key is missing or has the
            wrong type; an image or category id occurs twice; an annotation names an unknown image or category; a box
            is not four finite numbers, or has a negative size or area.
    """
    name = name or _name(source)
    if isinstance(source, (str, Path)):
        content = read_json(source)
    elif isinstance(source, Mapping):
        content = source
    else:
        raise TypeError(f"COCO data must be a path or a dict, got {type(source).__name__}")
    lists = {key: field(content, key, list, name) for key in ("images", "annotations", "categories")}
    image_ids = _unique_ids(lists["images"], f"{name}: images")
    category_ids = _unique_ids(lists["categories"], f"{name}: categories")
    for key, ids in (("images", image_ids), ("categories", category_ids)):
        if not ids:
            raise ValueError(f"{name} lists no {key}")
    for index, annotation in enumerate(lists["annotations"]):
        where = f"{name}: annotations[{index}]"
        check_box(annotation, image_ids, category_ids, where)
        if "area" in annotation and not 0 <= field(annotation, "area", Real, where) < math.inf:
            raise ValueError(f"{where}: 'area' must be finite and not negative, got {annotation['area']}")
    return dict(content)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is empty, or not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; pass the path of a JSON file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; pass the path of a JSON file") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; write it again")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut short?") from None


def check_box(entry: Any, image_ids: set[int], category_ids: set[int], where: str) -> None:
    """Check what an annotation and a detection have in common: image, category and box.

    Raises:
        ValueError: if a key is missing or malformed, an id unknown, or the box not finite or of negative size.
    """
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if field(entry, key, Integral, where) not in known:
            raise ValueError(
                f"{where}: {key!r} {entry[key]} is not among the ids of the ground truth; list it there, or leave this "
                "entry out"
            )
    box = field(entry, "bbox", (Sequence, np.ndarray), where)
    if len(box) != 4 or not all(isinstance(value, Real) and math.isfinite(value) for value in box):
        raise ValueError(f"{where}: 'bbox' must be four finite numbers [x, y, width, height], got {reprlib.repr(box)}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: 'bbox' {box} has a negative size; COCO boxes are [x, y, width, height]")


_KIND = {str: "text", Integral: "an integer", Real: "a number", list: "a list", (Sequence, np.ndarray): "a list"}


def field(entry: Any, key: str, kind: Any, where: str) -> Any:
    """`entry[key]`, which must be there and be of the given kind.

    Raises:
        ValueError: if `entry` is no dict, has no such key, or another kind of value there.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {type(entry).__name__}")
    if key not in entry:
        raise ValueError(f"{where} has no {key!r}")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} must be {_KIND[kind]}, got {reprlib.repr(value)}")
    return value


def _unique_ids(entries: list[Any], where: str) -> set[int]:
    ids: set[int] = set()
    for index, entry in enumerate(entries):
        identity = field(entry, "id", Integral, f"{where}[{index}]")
        if identity in ids:
            raise ValueError(f"{where}[{index}]: id {identity} occurs twice; ids must be unique")
        ids.add(identity)
    return ids


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the COCO data"


def name_some(items: Iterable[Any]) -> str:
    """The first five of some offenders, for a message that counts them."""
    items = [str(item) for item in items]
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
