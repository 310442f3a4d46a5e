"""`python -m srtod.inspect DATA`: what a data set consists of, and what is wrong with it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srtod._support.cli import run
from srtod._support.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from srtod.data.problems import Problem

DESCRIPTION = """Print what a data set consists of and what is wrong with it, and plot the sizes of its objects, objects
per image and objects of each class."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srtod.inspect", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "data", metavar="DATA", help="a folder (COCO, YOLO, VisDrone-DET, DroneSwarms, AI-TOD), or a COCO JSON file"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="?", help="folder of the images of a JSON file; by default it is looked for"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image, not its header alone: slow")
    parser.add_argument(
        "--plot", metavar="OUT.png", help="the picture, never overwritten; by default DATA's name in the current folder"
    )
    arguments = parser.parse_args()
    name = Path(arguments.data).resolve().stem
    picture = _free_path(arguments.plot, name)
    with replacing(picture, binary=True) as file:
        figure = _inspect(arguments.data, arguments.images, name, decode=arguments.decode)
        figure.savefig(file, format="png")
    print(f"\n{picture}: sizes, objects per image, classes")


def _inspect(data: str, images: str | None, name: str, *, decode: bool) -> Figure:
    """Prints the numbers of a set and its problems, and returns the figure."""
    from srtod.data.plots import plot_statistics
    from srtod.data.problems import find_problems, shared_images
    from srtod.data.statistics import format_statistics, set_statistics
    from srtod.evaluation.metric import AREAS

    layout, splits, problems = _read(data, images)
    statistics = {split: set_statistics(content) for split, (content, _) in splits.items()}
    bins = {area: limits for area, limits in AREAS.items() if area != "all"}
    print(f"{data}: {layout}\n\n{format_statistics(statistics, bins)}\n")
    first_split, numbers = next(iter(statistics.items()))
    print(_anchors(first_split, numbers.object_sizes))
    for split, (content, folder) in splits.items():
        problems[split] += [str(problem) for problem in find_problems(content, folder, decode=decode)]
        print(
            "\n".join([f"\n{split}: " + ("worth a look" if problems[split] else "no problems found"), *problems[split]])
        )
    if shared := [*_other_categories(splits), *shared_images(splits)]:
        print("\n".join(["\nall splits: worth a look", *map(str, shared)]))
    if not decode:
        print("\npixels were not looked at; --decode does")
    return plot_statistics(statistics, bins, title=name)


def _free_path(asked: str | None, name: str) -> Path:
    """Where the picture goes: the file asked for, or the first of `name.png`, `name-2.png`, ... that does not exist.

    Raises:
        FileExistsError: if the file asked for exists.
    """
    if asked is None:
        number = 1
        while (path := Path(f"{name}.png" if number == 1 else f"{name}-{number}.png")).exists():
            number += 1
        return path
    path = Path(asked)
    if path.exists():
        raise FileExistsError(f"{path} exists; pass another --plot, or move it away")
    return path


def _read(data: str, images: str | None) -> tuple[str, dict[str, tuple[Mapping[str, Any], Path]], dict[str, list[str]]]:
    """The layout's name, content and image folder of each split, and what their readers warn of.

    Raises:
        FileNotFoundError: if a file or folder is missing, or the folder has no known layout.
        ValueError: if a file is not as it should be.
    """
    from srtod.data import read_coco
    from srtod.data.layouts import open_folder

    if images is not None:
        if not Path(images).is_dir():
            raise FileNotFoundError(f"the image folder {images} does not exist; pass the folder of the image files")
        return "COCO file", {Path(data).stem: (read_coco(data), Path(images))}, {Path(data).stem: []}
    folder = open_folder(data)
    splits: dict[str, tuple[Mapping[str, Any], Path]] = {}
    problems = {}
    for name, split in folder.splits.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            splits[name] = split.read()
        problems[name] = [f"         {warning.message}" for warning in caught]
    return f"{folder.layout} layout", splits, problems


def _other_categories(splits: Mapping[str, tuple[Mapping[str, Any], Path]]) -> list[Problem]:
    """The splits whose categories are not those of the first one."""
    from srtod.data.problems import Problem

    (first, own), *others = (
        (name, {entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]})
        for name, (content, _) in splits.items()
    )
    where = []
    for name, categories in others:
        sides = {"without": own.items() - categories.items(), "with": categories.items() - own.items()}
        differences = [
            f"{word} {' and '.join(f'{identity} {called}' for identity, called in sorted(side))}"
            for word, side in sides.items()
            if side
        ]
        if differences:
            where.append(f"{name} ({', '.join(differences)})")
    what = f"splits with other categories than {first}; training refuses to evaluate the one on the other"
    return [Problem(what, where)] if where else []


def _anchors(split: str, sizes: np.ndarray) -> str:
    """The anchor scales that suit the objects of a split, whose sizes are `[M, 2]` in pixels."""
    import torch

    from srtod.models import ANCHORS
    from srtod.models.anchors import fit_anchor_scale

    if not len(sizes):
        return f"no objects in {split} to fit anchors to"
    detectors: dict[Any, list[str]] = {}
    for detector, layout in ANCHORS.items():
        detectors.setdefault(layout, []).append(detector)
    fits = {
        ", ".join(names): fit_anchor_scale(
            torch.from_numpy(sizes), layout.strides, ratios=layout.ratios, octaves=layout.octaves
        )
        for layout, names in detectors.items()
    }
    return "\n".join(
        [f"anchor scale that suits {split}, at the images' own size"]
        + [f"  {fit.scale:g} for {names} (mean IoU {fit.mean_iou:.2f})" for names, fit in fits.items()]
    )


if __name__ == "__main__":
    run(main)
