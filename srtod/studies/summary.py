"""The tables of a study: `runs.csv`, a line a run, and `summary.md` and `summary.png`, which compare them."""

from __future__ import annotations

import csv
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from srtod._support.files import replacing
from srtod._support.locks import locked
from srtod.engine import TrainConfig
from srtod.engine.run import CHANGEABLE, PATHS

from .definition import Study
from .folder import RunFolder, StudyFolder
from .statistics import Difference, Mean, mean, paired_difference

__all__ = ["COLUMNS", "METRICS", "Run", "check_matched", "read_runs", "write_summary"]

METRICS = ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm")
FILTER = ("filter_share", "filter_precision", "filter_recall", "threshold_x255", "psnr")
COLUMNS = (
    "study", "dataset", "variant", "control", "seed", "status", *METRICS, *FILTER, "seconds", "device", "version",
    "commit", "command", "error", "log",
)  # fmt: skip

ABOUT = """AP and its kind are x 100, by the AI-TOD metric, of the last checkpoint. A deviation is of the sample. A
difference is the mean over the seeds that both variants have. Its interval has 95 % by Student's t."""

UNMATCHED = CHANGEABLE | {"output", "resume", "seed", "wandb", "weights", "save_every"}
"""Options that two runs may differ in: they do not alter what is compared, or, as weights, are compared otherwise."""


class Run(NamedTuple):
    """A run that was started.

    Attributes:
        folder: its folder.
        plan: what `plan.json` holds.
        status: "done", "failed", "running" or "stopped".
        record: what `run.json` holds; empty without it.
    """

    folder: RunFolder
    plan: Mapping[str, Any]
    status: str
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.plan['dataset']}/{self.plan['variant']}/seed_{self.plan['seed']}"

    def metric(self, name: str) -> float | None:
        """A metric x 100; None where there is no ground truth for it."""
        value = self.record["metrics"][name]
        return None if value < 0 else 100 * value


def read_runs(study: Study, folder: StudyFolder) -> list[Run]:
    """All runs that were started, in the order of the study; those that it no longer has come last."""
    runs = []
    for place in folder.runs():
        plan, status = place.read("plan"), place.state
        if plan is not None:
            runs.append(Run(place, plan, status, (place.read("run") if status in ("done", "failed") else None) or {}))

    def position(names: Iterable[str], name: str) -> int:
        known = list(names)
        return known.index(name) if name in known else len(known)

    return sorted(
        runs,
        key=lambda run: (
            position(study.datasets, run.plan["dataset"]),
            position(study.variants, run.plan["variant"]),
            run.plan["seed"],
        ),
    )


def write_summary(study: Study, folder: StudyFolder, *, allow_commits: bool = False) -> list[Run]:
    """Writes the tables of what is there by now, and returns the runs.

    `runs.csv` has every run that was started. The two others compare those that are done and in the study.

    Raises:
        OSError: if a table cannot be written; the one before stays.
        ValueError: if runs differ in more than their variant's options.
    """
    with locked(folder.path / "summary.lock", wait=True):  # by another runner
        runs = read_runs(study, folder)
        with replacing(folder.path / "runs.csv") as table:
            writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_row(study, folder, run) for run in runs)
        done = [run for run in runs if run.status == "done" and _is_in(study, run)]
        check_matched(study, done, allow_commits=allow_commits)
        with replacing(folder.path / "summary.md") as text:
            text.write(_text(study, runs, done))
        if done:
            with replacing(folder.path / "summary.png", binary=True) as picture:
                _plot(study, done).savefig(picture, format="png", dpi=120)
    return runs


def _is_in(study: Study, run: Run) -> bool:
    return run.plan["dataset"] in study.datasets and run.plan["variant"] in study.variants


def _row(study: Study, folder: StudyFolder, run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: run.plan[name] for name in ("study", "dataset", "variant", "control", "seed", "version")
    }
    row["commit"] = " ".join(commit or "" for commit in run.plan["commits"])
    row["status"], row["command"] = run.status, repeat_command(study, run)
    row["log"] = run.folder.log.relative_to(folder.path)
    if run.status == "done":
        row |= {name: _rounded(run.metric(name), 3) for name in METRICS}
        row |= {name: _rounded(run.record[name], 5) for name in FILTER}
        row |= {"seconds": _rounded(run.record["seconds"], 0), "device": run.record["device"]}
    if run.status == "failed":
        row["error"] = run.record["error"]
    return row


def repeat_command(study: Study, run: Run) -> str:
    """The command that repeats a run."""
    plan = run.plan
    options = ["--only-variants", plan["variant"], "--only-datasets", plan["dataset"], "--seeds", str(plan["seed"])]
    return shlex.join(["srtod", "study", str(study.path), *options, "--output", "repeated"])


def _rounded(value: float | None, digits: int) -> float | str:
    return "" if value is None or math.isnan(value) else round(value, digits)


def check_matched(study: Study, runs: Sequence[Run], *, allow_commits: bool = False) -> None:
    """Checks that the runs on each data set differ in nothing but what their variants set, and the seed.

    Raises:
        ValueError: if they do; names the field, the runs and both values.
    """
    defaults = TrainConfig().as_dict()
    for dataset in study.datasets:
        own = [run for run in runs if run.plan["dataset"] == dataset]
        for run in own:
            alike = [other for other in own if other.plan["variant"] == run.plan["variant"]]
            reference = next((other for other in own if other.plan["variant"] == _baseline(study, run)), alike[0])
            ours, theirs = (defaults | study.written_options(dataset, one.plan["variant"]) for one in (run, reference))
            _check_options(study, run, ours)
            allowed = {name for name in ours if ours[name] != theirs[name]}
            for name, value, other in _compared(run, reference, allow_commits):
                if name not in allowed and value != other:
                    raise ValueError(
                        f"{run.name} and {reference.name} cannot be compared: {name} is {value!r} in the first and "
                        f"{other!r} in the second; train one of them anew"
                    )


def _baseline(study: Study, run: Run) -> str:
    return study.variants[run.plan["variant"]].baseline or run.plan["variant"]


def _check_options(study: Study, run: Run, written: Mapping[str, Any]) -> None:
    """Checks that the study file still says of a run what it was trained with; paths may differ by machine."""
    fixed = UNMATCHED | {*PATHS, "eval_every", "early_stop", "threads"}
    for name in written.keys() - fixed:
        value = written[name]
        value = list(value) if isinstance(value, tuple) else value
        is_known = not (isinstance(value, str) and "${" in value)
        if is_known and run.plan["options"][name] != value:
            raise ValueError(
                f"{run.name} was trained with {name} {run.plan['options'][name]!r}, and {study.path} says {value!r}; "
                f"put it back, or choose another --output"
            )


def _compared(run: Run, reference: Run, allow_commits: bool) -> list[tuple[str, Any, Any]]:
    """What two runs must have in common: name and both values."""
    pairs = [
        (name, run.record["options"].get(name), reference.record["options"].get(name))
        for name in sorted(run.record["options"].keys() | reference.record["options"].keys())
        if name not in UNMATCHED
    ]
    pairs += [
        (f"the {kind} set", run.record["data"][kind], reference.record["data"][kind]) for kind in ("training", "test")
    ]
    pairs.append(("weights", run.record["weights"], reference.record["weights"]))
    if not allow_commits:
        pairs += [(name, run.record[name], reference.record[name]) for name in ("version", "commit")]
    return pairs


# --- summary.md -------------------------------------------------------------------------------------------------------


def _text(study: Study, runs: Sequence[Run], done: Sequence[Run]) -> str:
    parts = [
        f"# {study.name}",
        ABOUT,
    ]
    for dataset in study.datasets:
        own = [run for run in done if run.plan["dataset"] == dataset]
        if own:
            parts += [f"## {dataset}", _means(study, own), _differences(study, partial(difference, study, own))]
    if rows := _differences(study, partial(difference_over_sets, study, done)):
        parts += ["## All sets", "The mean over the data sets, seed by seed.", rows]
    parts.append(_variants(study))
    parts.append(_others(runs, done))
    parts.append(_code(done))
    return "\n\n".join(part for part in parts if part) + "\n"


def _code(runs: Sequence[Run]) -> str:
    """Which code the runs are of, where it is not the same."""
    code = Counter(f"srtod {run.record['version']}, commit {run.record['commit'] or 'not known'}" for run in runs)
    if len(code) < 2:
        return ""
    lines = [f"- {name}: {count} runs" for name, count in code.items()]
    return "\n".join(["## Code", "", "**The runs are of different code.** Differences may come from it.", "", *lines])


def _means(study: Study, runs: Sequence[Run]) -> str:
    rows = []
    for variant, own in _by_variant(study, runs):
        cells = [_mean_cell([run.metric(name) for run in own], 1) for name in METRICS]
        cells += [
            _mean_cell([run.record[name] for run in own], digits)
            for name, digits in (("filter_share", 3), ("filter_precision", 3), ("filter_recall", 3), ("psnr", 1))
        ]
        rows.append([_shown(study, variant), str(len(own)), *cells])
    return _table(["variant", "seeds", *METRICS, "filter share", "precision", "recall", "PSNR"], rows)


def _differences(study: Study, find: Callable[[str, str], Difference | None]) -> str:
    """The table of what `find` gives for a variant and a metric."""
    rows = []
    for variant, written in study.variants.items():
        found = [find(variant, name) for name in METRICS] if written.baseline is not None else [None]
        if found[0] is not None:
            cells = ["-" if one is None else _difference_cell(one) for one in found]
            rows.append([_shown(study, variant), str(written.baseline), str(len(found[0].each)), *cells])
    return _table(["variant", "minus", "pairs", *METRICS], rows) if rows else ""


def difference(study: Study, runs: Sequence[Run], variant: str, metric: str) -> Difference | None:
    """The paired difference of a variant's runs to its baseline's on one data set; None without a pair."""
    baseline = study.variants[variant].baseline
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        value = run.metric(metric)
        if value is not None:
            values.setdefault(run.plan["variant"], {})[run.plan["seed"]] = value
    return paired_difference(values.get(variant, {}), values.get(str(baseline), {}))


def difference_over_sets(study: Study, runs: Sequence[Run], variant: str, metric: str) -> Difference | None:
    """The same, averaged over all data sets seed by seed; None if one has no pair, or there is one set alone."""
    by_set = [[run for run in runs if run.plan["dataset"] == dataset] for dataset in study.datasets]
    found = [difference(study, own, variant, metric) for own in by_set]
    known = [one.each for one in found if one is not None]
    if len(known) < max(2, len(found)):
        return None
    seeds = set.intersection(*(set(each) for each in known))
    means = {seed: mean([each[seed] for each in known]).mean for seed in seeds}
    return paired_difference(means, dict.fromkeys(means, 0.0))


def _by_variant(study: Study, runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    pairs = [(variant, [run for run in runs if run.plan["variant"] == variant]) for variant in study.variants]
    return [(variant, own) for variant, own in pairs if own]


def _shown(study: Study, variant: str) -> str:
    control = study.variants[variant].control
    return variant if control is None else f"{variant} (control)"


def _variants(study: Study) -> str:
    """What each variant sets otherwise than its baseline."""
    defaults = TrainConfig().as_dict()
    lines = []
    for name, variant in study.variants.items():
        theirs = {} if variant.baseline is None else study.variants[variant.baseline].options
        own = {**defaults, **study.options, **variant.options}
        base = {**defaults, **study.options, **theirs}
        changed = [f"{key} {own[key]}" for key in sorted(own) if own[key] != base[key]]
        if variant.baseline is None:
            changed = [f"{key} {value}" for key, value in variant.options.items() if value != defaults[key]]
        if variant.control is not None:
            changed.append(f"control {variant.control}")
        beside = "" if variant.baseline is None else f", against {variant.baseline}"
        lines.append(f"- {name}{beside}: {', '.join(changed) or 'nothing'}")
    return "## Variants\n\nWhat each sets.\n\n" + "\n".join(lines)


def _others(runs: Sequence[Run], done: Sequence[Run]) -> str:
    """The runs that were started and are in no table."""
    lines = []
    for run in runs:
        if run.status == "failed":
            lines.append(f"- {run.name} failed: {run.record['error']}; see {run.folder.log}")
        elif run not in done:
            lines.append(f"- {run.name}: {run.status if run.status != 'done' else 'done, but no longer in the study'}")
    return "## Runs that are not in the tables\n\n" + "\n".join(lines) if lines else ""


def _mean_cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    found: Mean = mean(known)
    deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.{digits}f}"
    return f"{found.mean:.{digits}f}{deviation}"


def _difference_cell(found: Difference) -> str:
    interval = "" if math.isnan(found.low) else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{found.mean:+.1f}{interval}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# --- summary.png ------------------------------------------------------------------------------------------------------


def _plot(study: Study, done: Sequence[Run]) -> Figure:
    """The paired differences of AP: a panel a data set and one for all, a row a variant, a grey point a seed."""
    finders = {
        name: partial(difference, study, own)
        for name in study.datasets
        if (own := [run for run in done if run.plan["dataset"] == name])
    }
    variants = [name for name, _ in _by_variant(study, done) if study.variants[name].baseline is not None]
    if any(difference_over_sets(study, done, variant, "AP") for variant in variants):
        finders["all sets"] = partial(difference_over_sets, study, done)
    figure = Figure(figsize=(2.2 + 2.6 * len(finders), 1.2 + 0.3 * max(1, len(variants))), layout="constrained")
    panels = figure.subplots(1, len(finders), sharey=True, squeeze=False)[0]
    for panel, (title, find) in zip(panels, finders.items(), strict=True):
        for row, variant in enumerate(variants):
            found = find(variant, "AP")
            if found is None:
                continue
            panel.plot(list(found.each.values()), [row] * len(found.each), ".", color="0.7", zorder=1)
            low, high = (found.mean, found.mean) if math.isnan(found.low) else (found.low, found.high)
            panel.plot([low, high], [row, row], color="C0", linewidth=2)
            panel.plot([found.mean], [row], "o", color="C0", markersize=5)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("AP minus baseline", fontsize=8)
        panel.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(variants)), [_shown(study, name) for name in variants])
    panels[0].set_ylim(max(1, len(variants)) - 0.5, -0.5)
    return figure
