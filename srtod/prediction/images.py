"""Which images to find objects in, and their ids."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srtod.data.coco import leads_out, name_some, read_coco
from srtod.data.image import SUFFIXES

__all__ = ["ImageList", "find_images"]


class ImageList(NamedTuple):
    """Images to find objects in.

    Attributes:
        folder: what file names are relative to.
        entries: each image as in a COCO file: `id` and `file_name`, and `width` and `height` where they are known.
        categories: the categories of the COCO file that the ids are from; None without one.
        left_out: files of the folder that are none of the images.
        annotations: the annotations of the COCO file, of each image that has any, by its id.
    """

    folder: Path
    entries: list[dict[str, Any]]
    categories: list[dict[str, Any]] | None = None
    left_out: Sequence[str] = ()
    annotations: Mapping[int, Sequence[Mapping[str, Any]]] = {}


def find_images(
    source: str | Path,
    coco: str | Path | None = None,
    *,
    without: str | Path | None = None,
    allow_outside: bool = False,
) -> ImageList:
    """The images of a folder and its subfolders, or one image, with their ids.

    Files are taken for images by their suffix, hidden ones (`.name`) never; a single image may have any name. Links to
    folders are followed, unless they lead to a folder that was searched under another name. Without
    a COCO file they are numbered from 1 in the order of their names. With one they are the images that it lists, its
    ids theirs, and others of the folder are left out.

    Args:
        source: a folder or an image.
        coco: a COCO file whose file names are relative to the folder.
        without: a folder inside of `source` to leave aside: that of predictions made before.
        allow_outside: whether the COCO file may name images outside of `source`, such as `../a.png`.

    Raises:
        FileNotFoundError: if `source` does not exist, holds no image, or lacks images that the COCO file lists.
        ValueError: if the COCO file is not what it should be, names an image outside of `source`, or does not list the
            one image, or if `without` contains `source`.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass an image or a folder of images")
    truth = None if coco is None else read_coco(coco)
    listed = {} if truth is None else _by_name(truth["images"], coco, allow_outside)
    categories = None if truth is None else truth["categories"]
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in [] if truth is None else truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    if not source.is_dir():  # whether it is an image is seen when it is read
        entry: Mapping[str, Any] = {"id": 1}
        if truth is not None:
            entry = _listed_as(source, listed, coco)
        return ImageList(source.parent, [{**entry, "file_name": source.name}], categories, annotations=annotations)
    if without is not None and Path(os.path.realpath(without)) in (source.resolve(), *source.resolve().parents):
        raise ValueError(
            f"{without}, where the predictions are to go, contains the images of {source}; choose another OUT"
        )
    files = _files(source, Path(without) if without else None)
    images = [name for name in files if Path(name).suffix.lower() in SUFFIXES and (source / name).is_file()]
    if truth is None:
        if not images:
            suffixes = ", ".join(sorted(SUFFIXES))
            raise FileNotFoundError(f"{source} and its subfolders hold no image, no file that ends in {suffixes}")
        entries: list[dict[str, Any]] = [{"id": number, "file_name": name} for number, name in enumerate(images, 1)]
    else:
        missing = [name for name in listed if not (source / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(listed)} images of {coco} are missing from {source}: {name_some(missing)}; "
                f"pass the folder that its file names are relative to"
            )
        entries = [dict(entry) for entry in listed.values()]
    taken = {entry["file_name"] for entry in entries}
    return ImageList(source, entries, categories, [name for name in files if name not in taken], annotations)


def _files(folder: Path, without: Path | None) -> list[str]:
    """The files of a folder and its subfolders, relative to it, in the order of their names; hidden ones left out."""
    searched = set() if without is None else {os.path.realpath(without)}
    return [path.relative_to(folder).as_posix() for path in sorted(_search(folder, searched))]


def _search(folder: Path, searched: set[str]) -> Iterator[Path]:
    """The files of a folder and its subfolders, those that are links last; each folder once, and no hidden one.

    Args:
        folder: where to begin.
        searched: the real paths of folders to leave out; those that are found are added.
    """
    waiting = [folder]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0)):
            here, real = Path(place), os.path.realpath(place)
            if real in searched:
                folders.clear()
                continue
            searched.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in names if not name.startswith("."))


def _by_name(entries: list[dict[str, Any]], coco: str | Path | None, allow_outside: bool) -> dict[str, dict[str, Any]]:
    """The images of a COCO file by their file names."""
    listed: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if "file_name" not in entry:
            raise ValueError(f"{coco}: images[{index}] has no 'file_name'; write it there")
        name = entry["file_name"]
        if not allow_outside and leads_out(name):
            raise ValueError(
                f"{coco}: images[{index}]: file_name {name!r} leads out of the folder of the images; move them, "
                "or set allow_outside if you trust the file"
            )
        if name in listed:
            raise ValueError(f"{coco}: images[{index}]: file name {name} occurs twice; an image can have one id only")
        listed[name] = entry
    return listed


def _listed_as(image: Path, listed: dict[str, dict[str, Any]], coco: str | Path | None) -> dict[str, Any]:
    """What a COCO file says of an image, whose path ends in a file name of it."""
    path = f"/{image.resolve().as_posix()}"
    found = [entry for name, entry in listed.items() if path.endswith(f"/{name}")]
    if len(found) != 1:
        how = "does not list" if not found else "lists more than one file that may be"
        raise ValueError(f"{coco} {how} {image}; pass the folder of its images, or leave the COCO file out")
    return found[0]
