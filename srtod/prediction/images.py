"""Which images to find objects in, and their ids."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import UnidentifiedImageError

from srtod._support.reading import require_regular_file
from srtod.data.coco import leads_out, name_some, read_coco
from srtod.data.image import SUFFIXES, ImageError, image_size

from .video import SUFFIXES as VIDEO_SUFFIXES

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
    source: str | Path | Sequence[str | Path],
    coco: str | Path | None = None,
    *,
    without: str | Path | None = None,
    allow_outside: bool = False,
) -> ImageList:
    """The images of a folder and its subfolders, or one image, or those of several sources, with their ids.

    A source is a folder, an image, a pattern such as `photos/*.jpg` (`**` stands for subfolders at any depth), or a
    list: a text file `*.txt` with the path of an image on each line, relative to the list. A pattern leaves folders
    out. Images of several sources keep the order of these, and one that is named twice is taken once. Their file names
    are relative to the folder that holds all.

    Files are taken for images by their suffix, hidden ones (`.name`) never; a single image may have any name. Links to
    folders are followed, unless they lead to a folder that was searched under another name. Without
    a COCO file they are numbered from 1 in the order of their names. With one they are the images that it lists, its
    ids theirs, and others of the folder are left out.

    Args:
        source: a source or several.
        coco: a COCO file whose file names are relative to the folder; the source must be one folder or image.
        without: a folder inside of `source` to leave aside: that of predictions made before.
        allow_outside: whether the COCO file may name images outside of `source`, such as `../a.png`.

    Raises:
        FileNotFoundError: if `source` does not exist, holds no image, or lacks images that the COCO file lists.
        ValueError: if a list is empty; if the one file is neither an image nor a list; if the COCO file is not what it
            should be, names an image outside of `source`, or does not list the one image; if `without` contains
            `source`.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if len(sources) != 1 or _is_pattern(sources[0]) or _is_list(sources[0]):
        if coco is not None:
            raise ValueError(f"{coco} has file names relative to one folder; pass that folder or one image")
        return _of_several(sources, without)
    source = Path(sources[0])
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass an image or a folder of images")
    truth = None if coco is None else read_coco(coco)
    listed = {} if truth is None else _by_name(truth["images"], coco, allow_outside)
    categories = None if truth is None else truth["categories"]
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in [] if truth is None else truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    if not source.is_dir():  # whether it is an image is seen when it is read, unless it looks like nothing
        _check_known(source)
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


def _check_known(image: Path) -> None:
    """Checks that a file without the suffix of an image is one, damaged or not."""
    if image.suffix.lower() in SUFFIXES:
        return
    try:
        image_size(image)
    except ImageError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            return
        others = ", ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(
            f"{image} is no image, and does not end as a list (.txt) or a video ({others}); convert or rename it"
        ) from error


def _is_pattern(source: str | Path) -> bool:
    return glob.has_magic(os.fspath(source)) and not Path(source).exists()


def _is_list(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".txt" and not Path(source).is_dir()


def _of_several(sources: Sequence[str | Path], without: str | Path | None) -> ImageList:
    """The images of several sources, numbered in their order."""
    images: dict[str, None] = {}  # by their absolute paths
    left_out: list[str] = []
    for source in sources:
        if _is_pattern(source):
            names = [Path(name) for name in sorted(glob.glob(os.fspath(source), recursive=True))]  # noqa: PTH207
            found = [path for path in names if path.is_file() and not _is_inside(path, without)]
            paths = [path for path in found if path.suffix.lower() in SUFFIXES]
            if not paths:
                raise FileNotFoundError(f"no image has a name like {source}; is the pattern relative to this folder?")
            left_out += [str(path) for path in found if path.suffix.lower() not in SUFFIXES]
        elif _is_list(source):
            paths = _read_list(Path(source))
        else:
            of_one = find_images(source, without=without)
            paths = [of_one.folder / entry["file_name"] for entry in of_one.entries]
            left_out += of_one.left_out
        images.update(dict.fromkeys(os.path.abspath(path) for path in paths))  # noqa: PTH100 (keeps links)
    if not images:
        raise ValueError("no source was given; pass an image or a folder of images")
    folder = os.path.commonpath([Path(path).parent for path in images])
    entries = [{"id": number, "file_name": os.path.relpath(path, folder)} for number, path in enumerate(images, 1)]
    return ImageList(Path(folder), entries, None, left_out)


def _read_list(path: Path) -> list[Path]:
    """The images that a text file names, one a line."""
    try:
        require_regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"the list {path} does not exist") from None
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    images = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image = path.parent / line.strip()
        if not image.is_file():
            raise FileNotFoundError(
                f"{path}: line {number}: {line.strip()[:200]!r} is no file; a list has the path of an image on each "
                f"line, relative to {path.parent}"
            )
        images.append(image)
    if not images:
        raise ValueError(f"{path} is empty; write the path of an image on each line")
    return images


def _is_inside(path: Path, folder: str | Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(folder)) in path.resolve().parents


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
