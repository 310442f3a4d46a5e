"""`python -m srtod.train`: trains a detector, on generated images unless told otherwise."""

from __future__ import annotations

import logging
import warnings

from srtod._cli import run
from srtod._options import parse_options

DESCRIPTION = """Train a detector for tiny objects. Without options: SR-TOD Faster R-CNN on the generated swarm set, a
few minutes on two CPU cores. Defaults are in brackets."""
EXAMPLE = """example: python -m srtod.train --train-json train.json --train-images images --test-json test.json
--weights DEFAULT --anchor-scale 4 --no-self-reconstruction"""


def main() -> None:
    from srtod.engine import TrainConfig, train
    from srtod.evaluation import format_table

    config = parse_options(TrainConfig, prog="python -m srtod.train", description=DESCRIPTION, epilog=EXAMPLE)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    try:
        folder, metrics = train(config)
    except FloatingPointError as error:
        raise SystemExit(f"error: {error}") from None
    print(format_table(metrics))
    print(f"{folder}: checkpoints, logs, metrics.json and panels")


if __name__ == "__main__":
    run(main)
