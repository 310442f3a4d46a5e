"""Print what a data set consists of and what would go wrong in training, and plot its objects' sizes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srtod._support.cli import run
from srtod._support.files import replacing
from srtod._support.options import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from srtod.data.inspection import Inspection
    from srtod.data.problems import Problem

PICTURES = Path("runs/inspect")
DESCRIPTION = """Print what a data set consists of, what would go wrong in training, and the command that trains on it.
Plot the sizes of its objects, objects per image and objects of each class. The exit status is 0 if nothing was found, 1
if something is worth a look, and 2 if the data cannot be read."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.inspect") -> None:
    from srtod.data import layout_names

    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("data", metavar="DATA", help=f"a folder ({layout_names()}), or a COCO JSON file")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="?", help="folder of the images of a JSON file; by default it is looked for"
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        default="small",
        help="what is to be trained, a preset or a YAML file: its sizes, anchors and caps are checked [small]",
    )
    parser.add_argument("--min-size", metavar="N", type=int, help="shorter side that images get in training [config's]")
    parser.add_argument("--decode", action="store_true", help="decode every image, not its header alone: slow")
    parser.add_argument("--json", metavar="OUT", help="also write all that was found to this file, never overwritten")
    parser.add_argument(
        "--plot", metavar="OUT.png", help=f"the picture, never overwritten; by default {PICTURES}/, with DATA's name"
    )
    options = parser.parse_args(arguments)

    from srtod.data.inspection import inspect_data
    from srtod.data.plots import plot_statistics
    from srtod.data.problems import SAMPLED
    from srtod.data.statistics import format_statistics
    from srtod.engine.data import object_sizes
    from srtod.engine.preflight import fit_anchors, misfits
    from srtod.engine.presets import make_config
    from srtod.evaluation.metric import AREAS

    name = Path(os.path.realpath(options.data)).stem
    picture = _free_path(options.plot, name)
    if options.json and Path(options.json).is_file():
        raise FileExistsError(f"{options.json} exists; pass another --json, or move it away")
    sizes = {} if options.min_size is None else {"min_size": [options.min_size]}
    model = make_config(options.config, data=options.data, **sizes).model
    inspection = inspect_data(options.data, options.images)
    statistics = inspection.statistics
    bins = {area: limits for area, limits in AREAS.items() if area != "all"}
    if options.plot is None:
        PICTURES.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        plot_file = files.enter_context(replacing(picture, binary=True))
        json_file = files.enter_context(replacing(options.json)) if options.json else None
        print(f"{options.data}: {inspection.layout}\n\n{format_statistics(statistics, bins)}\n")
        contents = {split: content for split, (content, _) in inspection.splits.items()}
        first_split, first = next(iter(contents.items()))
        print(_anchors(first_split, object_sizes(first, model)))
        fit = fit_anchors(first, model)
        found = {}
        for split, problems in inspection.problems(detections=model.detections_per_image, decode=options.decode):
            found[split] = [*problems, *(misfits(contents[split], model, fit) if split in contents else ())]
            headline = f"{split}: " + ("worth a look" if found[split] else "no problems found")
            print("\n".join([f"\n{headline}", *map(str, found[split])]))
        if not options.decode:
            print(f"\nonly {SAMPLED} images a split were decoded; --decode takes all")
        plot_statistics(statistics, bins, title=name).savefig(plot_file, format="png")
        command = _training(options, inspection, model.detections_per_image, prog.replace("inspect", "train"))
        if json_file:
            json.dump(_as_json(options.data, inspection, found, command), json_file, indent=2)
    print(f"\n{picture}: sizes, objects per image, classes")
    if command is None:
        print("to train, lay out a split to train on and one to evaluate on in one folder, and pass the folder")
    else:
        print(f"to train: {command}")
    if any(found.values()):
        raise SystemExit(1)


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


def _anchors(split: str, sizes: Tensor) -> str:
    """The anchor scales that suit the objects of a split, whose sizes are `[M, 2]` in pixels."""
    from srtod.models.recipes import fit_detectors

    if not len(sizes):
        return f"no objects in {split} to fit anchors to"
    lines = [f"anchor scale that suits {split}, at the size that the detector works at"]
    for detectors, fit in fit_detectors(sizes).items():
        lines.append(f"  {fit.scale:g} for {', '.join(detectors)} (mean IoU {fit.mean_iou:.2f})")
    return "\n".join(lines)


def _training(options: argparse.Namespace, inspection: Inspection, detections: int, train: str) -> str | None:
    """The command that trains on the set, which begins with `train`; None if there is none."""
    splits = inspection.training_splits
    if splits is None:
        return None
    command = ["--data", options.data, "--config", options.config]
    for option, split in zip(("--train-split", "--test-split"), splits, strict=True):
        command += [option, split] if split else []
    if options.min_size is not None:
        command += ["--min-size", str(options.min_size)]
    most = max(int(numbers.objects_per_image.max()) for numbers in inspection.statistics.values())
    if most > detections:
        command += ["--detections-per-image", str(-(-most // 100) * 100)]
    return f"{train} {shlex.join(command)}"


def _as_json(
    data: str, inspection: Inspection, found: Mapping[str, Sequence[Problem]], command: str | None
) -> dict[str, Any]:
    """All that was found, in plain values."""
    return {
        "data": data,
        "layout": inspection.layout,
        "splits": {
            split: {
                "images": len(numbers.image_sizes),
                "objects": len(numbers.object_sizes),
                "ignore_regions": numbers.ignore_regions,
                "classes": numbers.class_counts,
            }
            for split, numbers in inspection.statistics.items()
        },
        "problems": [
            {"split": split, "problem": problem.what, "where": problem.where}
            for split, problems in found.items()
            for problem in problems
        ],
        "train": command,
    }


if __name__ == "__main__":
    run(main)
