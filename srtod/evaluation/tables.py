"""Metrics as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from .metric import AREAS, IGNORE_REGIONS, MAX_DETECTIONS, DetailedEvaluation

__all__ = ["format_classes", "format_table"]

WIDTH = 100  # of the protocol, in columns
CLASS_METRICS = ("AP", "AP50", "APvt", "APt", "APs", "APm", "AR1500")


def format_table(metrics: Mapping[str, float]) -> str:
    """The metrics x 100 as a table, above the protocol they were computed by; a dash where there is no ground truth."""
    lines = []
    for kind in ("AP", "AR"):
        names = [name for name in metrics if name.startswith(kind)]
        lines += ["  ".join(f"{name:>6}" for name in names), "  ".join(f"{_cell(metrics[name]):>6}" for name in names)]
        lines.append("")
    return "\n".join([*lines, _protocol()])


def format_classes(evaluation: DetailedEvaluation) -> str:
    """The metrics x 100 of each class as a Markdown table, with the number of its objects; a dash where it has none.

    The last row is their mean, which is the metric, and the number of all objects.
    """
    rows = [["class", "objects", *CLASS_METRICS]]
    rows += [
        [_escaped(result.name), str(result.objects["all"]), *(_cell(result.metrics[name]) for name in CLASS_METRICS)]
        for result in evaluation.classes
    ]
    total = str(evaluation.curves["all"].objects)
    rows.append(["mean", total, *(_cell(evaluation.metrics[name]) for name in CLASS_METRICS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = (
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows
    )
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([header, rule, *body])


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def _escaped(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())


def _protocol() -> str:
    bins = ", ".join(f"{name} {low}-{high:.0f}" for name, (low, high) in list(AREAS.items())[1:-1])
    return "\n".join(
        [
            "AI-TOD metric, x 100. IoU 0.50:0.95 in steps of 0.05; AP50, AP75: at that IoU alone.",
            f"Areas in px^2, ends included: {bins}, medium from {AREAS['medium'][0]}.",
            f"Detections per image and category: at most {MAX_DETECTIONS[-1]}; AR1, AR100: at most 1, 100.",
            textwrap.fill(IGNORE_REGIONS, WIDTH),
        ]
    )
