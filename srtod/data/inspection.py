"""A look at a data set before training: what it consists of, and what is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .coco import read_coco
from .layouts import TRAIN_SPLITS, DataFolder, open_folder
from .problems import Problem, find_problems, shared_images, unlike_categories
from .statistics import SetStatistics, set_statistics

__all__ = ["Inspection", "inspect_data"]


@dataclass(frozen=True)
class Inspection:
    """A data set whose annotations are read.

    Attributes:
        layout: what it is, such as `COCO layout`.
        folder: the folder; None where a COCO file and its images were given.
        splits: content as COCO data and image folder of each split, by name.
        left_out: what the reader of each split warned of, by name.
    """

    layout: str
    folder: DataFolder | None
    splits: Mapping[str, tuple[Mapping[str, Any], Path]]
    left_out: Mapping[str, list[str]]

    @cached_property
    def statistics(self) -> dict[str, SetStatistics]:
        """The numbers of each split, by name."""
        return {name: set_statistics(content) for name, (content, _) in self.splits.items()}

    def problems(self, *, detections: int = 100, decode: bool = False) -> Iterator[tuple[str, list[Problem]]]:
        """What is wrong with each split, and at last, if anything is, with `all splits` together.

        Args:
            detections: as in `find_problems`.
            decode: as in `find_problems`.
        """
        for name, (content, folder) in self.splits.items():
            left_out = [Problem(text, []) for text in self.left_out[name]]
            yield name, left_out + find_problems(content, folder, detections=detections, decode=decode)
        if between := [*unlike_categories(self.splits), *shared_images(self.splits)]:
            yield "all splits", between

    @property
    def training_splits(self) -> tuple[str | None, str | None] | None:
        """What to pass as the splits to train and to evaluate on; None for those that are chosen anyway.

        Returns:
            The two names. What the splits' names do not tell is the split with the most images. None, if no split is
            left to evaluate on; trainval leaves neither train nor val, for it contains them.
        """
        if self.folder is None:
            return None
        try:
            self.folder.choose()
        except ValueError:
            by_size = sorted(self.splits, key=lambda name: -len(self.splits[name][0]["images"]))
            train = next(name for name in (*TRAIN_SPLITS, *by_size) if name in self.splits)
            contained = ("train", "val") if train == "trainval" else ()
            test = next((name for name in by_size if name not in (train, *contained)), None)
            return (train, test) if test else None
        return None, None


def inspect_data(data: str | Path, images: str | Path | None = None) -> Inspection:
    """Reads the annotations of a data set.

    Args:
        data: a folder in one of `srtod.data.LAYOUTS`, or a COCO file.
        images: the folder of the images of a COCO file; None: it is looked for.

    Raises:
        FileNotFoundError: if a file or folder is missing, or the folder has no known layout.
        ValueError: if a file is not as it should be.
    """
    if images is not None:
        if not Path(images).is_dir():
            raise FileNotFoundError(f"the image folder {images} does not exist; pass the folder of the image files")
        name = Path(data).stem
        return Inspection("COCO file", None, {name: (read_coco(data), Path(images))}, {name: []})
    folder = open_folder(data)
    splits, left_out = {}, {}
    for name, split in folder.splits.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            splits[name] = split.read()
        left_out[name] = [str(warning.message) for warning in caught]
    return Inspection(f"{folder.layout} layout", folder, splits, left_out)
