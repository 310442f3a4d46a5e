"""Where the images of a COCO file are, which the file does not tell."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .coco import name_some

__all__ = ["locate_images"]


def locate_images(annotations: Path, split: str, file_names: list[str]) -> tuple[Path, dict[str, Path] | None]:
    """The folder that the file names of a COCO file are relative to.

    It is the one with the most of the images, the earlier of equals, among these, first of the folder of the file and
    then of the one above it: `SPLIT/images`, `SPLIT/JPEGImages`, `SPLIT`, `images/SPLIT`, `images/SPLIT/images`,
    `images`, `JPEGImages`, and itself. SPLIT is the split's name (for val also valid and validation, for trainval also
    train and val), or that with the digits that follow it in the file's name, as in `train2017`.

    Args:
        annotations: the COCO file.
        split: the name of its split.
        file_names: the images that it lists.

    Returns:
        The folder, and None; or, where the images of trainval are spread over those of train and val, the folder above
        these, and the folder of each image.

    Raises:
        FileNotFoundError: if no folder has any of the images.
    """
    folders = _candidates(annotations, split)
    # os.path.isfile is several times faster than Path.is_file, and there are thousands.
    found = {folder: {name for name in file_names if os.path.isfile(os.path.join(folder, name))} for folder in folders}  # noqa: PTH113, PTH118
    best = max(found, key=lambda folder: len(found[folder]))  # the first of equals
    if not found[best]:
        raise FileNotFoundError(
            f"none of the {len(file_names)} images of {annotations} was found: {name_some(file_names)}; looked in "
            f"{', '.join(map(str, folders))}; move them to one of these, or pass their folder"
        )
    if split == "trainval" and len(found[best]) < len(file_names):
        places = {name: folder for folder in reversed(folders) for name in found[folder]}  # the first folder wins
        if len(places) == len(file_names):
            return Path(os.path.commonpath(places.values())), places
    return best, None


def _candidates(annotations: Path, split: str) -> list[Path]:
    """The folders that exist, of those where the images may be."""
    words = {"val": ("val", "valid", "validation"), "trainval": ("trainval", "train", "val")}.get(split, (split,))
    words = (*words, *re.findall(rf"{re.escape(split)}\d+", annotations.stem))
    parts = [part for word in words for part in (f"{word}/images", f"{word}/JPEGImages", word)]
    parts += [part for word in words for part in (f"images/{word}", f"images/{word}/images")]
    bases = (annotations.parent, annotations.parent.parent)
    folders = [base / part for base in bases for part in (*parts, "images", "JPEGImages", "")]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
