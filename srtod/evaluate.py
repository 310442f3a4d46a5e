"""`python -m srtod.evaluate GT.json DETECTIONS.json`: scores COCO results by the AI-TOD metric."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from srtod._support.cli import run
from srtod._support.files import replacing

FIGURES = ("pdf", "png", "svg")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srtod.evaluate",
        description="Score detections by the AI-TOD metric and print it as a table.",
        allow_abbrev=False,
    )
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
    arguments = parser.parse_args()
    _check_outputs(arguments)

    from srtod.evaluation import detailed_evaluation, format_classes, format_table, plot_curves

    with ExitStack() as files:
        metrics_file = files.enter_context(replacing(arguments.json)) if arguments.json else None
        plot_file = files.enter_context(replacing(arguments.plot, binary=True)) if arguments.plot else None
        evaluation = detailed_evaluation(arguments.ground_truth, arguments.detections)
        if metrics_file:
            json.dump(evaluation.metrics, metrics_file, indent=2)
        if plot_file:
            plot_curves(evaluation.curves).savefig(plot_file, format=_suffix(arguments.plot))
    print(format_table(evaluation.metrics))
    if arguments.per_class:
        print(f"\n{format_classes(evaluation)}")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises a ValueError or FileExistsError if a file to be written is read or written too, or exists."""
    others = {
        Path(arguments.ground_truth).resolve(): "the ground truth",
        Path(arguments.detections).resolve(): "the detections",
    }
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if not path:
            continue
        place = Path(path).resolve()
        if place in others:
            raise ValueError(f"{option} {path} is the file of {others[place]}; pass another")
        if place.is_file() and not arguments.overwrite:
            raise FileExistsError(f"{path} exists; pass another {option}, or --overwrite to replace it")
        others[place] = option


def _figure(path: str) -> str:
    if _suffix(path) not in FIGURES:
        raise argparse.ArgumentTypeError(f"{path} must end in {', '.join(f'.{suffix}' for suffix in FIGURES)}")
    return path


def _suffix(path: str) -> str:
    return Path(path).suffix.lower().removeprefix(".")


if __name__ == "__main__":
    run(main)
