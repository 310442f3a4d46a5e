"""What the readers of other formats share: a set on its way into COCO's format, and lines of text files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .image import image_size

__all__ = ["Conversion", "text_lines"]


class Conversion:
    """A set that is being turned into COCO data, and the count of what that did to its boxes.

    Boxes without an area inside their image are dropped and counted. An ignore region, where objects were not annotated
    one by one, becomes a crowd annotation of every category, which is how COCO's evaluators come to honour it.

    Args:
        source: the file or folder that is read, for messages.
        folder: where the image files are; their `file_name` is relative to it.
        class_names: the name of each category, by id.

    Attributes:
        content: COCO's `images`, `annotations` and `categories`; images and annotations are numbered from 1.
        ignored: number of ignore regions, by the reason that they are ignored for.
        degenerate: number of boxes and regions dropped.
    """

    def __init__(self, source: Path, folder: Path, class_names: Mapping[int, str]) -> None:
        self.source = source
        self.folder = folder
        self.class_names = dict(class_names)
        self.ignored: Counter[str] = Counter()
        self.degenerate = 0
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": identity, "name": name} for identity, name in self.class_names.items()],
        }

    def add_image(self, path: Path) -> dict[str, Any]:
        """Adds an image file of the folder, of which only the header is read, and returns its entry.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not an image.
        """
        width, height = image_size(path)
        images = self.content["images"]
        name = path.relative_to(self.folder).as_posix()
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        return dict(images[-1])

    def add_object(self, image: Mapping[str, Any], category: int, box: list[float], **more: Any) -> None:
        """Adds an object of an image; `box` is [x, y, width, height] in pixels, `more` further keys to keep."""
        if self._has_area(image, box):
            self._annotate(image, category, box, 0, more)

    def add_ignored(self, image: Mapping[str, Any], box: list[float], reason: str, **more: Any) -> None:
        """Adds an ignore region of an image; `box` is [x, y, width, height] in pixels."""
        if self._has_area(image, box):
            self.ignored[reason] += 1
            for category in self.class_names:
                self._annotate(image, category, box, 1, more)

    def warn(self) -> None:
        """Warns if boxes were dropped."""
        if self.degenerate:
            warnings.warn(
                f"{self.source}: left out {self.degenerate} boxes, which have no area inside their image", stacklevel=3
            )

    def summary(self) -> str:
        """The counts as a table: images, objects of each class, ignore regions by reason, boxes dropped."""
        objects = [entry for entry in self.content["annotations"] if not entry["iscrowd"]]
        classes = Counter(entry["category_id"] for entry in objects)
        images = len(self.content["images"])
        rows = [("images", images), ("  without objects", images - len({entry["image_id"] for entry in objects}))]
        rows += [("objects", len(objects))]
        rows += [(f"  {name}", classes[identity]) for identity, name in self.class_names.items()]
        rows += [("ignore regions", self.ignored.total())]
        rows += [(f"  {reason}", count) for reason, count in sorted(self.ignored.items())]
        rows += [("boxes without area, dropped", self.degenerate)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>8}" for name, count in rows)

    def _has_area(self, image: Mapping[str, Any], box: list[float]) -> bool:
        x, y, width, height = box
        inside = min(x + width, image["width"]) > max(x, 0) and min(y + height, image["height"]) > max(y, 0)
        self.degenerate += not inside
        return inside

    def _annotate(
        self, image: Mapping[str, Any], category: int, box: list[float], crowd: int, more: dict[str, Any]
    ) -> None:
        annotations = self.content["annotations"]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
                **more,
            }
        )


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; write it again") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line := line.strip():
            yield number, line
