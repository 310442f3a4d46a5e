"""Data folders as they are released: `open_folder` tells what one holds, and its splits are read as COCO data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .coco import CocoDataset, name_some, read_coco
from .conversion import Conversion
from .detection import Sample, Target
from .image_folders import locate_images
from .visdrone import find_visdrone, read_visdrone
from .yolo import find_yolo, read_yolo

__all__ = ["DataFolder", "Split", "open_folder"]

LAYOUTS: Mapping[str, str] = {
    "COCO": "*.json or annotations*/*.json with train, val, trainval or test in the name, train/*.json, ...",
    "DroneSwarms": "train/train.json and test/test.json beside JPEGImages/",
    "AI-TOD": "annotations*/aitod_*.json",
    "AI-TOD-v2": "annotations*/aitodv2_*.json",
    "VisDrone": "images/ and annotations/*.txt, in the folder or in VisDrone2019-DET-train, -val, ...",
    "YOLO": "data.yaml",
}
"""The layouts that are known, and the files that each is known by."""

TRAIN_SPLITS = ("trainval", "train")
"""Names of the split to train on, in order of preference."""

TEST_SPLITS = {"AI-TOD": ("test",), "AI-TOD-v2": ("test",), "DroneSwarms": ("test",)}
"""Names of the split to evaluate on, in order of preference, where it is not val before test."""

_SPLIT_WORD = re.compile(r"(?<![a-z])(trainval|train|validation|valid|val|test)(?![a-z])")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # of COCO's own release


@dataclass(frozen=True)
class Split:
    """One split of a data folder.

    Attributes:
        name: its name, such as train or val.
        source: the file or folder that its annotations are read from.
        read: reads it, and returns it as COCO data, checked as `read_coco` does, with the folder of its images.
    """

    name: str
    source: Path
    read: Callable[[], tuple[dict[str, Any], Path]]

    def dataset(
        self, transforms: Callable[[Tensor, Target], Sample] | None = None, *, allow_empty: bool = False
    ) -> CocoDataset:
        """The split as a data set; for the arguments and errors see `CocoDataset`."""
        content, images = self.read()
        return CocoDataset(content, images, transforms, allow_empty=allow_empty, name=str(self.source))


@dataclass(frozen=True)
class DataFolder:
    """A data folder of a known layout.

    Attributes:
        path: the folder.
        layout: one of `LAYOUTS`.
        splits: its splits, by name.
        results: JSON files with a split's name that are no split: they are lists, as COCO's results are.
    """

    path: Path
    layout: str
    splits: Mapping[str, Split]
    results: Sequence[Path] = ()

    def choose(self, train: str | None = None, test: str | None = None) -> tuple[Split, Split]:
        """The splits to train and to evaluate on.

        Args:
            train: the split to train on; by default trainval, or else train.
            test: the split to evaluate on; by default test for AI-TOD and DroneSwarms, and for others val, or else a
                test split; never val where trainval is trained on, for that contains it.

        Raises:
            ValueError: if there is no such split.
        """
        training = self.split(*(TRAIN_SPLITS if train is None else (train,)))
        if test is not None:
            return training, self.split(test)
        preferred = TEST_SPLITS.get(self.layout, ("val", "test", "test-dev"))
        return training, self.split(*(name for name in preferred if (training.name, name) != ("trainval", "val")))

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
            f"one can be chosen by its name{_taken_for_results(self.results)}"
        )


def open_folder(path: str | Path) -> DataFolder:
    """Tell which layout a data folder has, and which splits; no annotations are read yet, nor images.

    - COCO: JSON files in the folder, in `annotations*/` or in a folder of a split, with a split's name in theirs
      (`train.json`, `instances_val2017.json`, `train/_annotations.coco.json`). `srtod.data.image_folders` tells where
      the images may be. With the files of their releases, it is called AI-TOD, AI-TOD-v2 or DroneSwarms.
    - VisDrone: see `srtod.data.visdrone.read_visdrone`.
    - YOLO: see `srtod.data.yolo.read_yolo`.

    Args:
        path: the folder; or, of several layouts in one folder to choose one, a data.yaml or a COCO file in it.

    Raises:
        FileNotFoundError: if there is nothing at `path`, or no known layout.
        ValueError: if there are several layouts, or two files for the same split, or data.yaml is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"the data folder {path} does not exist; pass the folder that holds the data set")
    found: dict[str, dict[str, Split]] = {}
    coco, results = _coco_splits(path)
    if coco:
        found[_coco_layout(coco)] = coco
    if path.is_dir() and (visdrone := find_visdrone(path)):
        found["VisDrone"] = {
            name: Split(name, folder, partial(_converted, partial(read_visdrone, folder)))
            for name, folder in visdrone.items()
        }
    if (path.is_dir() or path.suffix in (".yaml", ".yml")) and (yolo := find_yolo(path)):
        found["YOLO"] = {
            name: Split(name, file, partial(_converted, partial(read_yolo, file, name))) for name, file in yolo.items()
        }
    if not found:
        known = "; ".join(f"{name} ({files})" for name, files in LAYOUTS.items())
        raise FileNotFoundError(
            f"{path} has no known layout; looked for {known}; arrange it like one of these, or pass COCO files"
            f"{_taken_for_results(results)}"
        )
    if len(found) > 1:
        examples = " and ".join(f"{name} ({next(iter(splits.values())).source})" for name, splits in found.items())
        raise ValueError(
            f"{path} mixes layouts: {examples}; pass the data.yaml, the COCO files, or a subfolder with one of them"
        )
    [(layout, splits)] = found.items()
    order = {name: index for index, name in enumerate(("train", "val", "trainval", "test"))}
    names = sorted(splits, key=lambda name: (order.get(name, len(order)), name))
    return DataFolder(path, layout, {name: splits[name] for name in names}, results)


def _coco_splits(path: Path) -> tuple[dict[str, Split], list[Path]]:
    """The COCO files of a folder, or a file on its own; and those that are lists, and so taken for results."""
    files: dict[Path, str | None]
    if path.is_file():
        files = {path: _split_word(path.stem) or path.stem} if path.suffix == ".json" else {}
    else:
        files = {file: _split_word(file.stem) for file in sorted(path.glob("*.json"))}
        for folder in sorted(path.glob("*")):
            split = _split_word(folder.name)
            if split or folder.name.lower().startswith("annotations"):
                files |= {file: _split_word(file.stem) or split for file in sorted(folder.glob("*.json"))}
    splits: dict[str, Split] = {}
    results = []
    for file, name in files.items():
        if name is None or file.name.startswith(_OTHER_TASKS):
            continue
        if _is_list(file):
            results.append(file)
            continue
        if name in splits:
            raise ValueError(
                f"{path}: {splits[name].source} and {file} are both annotations of {name!r}; pass the one that is "
                "meant, or move the other away"
            )
        splits[name] = Split(name, file, partial(_read_coco_split, file, name))
    return splits, results


def _taken_for_results(files: Sequence[Path]) -> str:
    """The end of a message that misses a split."""
    if not files:
        return ""
    return f" (taken for results, as a list and no object with 'images': {name_some(files)})"


def _split_word(text: str) -> str | None:
    """The split that a name tells of."""
    words = _SPLIT_WORD.findall(text.lower())
    return {"valid": "val", "validation": "val"}.get(words[-1], words[-1]) if words else None


def _is_list(file: Path) -> bool:
    """Whether a JSON file is a list, as COCO results are."""
    with file.open("rb") as stream:
        return stream.read(64).lstrip().startswith(b"[")


def _coco_layout(splits: Mapping[str, Split]) -> str:
    files = [split.source for split in splits.values()]
    if any(file.name.startswith("aitodv2_") for file in files):
        return "AI-TOD-v2"
    if any(file.name.startswith("aitod_") for file in files):
        return "AI-TOD"
    if any((file.parent / "JPEGImages").is_dir() and file.parent.name == file.stem for file in files):
        return "DroneSwarms"
    return "COCO"


def _read_coco_split(file: Path, split: str) -> tuple[dict[str, Any], Path]:
    content = read_coco(file)
    names = [str(image["file_name"]) for image in content["images"] if "file_name" in image]
    folder, places = locate_images(file, split, names)
    if places is not None:
        relative = {name: (place / name).relative_to(folder).as_posix() for name, place in places.items()}
        content["images"] = [image | {"file_name": relative[image["file_name"]]} for image in content["images"]]
    return content, folder


def _converted(read: Callable[[], Conversion]) -> tuple[dict[str, Any], Path]:
    conversion = read()
    conversion.warn_of_dropped()
    return conversion.content, conversion.folder
