"""A run as one HTML page, which holds all that it shows: it can be mailed, and loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from srtod.evaluation import format_metric

from .callbacks.checkpoints import BEST
from .logs import TABLE, read_table

__all__ = ["run_page"]

PLOTS: Mapping[str, Sequence[str]] = {
    "average precision, x 100": ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm"),
    "filter on the test images, share": ("filter_share", "filter_precision", "filter_recall"),
    "threshold, grey levels": ("threshold_x255",),
    "reconstruction of the training images, PSNR in dB": ("psnr",),
    "learning rate": ("learning_rate",),
}
"""Titles of the plots, and the columns of the log that each shows; the losses come before them."""

LOSS = "train/"
"""What the names of the losses' columns begin with."""


def run_page(folder: Path, report: Path) -> str:
    """The page of a run: metrics, classes, curves, pictures, configuration, versions, and the commands to repeat it.

    Args:
        folder: the run's folder, of which the log is read.
        report: its report, see `srtod.engine.report.write_report`.

    Returns:
        HTML with every picture inside. A policy in its head forbids browsers to load anything.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError: if the summary is not one of `write_report`.
    """
    summary_file = report / "metrics.json"
    try:
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        config, metrics, test_set = summary["config"], summary["metrics"], summary["test_set"]
        about = (
            f"{config['detector']}, {'with' if config['self_reconstruction'] else 'without'} self-reconstruction, "
            f"after epoch {summary['epoch']} of {config['epochs']}, seed {summary['seed']}, on {summary['device']}"
        )
        versions = {**summary["versions"], "commit of srtod": summary["commit"] or "an installed version"}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{summary_file} is damaged or no summary of a run ({type(error).__name__}: {error}); "
            f"--resume {folder} writes it anew"
        ) from None
    environment = Environment(
        loader=PackageLoader("srtod.engine", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        name=folder.resolve().name,
        about=about,
        test_set=f"{test_set['objects']} objects in {test_set['images']} test images.",
        metrics=_metrics(metrics),
        classes=_first_table((report / "per_class.md").read_text(encoding="utf-8")),
        curves=_curves(folder / TABLE),
        precision_recall=_data((report / "pr_curves.png").read_bytes()),
        panels=[(path.stem, _data(path.read_bytes())) for path in sorted((report / "panels").glob("*.png"))],
        commands=_commands(folder),
        versions="\n".join(f"{name}: {version}" for name, version in versions.items()),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _metrics(metrics: Mapping[str, float]) -> list[list[str]]:
    """A table of one row: the metrics that a report's table has."""
    shown = {name: format_metric(name, value) for name, value in metrics.items()}
    return [list(shown), list(shown.values())]


def _first_table(markdown: str) -> list[list[str]]:
    """The cells of the first table of a Markdown text, row by row."""
    rows: list[list[str]] = []
    for line in markdown.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))  # a bar behind a backslash is part of its cell
            rows.append([cell.strip().replace("\\|", "|") for cell in cells])
        elif rows:
            break
    return [row for row in rows if not all(set(cell) <= set("-: ") for cell in row)]


def _commands(folder: Path) -> str:
    """What trains the run again, and what uses it."""
    settings, again, best = (shlex.quote(f"{folder}{end}") for end in ("/config.yaml", "-again", f"/{BEST}"))
    return f"srtod train --config {settings} --output {again}\nsrtod predict {best} IMAGES found"


def _curves(log: Path) -> list[tuple[str, str]]:
    """Title and picture of each plot that the log has values for."""
    columns = read_table(log) if log.is_file() else {}
    losses = [name for name in columns if name.startswith(LOSS)]
    plots = {"losses": losses, **PLOTS}
    drawn = []
    for title, names in plots.items():
        # A metric of -1 has no such object.
        points = {name: [point for point in columns.get(name, ()) if point[1] != -1] for name in names}
        series = {name.removeprefix(LOSS): found for name, found in points.items() if found}
        if series:
            drawn.append((title, _plot(title, series, scale=100 if title.endswith("x 100") else 1)))
    return drawn


def _plot(title: str, series: Mapping[str, Sequence[tuple[float, float]]], scale: float) -> str:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, [scale * value for value in values], label=name, linewidth=1.4,
                  marker="o" if len(points) < 30 else None, markersize=3)  # fmt: skip
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set_xlabel("step")
    axes.grid(color="#d8dee5", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(fontsize="small", frameon=False)
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _data(file.getvalue(), "image/svg+xml")


def _data(content: bytes, kind: str = "image/png") -> str:
    """A picture as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
