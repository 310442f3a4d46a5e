"""Folders with COCO files: the splits that they are annotations of, and whose release they are."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

from srtod._support.reading import require_regular_file

from .coco import read_coco
from .image_folders import locate_images

__all__ = ["coco_results", "find_coco", "is_aitod", "is_aitod_v2", "is_droneswarms", "read_coco_split", "split_word"]

_SPLIT_WORD = re.compile(r"(?<![a-z])(trainval|train|validation|valid|val|test)(?![a-z])")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # of COCO's own release


def find_coco(path: str | Path) -> dict[str, Path]:
    """The splits that a folder has COCO files of, each with its file.

    A split's name is in the name of its file, or in that of the file's folder. Files that are lists are left out: COCO
    results are lists.

    Args:
        path: the folder, or a COCO file on its own, which is the split of its name if it tells no other.

    Raises:
        ValueError: if two files are annotations of the same split.
    """
    splits: dict[str, Path] = {}
    for file, name in _annotations(Path(path)):
        if _is_list(file):
            continue
        if name in splits:
            raise ValueError(
                f"{path}: {splits[name]} and {file} are both annotations of {name!r}; pass the one that is meant, or "
                "move the other away"
            )
        splits[name] = file
    return splits


def coco_results(path: str | Path) -> list[Path]:
    """The JSON files of a folder with a split's name that are lists, and so taken for results."""
    return [file for file, _ in _annotations(Path(path)) if _is_list(file)]


def read_coco_split(file: Path, split: str) -> tuple[dict[str, Any], Path]:
    """The content of a COCO file, and the folder that its images' names are relative to.

    Raises:
        FileNotFoundError: if the images are not found (see `srtod.data.image_folders.locate_images`).
        ValueError: if the file is not COCO data (see `srtod.data.read_coco`).
    """
    content = read_coco(file)
    names = [str(image["file_name"]) for image in content["images"] if "file_name" in image]
    folder, places = locate_images(file, split, names)
    if places is not None:
        relative = {name: os.path.relpath(place / name, folder) for name, place in places.items()}
        content["images"] = [image | {"file_name": relative[image["file_name"]]} for image in content["images"]]
    return content, folder


def is_aitod(file: Path) -> bool:
    """Whether a COCO file has the name of one of AI-TOD's."""
    return file.name.startswith("aitod_")


def is_aitod_v2(file: Path) -> bool:
    """Whether a COCO file has the name of one of AI-TOD-v2's."""
    return file.name.startswith("aitodv2_")


def is_droneswarms(file: Path) -> bool:
    """Whether a COCO file is where DroneSwarms has it: `train/train.json` beside `train/JPEGImages`."""
    return file.parent.name == file.stem and (file.parent / "JPEGImages").is_dir()


def _annotations(path: Path) -> list[tuple[Path, str]]:
    """The JSON files of a folder that have a split's name, or a JSON file on its own; each with its split."""
    files: dict[Path, str | None]
    if path.is_file():
        files = {path: split_word(path.stem) or path.stem} if path.suffix == ".json" else {}
    else:
        files = {file: split_word(file.stem) for file in sorted(path.glob("*.json"))}
        for folder in sorted(path.glob("*")):
            split = split_word(folder.name)
            if split or folder.name.lower().startswith("annotations"):
                files |= {file: split_word(file.stem) or split for file in sorted(folder.glob("*.json"))}
    return [(file, name) for file, name in files.items() if name and not file.name.startswith(_OTHER_TASKS)]


def split_word(text: str) -> str | None:
    """The split that a name tells of."""
    words = _SPLIT_WORD.findall(text.lower())
    return {"valid": "val", "validation": "val"}.get(words[-1], words[-1]) if words else None


def _is_list(file: Path) -> bool:
    """Whether a JSON file is a list, as COCO results are."""
    require_regular_file(file)
    with file.open("rb") as stream:
        return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
