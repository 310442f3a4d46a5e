"""What the readers of other formats share: a set on its way into COCO's format, and lines of text files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srtod._support.reading import require_regular_file

from .coco import name_some
from .image import ImageError, image_size

__all__ = ["Conversion", "text_lines"]


class Conversion:
    """A set that is being turned into COCO data, and the count of what that did to its boxes.

    Boxes without an area inside their image are dropped and counted. An ignore region, where objects were not annotated
    one by one, becomes a crowd annotation of every category that it may hide: so COCO's evaluators honour it.

    Args:
        source: the file or folder that is read, for messages.
        folder: where the image files are; their `file_name` is relative to it.
        class_names: the name of each category, by id.

    Attributes:
        content: COCO's `images`, `annotations` and `categories`; images and annotations are numbered from 1.
        ignored: number of ignore regions, by the reason that they are ignored for.
        degenerate: number of boxes and regions dropped.
        unreadable: image files left out, with their boxes, because they cannot be read as an image.
        unlabelled: image files left out, because they have no label file; the reader adds them.
        unused: label files that no image belongs to; the reader adds them.
    """

    def __init__(self, source: Path, folder: Path, class_names: Mapping[int, str]) -> None:
        self.source = source
        self.folder = folder
        self.class_names = dict(class_names)
        self.ignored: Counter[str] = Counter()
        self.degenerate = 0
        self.unreadable: list[str] = []
        self.unlabelled: list[str] = []
        self.unused: list[str] = []
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": identity, "name": name} for identity, name in self.class_names.items()],
        }

    def add_image(self, path: Path) -> dict[str, Any] | None:
        """Adds an image file of the folder, of which only the header is read, and returns its entry.

        A file that cannot be read as an image is counted instead, and None returned: leave its boxes out.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        name = path.relative_to(self.folder).as_posix()
        try:
            width, height = image_size(path)
        except ImageError:
            self.unreadable.append(name)
            return None
        images = self.content["images"]
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        return dict(images[-1])

    def add_object(self, image: Mapping[str, Any], category: int, box: list[float], **more: Any) -> None:
        """Adds an object of an image; `box` is [x, y, width, height] in pixels, `more` further keys to keep."""
        if self._has_area(image, box):
            self._annotate(image, category, box, 0, more)

    def add_ignored(
        self, image: Mapping[str, Any], box: list[float], reason: str, category: int | None = None, **more: Any
    ) -> None:
        """Adds an ignore region of an image, of all categories or of one; `box` is [x, y, width, height] in pixels."""
        if self._has_area(image, box):
            self.ignored[reason] += 1
            for each in self.class_names if category is None else (category,):
                self._annotate(image, each, box, 1, more)

    def check_readable(self) -> None:
        """Raises an ImageError if images were added, but none of them can be read."""
        if self.unreadable and not self.content["images"]:
            raise ImageError(
                f"{self.source}: none of the {len(self.unreadable)} images in {self.folder} can be read as an image: "
                f"{name_some(self.unreadable)}; replace them"
            )

    def warn_of_dropped(self) -> None:
        """Warns if boxes were dropped, or image or label files left out."""
        if self.degenerate:
            warnings.warn(
                f"{self.source}: left out {self.degenerate} boxes, which have no area inside their image", stacklevel=3
            )
        if self.unreadable:
            warnings.warn(
                f"{self.source}: left out {len(self.unreadable)} files in {self.folder} that cannot be read as an "
                f"image, and their labels: {name_some(self.unreadable)}; replace or remove them",
                stacklevel=3,
            )
        if self.unlabelled:
            warnings.warn(
                f"{self.source}: left out {len(self.unlabelled)} images without a label file of the same name: "
                f"{name_some(self.unlabelled)}; add the files, without objects where there are none",
                stacklevel=3,
            )
        if self.unused:
            warnings.warn(
                f"{self.source}: left out {len(self.unused)} label files without an image of the same name: "
                f"{name_some(self.unused)}; add the images, or remove the files",
                stacklevel=3,
            )

    def summary(self) -> str:
        """The counts as a table: images, objects of each class, ignore regions by reason, what was left out."""
        objects = [entry for entry in self.content["annotations"] if not entry["iscrowd"]]
        classes = Counter(entry["category_id"] for entry in objects)
        images = len(self.content["images"])
        rows = [("images", images), ("  without objects", images - len({entry["image_id"] for entry in objects}))]
        rows += [("objects", len(objects))]
        rows += [(f"  {name}", classes[identity]) for identity, name in self.class_names.items()]
        rows += [("ignore regions", self.ignored.total())]
        rows += [(f"  {reason}", count) for reason, count in sorted(self.ignored.items())]
        rows += [("boxes without area, dropped", self.degenerate)]
        files = {
            "files that cannot be read as an image": self.unreadable,
            "images without a label file": self.unlabelled,
            "label files without an image": self.unused,
        }
        left_out = {what: names for what, names in files.items() if names}
        width = max(map(len, [*dict(rows), *left_out]))
        lines = [f"{name:<{width}}  {count:>8}" for name, count in rows]
        for what, names in left_out.items():
            lines += [f"{what:<{width}}  {len(names):>8}", f"  {name_some(names)}"]
        return "\n".join(lines)

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
        ValueError: if it is no regular file, or not text.
    """
    require_regular_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; write it again") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line := line.strip():
            yield number, line
