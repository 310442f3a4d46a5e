"""How data sets are laid out: `open_folder` tells what a folder holds, and its splits are read as COCO data.

A layout is a reader and one entry of `LAYOUTS`; training, `srtod inspect` and `srtod convert` know it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .coco import CocoDataset, name_some
from .coco_folder import coco_results, find_coco, is_aitod, is_aitod_v2, is_droneswarms, read_coco_split
from .conversion import Conversion
from .detection import Sample, Target
from .visdrone import find_visdrone, read_visdrone
from .voc import find_voc, read_voc
from .yolo import find_yolo, read_yolo

__all__ = ["LAYOUTS", "DataFolder", "Layout", "Release", "Split", "layout_names", "open_folder"]

TRAIN_SPLITS = ("trainval", "train")
"""Names of the split to train on, in order of preference."""

TEST_SPLITS = ("val", "test", "test-dev")
"""Names of the split to evaluate on, in order of preference, where a release has no other."""


@dataclass(frozen=True)
class Split:
    """One split of a data folder.

    Attributes:
        name: its name, such as train or val.
        source: the file or folder that its annotations are read from.
        convert: reads it into COCO's format; None if it is in that format already.
    """

    name: str
    source: Path
    convert: Callable[[], Conversion] | None = None

    def read(self) -> tuple[dict[str, Any], Path]:
        """The split as COCO data, checked as `read_coco` does, and the folder of its images; warns of what is left out.

        Raises:
            FileNotFoundError: if a file, a folder or the images are missing.
            ValueError: if an annotation is malformed.
        """
        if self.convert is None:
            return read_coco_split(self.source, self.name)
        conversion = self.convert()
        conversion.warn_of_dropped()
        return conversion.content, conversion.folder

    def dataset(
        self,
        transforms: Callable[[Tensor, Target], Sample] | None = None,
        *,
        allow_empty: bool = False,
        allow_outside: bool = False,
    ) -> CocoDataset:
        """The split as a data set; for the arguments and errors see `CocoDataset`."""
        content, images = self.read()
        return CocoDataset(
            content,
            images,
            transforms,
            allow_empty=allow_empty,
            allow_outside=allow_outside,
            name=str(self.source),
        )


@dataclass(frozen=True)
class Release:
    """A data set that comes in a layout of many, under its own name.

    Attributes:
        name: its name.
        files: the files that it is known by, in words.
        holds: whether a split's source is one of its files.
        test_splits: names of the split that its authors evaluate on, in order of preference.
    """

    name: str
    files: str
    holds: Callable[[Path], bool]
    test_splits: Sequence[str] = TEST_SPLITS


@dataclass(frozen=True)
class Layout:
    """A way to lay out a data set in a folder.

    Attributes:
        name: its name.
        files: the files that it is known by, in words.
        find: the splits at a path, each with its source; none, if what is there has another layout.
        read: reads a split's source, given the split's name, into COCO's format; None if it is in that format already.
        releases: data sets that come in this layout under their own names.
    """

    name: str
    files: str
    find: Callable[[Path], Mapping[str, Path]]
    read: Callable[[Path, str], Conversion] | None = None
    releases: Sequence[Release] = ()

    def splits(self, path: Path) -> dict[str, Split]:
        """The splits at a path in this layout."""
        return {
            name: Split(name, source, self.read and partial(self.read, source, name))
            for name, source in self.find(path).items()
        }


LAYOUTS: Sequence[Layout] = (
    Layout(
        "COCO",
        "*.json or annotations*/*.json with train, val, trainval or test in the name, train/*.json, ...",
        find_coco,
        releases=(
            Release(
                "DroneSwarms",
                "train/train.json and test/test.json beside JPEGImages/",
                is_droneswarms,
                test_splits=("test",),
            ),
            Release("AI-TOD", "annotations*/aitod_*.json", is_aitod, test_splits=("test",)),
            Release("AI-TOD-v2", "annotations*/aitodv2_*.json", is_aitod_v2, test_splits=("test",)),
        ),
    ),
    Layout(
        "VisDrone",
        "images/ and annotations/*.txt, in the folder or in VisDrone2019-DET-train, -val, ...",
        find_visdrone,
        lambda folder, _: read_visdrone(folder),  # each split has its own
    ),
    Layout("YOLO", "data.yaml", find_yolo, read_yolo),
    Layout(
        "VOC",
        "JPEGImages/ and Annotations/*.xml, or images with *.xml beside them, in the folder or in train, valid, ...",
        find_voc,
        read_voc,
    ),
)
"""The layouts that are known."""


def layout_names() -> str:
    """The names of the layouts and of the releases in them, for help and messages."""
    *names, last = (known.name for known in _known())
    return f"{', '.join(names)} or {last}"


def _known() -> Iterator[Layout | Release]:
    for layout in LAYOUTS:
        yield layout
        yield from layout.releases


@dataclass(frozen=True)
class DataFolder:
    """A data folder of a known layout.

    Attributes:
        path: the folder.
        layout: the name of its layout, or of its release.
        splits: its splits, by name.
        test_splits: names of the split to evaluate on, in order of preference.
    """

    path: Path
    layout: str
    splits: Mapping[str, Split]
    test_splits: Sequence[str] = TEST_SPLITS

    def choose(self, train: str | None = None, test: str | None = None) -> tuple[Split, Split]:
        """The splits to train and to evaluate on.

        Args:
            train: the split to train on; by default trainval, or else train.
            test: the split to evaluate on; by default that of the release, and without one val, or else a test split;
                never val where trainval is trained on, for that contains it.

        Raises:
            ValueError: if there is no such split.
        """
        training = self.split(*(TRAIN_SPLITS if train is None else (train,)))
        if test is not None:
            return training, self.split(test)
        return training, self.split(
            *(name for name in self.test_splits if (training.name, name) != ("trainval", "val"))
        )

    def split(self, *names: str) -> Split:
        """The first split that exists, of these names.

        Raises:
            ValueError: if none does.
        """
        for name in names:
            if name in self.splits:
                return self.splits[name]
        raise ValueError(
            f"{self.path} ({self.layout}) has no split {' or '.join(names)}; it has {', '.join(self.splits)}, of which "
            f"one can be chosen by its name{_taken_for_results(self.path)}"
        )


def open_folder(path: str | Path) -> DataFolder:
    """Tell which layout a data folder has, and which splits; no annotations are read yet, nor images.

    COCO files have a split's name in theirs, or in that of their folder: `train.json`, `instances_val2017.json`,
    `train/_annotations.coco.json`. `srtod.data.image_folders` tells where their images may be. For the other layouts
    see the `read` of their entry in `LAYOUTS`.

    Args:
        path: the folder; or, of several layouts in one folder to choose one, a data.yaml or a COCO file in it.

    Raises:
        FileNotFoundError: if there is nothing at `path`, or no known layout.
        ValueError: if there are several layouts, or two files for the same split, or data.yaml is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"the data folder {path} does not exist; pass the folder that holds the data set")
    found = [(layout, splits) for layout in LAYOUTS if (splits := layout.splits(path))]
    if not found:
        known = "; ".join(f"{known.name} ({known.files})" for known in _known())
        raise FileNotFoundError(
            f"{path} has no known layout; looked for {known}; arrange it like one of these, or pass COCO files"
            f"{_taken_for_results(path)}"
        )
    if len(found) > 1:
        examples = " and ".join(f"{layout.name} ({next(iter(splits.values())).source})" for layout, splits in found)
        raise ValueError(
            f"{path} mixes layouts: {examples}; pass the data.yaml, the COCO files, or a subfolder with one of them"
        )
    [(layout, splits)] = found
    order = {name: index for index, name in enumerate(("train", "val", "trainval", "test"))}
    splits = {name: splits[name] for name in sorted(splits, key=lambda name: (order.get(name, len(order)), name))}
    for release in layout.releases:
        if any(release.holds(split.source) for split in splits.values()):
            return DataFolder(path, release.name, splits, release.test_splits)
    return DataFolder(path, layout.name, splits)


def _taken_for_results(path: Path) -> str:
    """The end of a message that misses a split."""
    files = coco_results(path)
    return f" (taken for results, as a list and no object with 'images': {name_some(files)})" if files else ""
