"""Print what a data set consists of and what is wrong with it, and plot the sizes of its objects."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from srtod._support.cli import run
from srtod._support.files import replacing
from srtod._support.options import Parser

if TYPE_CHECKING:
    import numpy as np

    from srtod.data.inspection import Inspection

PICTURES = Path("runs/inspect")
DESCRIPTION = """Print what a data set consists of, what is wrong with it, and the command that trains on it. Plot the
sizes of its objects, objects per image and objects of each class."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.inspect") -> None:
    from srtod.data import layout_names

    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("data", metavar="DATA", help=f"a folder ({layout_names()}), or a COCO JSON file")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="?", help="folder of the images of a JSON file; by default it is looked for"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image, not its header alone: slow")
    parser.add_argument(
        "--plot", metavar="OUT.png", help=f"the picture, never overwritten; by default {PICTURES}/, with DATA's name"
    )
    options = parser.parse_args(arguments)

    from srtod.data.inspection import inspect_data
    from srtod.data.plots import plot_statistics
    from srtod.data.problems import SAMPLED
    from srtod.data.statistics import format_statistics
    from srtod.evaluation.metric import AREAS

    name = Path(os.path.realpath(options.data)).stem
    picture = _free_path(options.plot, name)
    inspection = inspect_data(options.data, options.images)
    statistics = inspection.statistics
    bins = {area: limits for area, limits in AREAS.items() if area != "all"}
    if options.plot is None:
        PICTURES.mkdir(parents=True, exist_ok=True)
    with replacing(picture, binary=True) as file:
        print(f"{options.data}: {inspection.layout}\n\n{format_statistics(statistics, bins)}\n")
        first_split, numbers = next(iter(statistics.items()))
        print(_anchors(first_split, numbers.object_sizes))
        for split, problems in inspection.problems(decode=options.decode):
            print("\n".join([f"\n{split}: " + ("worth a look" if problems else "no problems found"), *problems]))
        if not options.decode:
            print(f"\nonly {SAMPLED} images a split were decoded; --decode takes all")
        plot_statistics(statistics, bins, title=name).savefig(file, format="png")
    print(f"\n{picture}: sizes, objects per image, classes")
    print(_training(options.data, inspection, prog.replace("inspect", "train")))


def _free_path(asked: str | None, name: str) -> Path:
    """Where the picture goes: the file asked for, or the first of `name.png`, `name-2.png`, ... that does not exist.

    Raises:
        FileExistsError: if the file asked for exists.
    """
    if asked is None:
        number = 1
        while (path := PICTURES / (f"{name}.png" if number == 1 else f"{name}-{number}.png")).exists():
            number += 1
        return path
    path = Path(asked)
    if path.is_file():
        raise FileExistsError(f"{path} exists; pass another --plot, or move it away")
    return path


def _anchors(split: str, sizes: np.ndarray) -> str:
    """The anchor scales that suit the objects of a split, whose sizes are `[M, 2]` in pixels."""
    import torch

    from srtod.models.recipes import fit_detectors

    if not len(sizes):
        return f"no objects in {split} to fit anchors to"
    lines = [f"anchor scale that suits {split}, at the images' own size"]
    for detectors, fit in fit_detectors(torch.from_numpy(sizes)).items():
        lines.append(f"  {fit.scale:g} for {', '.join(detectors)} (mean IoU {fit.mean_iou:.2f})")
    return "\n".join(lines)


def _training(data: str, inspection: Inspection, train: str) -> str:
    """The command that trains on the set, which begins with `train`; or why there is none."""
    from srtod.data.problems import MANY_OBJECTS

    splits = inspection.training_splits
    if splits is None:
        return "to train, lay out a split to train on and one to evaluate on in one folder, and pass the folder"
    command = ["--data", data, "--config", "small"]
    for option, split in zip(("--train-split", "--test-split"), splits, strict=True):
        command += [option, split] if split else []
    most = max(int(numbers.objects_per_image.max()) for numbers in inspection.statistics.values())
    if most > MANY_OBJECTS[0]:
        command += ["--detections-per-image", str(-(-most // 100) * 100)]
    return f"to train: {train} {shlex.join(command)}"


if __name__ == "__main__":
    run(main)
