"""Train a detector, on generated images unless told otherwise."""

from __future__ import annotations

import argparse
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from srtod._support.cli import run
from srtod._support.commands import callable_as
from srtod._support.options import parse_options

if TYPE_CHECKING:
    from srtod.engine import TrainedRun

Config = TypeVar("Config")

DESCRIPTION = """Train a detector for tiny objects. Without options: SR-TOD Faster R-CNN on the generated swarm set, a
few minutes on two CPU cores. Defaults are in brackets; a configuration comes over them, and options over it."""
EXAMPLE = """example: %(prog)s --config visdrone/cascade_rcnn_matched --data VisDrone2019 --lr 0.0025
--no-self-reconstruction"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.train") -> None:
    from srtod.engine import TrainConfig, is_main_process, train
    from srtod.evaluation import format_table

    config = parse_run(TrainConfig, arguments, prog=prog, description=DESCRIPTION, epilog=EXAMPLE)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    try:
        trained = train(config)
    except FloatingPointError as error:
        raise SystemExit(f"error: {error}") from None
    if is_main_process():
        print(format_table(trained.metrics))
        print(f"{trained.folder}: checkpoints, logs and report")
        print(f"next: srtod predict {shlex.quote(str(trained.best))} YOUR_IMAGES OUT")


def run_training(data: str | Path | None = None, *, config: str | Path | None = None, **options: Any) -> TrainedRun:
    """Trains a detector: `srtod.train("DATA", config="small", epochs=6)`, as `srtod train` does.

    Args:
        data: the data set's folder, see docs/data.md; None: the generated swarm set.
        config: a preset, or a YAML file, such as the config.yaml of a run.
        options: those of the command line, with `_` for `-`; they come over the configuration.

    Returns:
        The run: its `folder`, its `metrics`, and its `best` checkpoint for `srtod.Predictor`.

    Raises:
        ValueError: if an option is unknown, or has a value of another type; and what `srtod.engine.train` raises.
    """
    from srtod.engine import train
    from srtod.engine.presets import make_config

    return train(make_config(config, **options if data is None else options | {"data": data}))


def parse_run(config: type[Config], arguments: Sequence[str] | None = None, **about: str) -> Config:
    """Reads a `TrainConfig`, or a dataclass that extends it, from the command line, `--config` and `--resume`.

    Args:
        config: the dataclass.
        arguments: the command line; None for that of the process.
        about: `prog`, `description` and `epilog` of the help.
    """
    return parse_options(config, arguments, base=_configuration, parents=[_configuration_options()], **about)


def _configuration_options() -> argparse.ArgumentParser:
    """The options that stand for many others."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("Configurations")
    group.add_argument(
        "--config",
        metavar="NAME|FILE",
        default=argparse.SUPPRESS,
        help="a preset, or a YAML file, such as the config.yaml of a run: values in place of the defaults below",
    )
    group.add_argument("--list-presets", action=_ListPresets, nargs=0, help="print the presets, one a line, and exit")
    return parser


class _ListPresets(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from srtod.engine.presets import describe_presets

        print(describe_presets())
        parser.exit()


def _configuration(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `--config` sets, or those of the run that `--resume` names."""
    from srtod.engine.presets import read_config
    from srtod.engine.run import check_options, read_run

    run_folder, config = given.get("resume"), given.get("config")
    if run_folder is not None and config is not None:
        raise ValueError("--resume takes the configuration of the run that it goes on with; leave out --config")
    if run_folder is not None:
        saved = read_run(Path(run_folder))
        # Checked here too: later, an option that equals its default looks as if nobody had typed it.
        check_options(given, saved, Path(run_folder))
        return saved.as_dict()
    return {} if config is None else read_config(config)


callable_as(__name__, run_training)

if __name__ == "__main__":
    run(main)
