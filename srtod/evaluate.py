"""Score detections by the AI-TOD metric."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from srtod._support.cli import run
from srtod._support.commands import callable_as
from srtod._support.files import replacing
from srtod._support.options import Parser

FIGURES = ("pdf", "png", "svg")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.evaluate") -> None:
    parser = Parser(prog=prog, description="Score detections by the AI-TOD metric, and print it as a table.")
    parser.add_argument("ground_truth", metavar="GT.json", help="ground truth in COCO format")
    parser.add_argument(
        "detections", metavar="DETECTIONS.json", help="COCO results: image_id, category_id, bbox, score"
    )
    parser.add_argument("--per-class", action="store_true", help="also print a table of the classes")
    parser.add_argument("--json", metavar="OUT", help="also write the metrics to this file, as fractions")
    parser.add_argument(
        "--plot",
        metavar="PR.png",
        type=_figure,
        help=f"also draw the precision-recall curves of each size bin into this file ({', '.join(FIGURES)})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of --json and --plot if they exist")
    options = parser.parse_args(arguments)
    _check_outputs(options)

    from srtod.evaluation import detailed_evaluation, format_classes, format_table, plot_curves

    with ExitStack() as files:
        metrics_file = files.enter_context(replacing(options.json)) if options.json else None
        plot_file = files.enter_context(replacing(options.plot, binary=True)) if options.plot else None
        _check_numbers(options)
        evaluation = detailed_evaluation(options.ground_truth, options.detections)
        if metrics_file:
            json.dump(evaluation.metrics, metrics_file, indent=2)
        if plot_file:
            plot_curves(evaluation.curves).savefig(plot_file, format=_suffix(options.plot))
    print(format_table(evaluation.metrics))
    if options.per_class:
        print(f"\n{format_classes(evaluation)}")


def score(
    ground_truth: str | Path | Mapping[str, Any], detections: str | Path | Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The metrics by name, `srtod.evaluate("gt.json", "detections.json")["AP"]`; see `evaluate_detections`."""
    from srtod.evaluation import evaluate_detections

    return evaluate_detections(ground_truth, detections)


def _check_outputs(options: argparse.Namespace) -> None:
    """Raises a ValueError or FileExistsError if a file to be written is read or written too, or exists."""
    others = {
        os.path.realpath(options.ground_truth): "the ground truth",
        os.path.realpath(options.detections): "the detections",
    }
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if not path:
            continue
        place = os.path.realpath(path)
        if place in others:
            raise ValueError(f"{option} {path} is the file of {others[place]}; pass another")
        if Path(place).is_file() and not options.overwrite:
            raise FileExistsError(f"{path} exists; pass another {option}, or --overwrite to replace it")
        others[place] = option


def _check_numbers(options: argparse.Namespace) -> None:
    """Raises a ValueError if the detections are of `srtod predict` and number other files than the ground truth."""
    if not Path(options.detections).with_name("images.json").is_file():
        return
    from srtod.data.coco import read_coco
    from srtod.prediction.folder import predicted_names

    names = predicted_names(options.detections)
    for image in read_coco(options.ground_truth)["images"] if names else ():
        expected, found = image.get("file_name"), names.get(image["id"])
        if expected and found and Path(expected).name != Path(found).name:
            raise ValueError(
                f"{options.detections} numbers other images than {options.ground_truth}: {image['id']} is {found}, not "
                f"{expected}; find the objects again by srtod predict --coco {options.ground_truth}"
            )


def _figure(path: str) -> str:
    if _suffix(path) not in FIGURES:
        raise argparse.ArgumentTypeError(f"{path} must end in {', '.join(f'.{suffix}' for suffix in FIGURES)}")
    return path


def _suffix(path: str) -> str:
    return Path(path).suffix.lower().removeprefix(".")


callable_as(__name__, score)

if __name__ == "__main__":
    run(main)
