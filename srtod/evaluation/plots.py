"""Precision-recall curves as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from .metric import AREAS, Curve

__all__ = ["plot_curves"]

TITLES = {"all": "all sizes", "verytiny": "very tiny"}  # of the bins whose name is no title
AT_50, MEAN, INK, GRID = "#2f6fb0", "#e07b39", "#24292f", "#d8dde3"
RECALL = np.linspace(0, 1, 101)


def plot_curves(curves: Mapping[str, Curve]) -> Figure:
    """Precision over recall, a panel for each area bin, at IoU 0.50 and as the mean over IoU 0.50:0.95.

    Args:
        curves: of `detailed_evaluation`.

    Returns:
        A figure for `savefig`; it belongs to no window and needs no closing.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)  # inches
    figure = Figure(figsize=(2.6 * len(curves) + 0.4, 4.0), dpi=150, layout=layout)
    panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (area, curve) in zip(panels, curves.items(), strict=True):
        _draw(axes, area, curve)
    panels[0].set_ylabel("precision", color=INK)
    lines = [Line2D([], [], color=colour, linewidth=2) for colour in (AT_50, MEAN)]
    names = ["AP50: IoU 0.50", "AP: mean over IoU 0.50:0.95"]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return figure


def _draw(axes: Axes, area: str, curve: Curve) -> None:
    axes.set_title(f"{TITLES.get(area, area)}", color=INK, fontweight="bold", pad=34)
    _above(axes, 0.5, 20, _extent(area, curve.objects), INK, "center")
    ticks = np.linspace(0, 1, 5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=ticks, yticks=ticks, xlabel="recall")
    axes.xaxis.label.set_color(INK)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize="small", length=0)
    if not curve.objects:
        return
    for precision, colour in ((curve.at_50, AT_50), (curve.mean, MEAN)):
        axes.fill_between(RECALL, precision, color=colour, alpha=0.12, linewidth=0)
        axes.plot(RECALL, precision, color=colour, linewidth=1.8, solid_joinstyle="round")
    _above(axes, 0.48, 6, f"AP50 {100 * curve.at_50.mean():.1f}", AT_50, "right")
    _above(axes, 0.52, 6, f"AP {100 * curve.mean.mean():.1f}", MEAN, "left")


def _above(axes: Axes, x: float, y: float, words: str, colour: str, align: Literal["left", "center", "right"]) -> None:
    """Words above a panel: x as a share of its width, y in points from its top."""
    axes.annotate(
        words, (x, 1), (0, y), "axes fraction", textcoords="offset points", ha=align, color=colour, fontsize="small"
    )


def _extent(area: str, objects: int) -> str:
    low, high = AREAS[area]
    extent = "" if area == "all" else f"from {low} px², " if high >= AREAS["all"][1] else f"{low}-{high} px², "
    return f"{extent}{objects or 'no'} object{'s' * (objects != 1)}"
