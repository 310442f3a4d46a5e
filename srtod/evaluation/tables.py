"""Metrics as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from .metric import AREAS, IGNORE_REGIONS, MAX_DETECTIONS, DetailedEvaluation

__all__ = ["format_classes", "format_metric", "format_table"]

WIDTH = 100  # of the protocol, in columns
BEST_F1 = ("F1", "precision", "recall", "F1_threshold")
CLASS_METRICS = ("AP", "AP50", "APvt", "APt", "APs", "APm", "AR1500", *BEST_F1)


def format_table(metrics: Mapping[str, float]) -> str:
    """The metrics x 100 as a table, above the protocol they were computed by; a dash where there is no ground truth.

    Metrics of before, without the best F1, make a table without it.
    """
    lines = []
    rows = [[name for name in metrics if name.startswith(kind)] for kind in ("AP", "AR")]
    for names in (*rows, [name for name in BEST_F1 if name in metrics]):
        if names:
            widths = [max(6, len(name)) for name in names]
            cells = [format_metric(name, metrics[name]) for name in names]
            lines += ["  ".join(map(str.rjust, words, widths)) for words in (names, cells)]
            lines.append("")
    return "\n".join([*lines, _protocol()])


def format_classes(evaluation: DetailedEvaluation) -> str:
    """The metrics x 100 of each class as a Markdown table, with the number of its objects; a dash where it has none.

    The last row has the metric, which is the mean of the classes, the number of all objects, and the best F1 of all
    classes together under one threshold.
    """
    rows = [["class", "objects", *CLASS_METRICS]]
    for result in evaluation.classes:
        cells = [format_metric(name, result.metrics[name]) for name in CLASS_METRICS]
        rows.append([_escaped(result.name), str(result.objects["all"]), *cells])
    total = str(evaluation.curves["all"].objects)
    rows.append(["all", total, *(format_metric(name, evaluation.metrics[name]) for name in CLASS_METRICS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = (
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows
    )
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([header, rule, *body])


def format_metric(name: str, value: float) -> str:
    """A metric x 100, a score as it is; a dash where there is no ground truth."""
    if value < 0:
        return "-"
    return f"{value:.3f}" if name == "F1_threshold" else f"{100 * value:.1f}"


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
            "F1: the best at IoU 0.50, of the detections that score at least F1_threshold, all classes together.",
        ]
    )
