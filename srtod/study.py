"""Run a matched study: variants x seeds x data sets, compared seed by seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from srtod._support.cli import run
from srtod._support.options import Parser

DESCRIPTION = """Train every variant with every seed on every data set of a study file, a process each, and compare the
variants seed by seed. The same command goes on where it was stopped. docs/study.md tells what a study file holds."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.study") -> None:
    options = _parser(prog).parse_args(arguments)
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")

    import torch  # noqa: F401  (whoever lacks it is told of it first)

    from srtod.studies.definition import read_study
    from srtod.studies.folder import StudyFolder
    from srtod.studies.runs import run_study, shard
    from srtod.studies.statistics import check_scipy
    from srtod.studies.summary import write_summary

    study = read_study(options.study)
    check_scipy()
    folder = StudyFolder(Path(options.output or Path("runs", "studies", study.name)))
    if options.summary:
        folder.open(study)
        runs = write_summary(study, folder, allow_commits=options.allow_commits)
        print(f"{folder.path}: runs.csv and summary.md of {sum(run.status == 'done' for run in runs)} runs")
        return
    plans = shard(study.plans(options.only_variants, options.only_datasets, options.seeds), *options.shard)
    try:
        outcome = run_study(study, folder, plans, jobs=options.jobs, allow_commits=options.allow_commits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from the last checkpoints") from None
    for place in outcome.failed:
        print(f"failed: {place.path}: {(place.read('run') or {}).get('error')}; see {place.log}")
    for place in outcome.elsewhere:
        print(f"left to another process: {place.path}")
    print(f"{folder.path}: runs.csv, summary.md and summary.png; {outcome.done} of {len(plans)} runs are done")
    if outcome.failed:
        raise SystemExit(1)


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("study", metavar="STUDY.yaml", help="the study file")
    parser.add_argument("--output", metavar="DIR", help="the study's folder [runs/studies/<name>]")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at once, which share the cores [1]")
    parser.add_argument(
        "--shard", metavar="I/N", type=_shard, default=(1, 1), help="part I of N of the runs, from 1 on [1/1]"
    )
    parser.add_argument("--only-variants", metavar="NAME", nargs="+", help="these variants alone [all]")
    parser.add_argument("--only-datasets", metavar="NAME", nargs="+", help="these data sets alone [all]")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=int, help="these seeds in place of the file's")
    parser.add_argument("--summary", action="store_true", help="write the tables of what is done, and train nothing")
    parser.add_argument(
        "--allow-commits", action="store_true", help="let runs of different code stand side by side; summary.md says so"
    )
    return parser


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be I/N, such as 1/4, got {text}")
    return int(number), int(count)


if __name__ == "__main__":
    run(main)
