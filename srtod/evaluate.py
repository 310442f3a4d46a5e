"""`python -m srtod.evaluate GT.json DETECTIONS.json`: scores COCO results by the AI-TOD metric."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext

from srtod._cli import replacing, run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srtod.evaluate", description="Score detections by the AI-TOD metric and print it as a table."
    )
    parser.add_argument("ground_truth", metavar="GT.json", help="ground truth in COCO format")
    parser.add_argument(
        "detections", metavar="DETECTIONS.json", help="COCO results: image_id, category_id, bbox, score"
    )
    parser.add_argument("--json", metavar="OUT", help="also write the metrics to this file, as fractions")
    arguments = parser.parse_args()

    from srtod.evaluation import evaluate_detections, format_table

    with replacing(arguments.json) if arguments.json else nullcontext() as file:
        metrics = evaluate_detections(arguments.ground_truth, arguments.detections)
        if file:
            json.dump(metrics, file, indent=2)
    print(format_table(metrics))


if __name__ == "__main__":
    run(main)
