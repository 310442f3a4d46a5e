"""What was found in an image: a dictionary of tensors that draws, saves and converts itself."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from srtod._support.files import replacing
from srtod.evaluation import coco_results
from srtod.visualization import SCORE, draw_detections

if TYPE_CHECKING:
    import supervision

__all__ = ["CSV_COLUMNS", "Detections"]

CSV_COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2")


class Detections(dict[str, Tensor]):
    """The objects of an image, best first: `boxes` `[K, 4]`, `labels` `[K]` from 1, `scores` `[K]` in [0, 1].

        detections = predictor("a.jpg")
        detections["boxes"]             # (x1, y1, x2, y2) in pixels of the image, on the CPU
        detections.above(0.5).names     # ["drone", "bird"]
        detections.save("found.png")    # a picture; .json, .csv and .txt by the suffix

    Args:
        values: the three tensors.
        size: (height, width) of the image in pixels.
        class_names: name of each class; label k is `class_names[k - 1]`.
        category_ids: COCO category id of each class.
        name: the image's file name, empty where it has none.
        read: gives the image `[3, H, W]` in [0, 1] when it is to be drawn.
        drawn_from: the score from which they are drawn, where no other is asked for.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        size: tuple[int, int],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        name: str,
        read: Callable[[], Tensor],
        drawn_from: float = SCORE,
    ) -> None:
        super().__init__(values)
        self.size = size
        self.class_names = class_names
        self.category_ids = category_ids
        self.name = name
        self.drawn_from = drawn_from
        self._read = read

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        best = f", best score {float(self['scores'][0]):.2f}" if self.count else ""
        height, width = self.size
        return f"Detections({self.name or 'an image'} of {width}x{height}: {counts or 'nothing'}{best})"

    @property
    def count(self) -> int:
        """The number of objects; `len` is that of the tensors."""
        return len(self["scores"])

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label - 1] for label in self["labels"].tolist()]

    def above(self, score: float) -> Detections:
        """Those that score at least this."""
        kept = self["scores"] >= score
        return Detections(
            {name: values[kept] for name, values in self.items()},
            size=self.size,
            class_names=self.class_names,
            category_ids=self.category_ids,
            name=self.name,
            read=self._read,
            drawn_from=self.drawn_from,
        )

    def draw(self, score: float | None = None) -> Image.Image:
        """The image with the detections that score at least this, or by default `drawn_from`; see `draw_detections`."""
        return draw_detections(self._read(), self, self.class_names, score=self.drawn_from if score is None else score)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height) and `score` of each object."""
        return coco_results(self, image_id, self.category_ids)

    def to_yolo(self) -> str:
        """A line an object: class from 0, centre x and y, width, height as shares of the image, score."""
        height, width = self.size
        lines = []
        for (x1, y1, x2, y2), label, score in self.rows():
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label - 1} {' '.join(f'{share:.6f}' for share in shares)} {score:.4f}\n")
        return "".join(lines)

    def csv_rows(self) -> list[list[Any]]:
        """What stands in the columns `CSV_COLUMNS` of each object."""
        return [
            [self.name, self.class_names[label - 1], round(score, 4), *(round(side, 2) for side in box)]
            for box, label, score in self.rows()
        ]

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections` of roboflow's package, classes from 0.

        Raises:
            ImportError: if the package is not installed.
        """
        try:
            from supervision import Detections as Theirs
        except ImportError as error:
            raise ImportError("to_supervision needs a package that is missing; `pip install supervision`") from error
        import numpy as np

        return Theirs(
            xyxy=self["boxes"].numpy(),
            confidence=self["scores"].numpy(),
            class_id=self["labels"].numpy() - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def save(self, path: str | PathLike[str], score: float | None = None) -> None:
        """Writes them to a file, which is there whole or not at all.

        Args:
            path: .png, .jpg and other suffixes of pictures: a drawing; .json: COCO results; .csv; .txt: YOLO's format.
            score: objects must score at least this; None: `drawn_from` in drawings, and any in other files.

        Raises:
            OSError: if it cannot be written.
            ValueError: if the suffix is none of these.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        chosen = self if score is None else self.above(score)
        if suffix == ".json":
            text = json.dumps(chosen.to_coco(), indent=1) + "\n"
        elif suffix == ".txt":
            text = chosen.to_yolo()
        elif suffix == ".csv":
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows([CSV_COLUMNS, *chosen.csv_rows()])
            text = buffer.getvalue()
        elif (kind := Image.registered_extensions().get(suffix)) in Image.SAVE:
            picture = self.draw(score)
            with replacing(path, binary=True) as file:
                picture.save(file, format=kind)
            return
        else:
            raise ValueError(f"{path} must end in .json, .csv, .txt or the suffix of a picture, such as .png")
        with replacing(path) as file:
            file.write(text)

    def rows(self) -> list[tuple[list[float], int, float]]:
        """Box, label and score of each object, in plain numbers."""
        return list(zip(self["boxes"].tolist(), self["labels"].tolist(), self["scores"].tolist(), strict=True))
