"""Measure whether training waits for its images, and with how many workers it would not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from srtod._support.cli import run
from srtod.train import parse_run

DESCRIPTION = """Measure how many images a second are loaded and trained on, with the options of `srtod train`, and say
which of the two waits for the other. Nothing is written. Defaults are in brackets."""
EXAMPLE = "example: %(prog)s --config visdrone/cascade_rcnn_matched --data VisDrone2019 --workers 8"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.benchmark_data") -> None:
    from srtod.engine.throughput import ThroughputConfig, measure_throughput

    config = parse_run(ThroughputConfig, arguments, prog=prog, description=DESCRIPTION, epilog=EXAMPLE)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    throughput = measure_throughput(config)
    print(f"{throughput}\n\n{throughput.verdict}")


if __name__ == "__main__":
    run(main)
