"""Boxes of a COCO file: what each must be, and a table of them that takes a tenth of the memory of their dicts."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, overload

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

__all__ = ["LARGEST", "Annotation", "AnnotationTable", "BoxTable", "Detection", "DetectionTable", "Identity"]

LARGEST = 2**31 - 1
"""The largest coordinate, in pixels: no image is larger, and all that is computed of it stays finite in float32."""

_CHUNK = 4096

_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Identity = Annotated[_Int64, Meta(description="an integer")]
_Coordinate = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)] | Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
_Side = Annotated[int, Meta(ge=0, le=LARGEST)] | Annotated[float, Meta(ge=0, le=LARGEST)]
Box = Annotated[
    tuple[_Coordinate, _Coordinate, _Side, _Side],
    Meta(
        description=f"four finite numbers [x, y, width, height] in pixels, up to {LARGEST}, without a negative size",
    ),
]


class Annotation(msgspec.Struct, gc=False):
    """An annotation of a COCO file."""

    image_id: Identity
    category_id: Identity
    bbox: Box
    id: Annotated[_Int64 | str | UnsetType | None, Meta(description="an integer or text")] = UNSET
    area: Annotated[Annotated[float, Meta(ge=0, le=1e300)] | UnsetType, Meta(description="finite and not negative")] = (
        UNSET
    )
    iscrowd: Annotated[Literal[0, 1] | bool | None, Meta(description="0 or 1")] = 0


class Detection(msgspec.Struct, gc=False):
    """An entry of COCO's results."""

    image_id: Identity
    category_id: Identity
    bbox: Box
    score: Annotated[float, Meta(ge=-1e300, le=1e300, description="a finite number")]


class BoxTable(Sequence[dict[str, Any]]):
    """Boxes in columns; as a sequence it makes a dict of each when asked for it.

    Args:
        entries: the boxes, in order.

    Attributes:
        image_ids: int64 [N].
        category_ids: int64 [N].
        boxes: float64 [N, 4], (x, y, width, height) in pixels.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        boxes, whole, image_ids, category_ids = array("d"), array("b"), array("q"), array("q")
        for entry in entries:
            image_ids.append(entry.image_id)
            category_ids.append(entry.category_id)
            boxes.extend(entry.bbox)
            whole.extend([type(value) is int for value in entry.bbox])
            self._add(entry)
        self.image_ids = np.asarray(image_ids)
        self.category_ids = np.asarray(category_ids)
        self.boxes = np.asarray(boxes).reshape(-1, 4)
        self._whole = np.asarray(whole).view(bool).reshape(-1, 4)  # what the file has as whole numbers stays so

    @abstractmethod
    def _add(self, entry: Any) -> None:
        """Takes what a box has beside the columns that all have."""

    @abstractmethod
    def _rows(self, part: slice) -> Iterator[dict[str, Any]]:
        """The dicts of some of the boxes."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _CHUNK):
            yield from self._rows(slice(start, start + _CHUNK))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return list(self._rows(index))
        index = range(len(self))[index]  # an IndexError where there is none
        return next(self._rows(slice(index, index + 1)))

    def _common(self, part: slice) -> Iterator[tuple[int, int, list[float]]]:
        """Image, category and box of some of the boxes."""
        boxes, whole = self.boxes[part], self._whole[part]
        if whole.any():
            boxes = np.where(whole, boxes.astype(np.int64).astype(object), boxes.astype(object))
        return zip(self.image_ids[part].tolist(), self.category_ids[part].tolist(), boxes.tolist(), strict=True)

    def check_ids(self, images: Iterable[int], categories: Iterable[int], place: Callable[[int], str]) -> None:
        """Checks that the images and categories of all boxes are known.

        Args:
            images: the ids that there are.
            categories: the ids that there are.
            place: what errors call the box of a number.

        Raises:
            ValueError: if an id is none of these.
        """
        for key, used, known in (
            ("image_id", self.image_ids, images),
            ("category_id", self.category_ids, categories),
        ):
            unknown = np.flatnonzero(~np.isin(used, np.fromiter(known, np.int64)))
            if len(unknown):
                raise ValueError(
                    f"{place(unknown[0])}: {key!r} {used[unknown[0]]} is not among the ids of the ground truth; list "
                    "it there, or leave this entry out"
                )


class AnnotationTable(BoxTable):
    """The annotations of a COCO file, of which `bbox`, `area`, `iscrowd` and the ids are kept.

    Where the file has no `area`, it is that of the box; an annotation without `id` is `#` and its number.

    Attributes:
        areas: float64 [N], in square pixels.
        crowd: bool [N].
    """

    def __init__(self, entries: Iterable[Annotation]) -> None:
        self._ids, self._areas, self._crowd = array("q"), array("d"), array("b")
        self._texts: dict[int, str] = {}  # ids that are no integers, by the number of the annotation
        super().__init__(entries)
        self.areas, self.crowd = np.asarray(self._areas), np.asarray(self._crowd).view(bool)

    def _add(self, entry: Annotation) -> None:
        number = len(self._ids)
        if not isinstance(entry.id, int):
            self._texts[number] = entry.id if isinstance(entry.id, str) else f"#{number}"
        self._ids.append(entry.id if isinstance(entry.id, int) else 0)
        self._areas.append(entry.bbox[2] * entry.bbox[3] if isinstance(entry.area, UnsetType) else entry.area)
        self._crowd.append(bool(entry.iscrowd))

    def identity(self, number: int) -> int | str:
        """The id of an annotation."""
        return self._texts.get(number, self._ids[number])

    def _rows(self, part: slice) -> Iterator[dict[str, Any]]:
        numbers = range(len(self))[part]
        areas, crowd = self.areas[part].tolist(), self.crowd[part].astype(int).tolist()
        for number, (image, category, box), area, iscrowd in zip(
            numbers, self._common(part), areas, crowd, strict=True
        ):
            yield {
                "id": self.identity(number),
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": area,
                "iscrowd": iscrowd,
            }


class DetectionTable(BoxTable):
    """Detections, of which image, category, box and score are kept.

    Attributes:
        scores: float64 [N].
    """

    def __init__(self, entries: Iterable[Detection]) -> None:
        self._scores = array("d")
        super().__init__(entries)
        self.scores = np.asarray(self._scores)

    def _add(self, entry: Detection) -> None:
        self._scores.append(entry.score)

    def _rows(self, part: slice) -> Iterator[dict[str, Any]]:
        for (image, category, box), score in zip(self._common(part), self.scores[part].tolist(), strict=True):
            yield {"image_id": image, "category_id": category, "bbox": box, "score": score}
