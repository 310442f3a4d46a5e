"""The numbers of a set as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .statistics import HUGE, SetStatistics

__all__ = ["plot_statistics"]

INK, GRID, SHADE = "#24292f", "#d8dde3", "#f2f4f7"
COLOURS = ("#2f6fb0", "#e07b39", "#4a9c6d", "#8a63b8", "#b0484f", "#6b7682")
MOST_CLASSES = 25
"""Classes that the figure has room for; of more, those with the most objects."""

LONGEST_NAME = 28
"""Letters of a name that are shown."""

BINS_PER_OCTAVE = 6
"""Bars of the histogram of sizes between one size and twice as much."""


def plot_statistics(
    splits: Mapping[str, SetStatistics], areas: Mapping[str, tuple[float, float]], *, title: str = ""
) -> Figure:
    """Sizes of the objects, objects per image and objects of each class, a colour for each split.

    The first two are shares of their split, so that splits of different length can be compared.

    Args:
        splits: the numbers of each split by name.
        areas: bins of areas by name, in square pixels, which are marked in the histogram of sizes.
        title: what stands above.

    Returns:
        A figure for `savefig`; it belongs to no window and needs no closing.
    """
    classes = _classes(splits)
    height = max(4.0, 1.2 + 0.16 * len(classes) * (1 + len(splits)))
    spaced = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(13.5, min(height, 12)), dpi=120, layout=spaced)
    sizes, counts, names = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    _draw_sizes(sizes, splits, areas)
    _draw_objects_per_image(counts, splits)
    _draw_classes(names, splits, classes)
    figure.suptitle(_text(title), color=INK, fontweight="bold", fontsize="x-large")
    handles, labels = counts.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK)
    return figure


def _classes(splits: Mapping[str, SetStatistics]) -> list[str]:
    """The classes to show: all in their order, or those with the most objects."""
    totals: dict[str, int] = {}
    for statistics in splits.values():
        for name, count in statistics.class_counts.items():
            totals[name] = totals.get(name, 0) + count
    kept = sorted(totals, key=lambda name: -totals[name])[:MOST_CLASSES]
    return kept if len(totals) > MOST_CLASSES else list(totals)


def _draw_sizes(axes: Axes, splits: Mapping[str, SetStatistics], areas: Mapping[str, tuple[float, float]]) -> None:
    """Histogram over the absolute size on a logarithmic axis, above the bins of areas as shaded bands."""
    _style(axes, "Size of objects", "square root of the area, px", "share of objects")
    sizes = np.concatenate([statistics.absolute_sizes for statistics in splits.values()])
    if not len(sizes):
        _say_nothing_there(axes)
        return
    low = np.floor(np.log2(min(sizes.min(), 4)))
    high = np.ceil(np.log2(max(sizes.max(), 40)))
    edges = 2 ** np.linspace(low, high, int((high - low) * BINS_PER_OCTAVE) + 1)
    for statistics, colour in zip(splits.values(), cycle(COLOURS), strict=False):
        values = statistics.absolute_sizes
        shares = np.histogram(values, edges)[0] / max(1, len(values))
        _steps(axes, shares, edges, colour)
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(2.0 ** np.arange(low, high + 1), minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    for index, (name, (smallest, largest)) in enumerate(areas.items()):
        start = max(smallest**0.5, edges[0])
        end = edges[-1] if largest >= HUGE else min(largest**0.5, edges[-1])
        if start >= end:
            continue
        if index % 2 == 0:
            axes.axvspan(start, end, color=SHADE, zorder=0)
        place: dict[str, Any] = {"ha": "center", "va": "top", "transform": axes.get_xaxis_transform()}
        axes.text((start * end) ** 0.5, 0.985, name, color=INK, fontsize="small", **place)


def _draw_objects_per_image(axes: Axes, splits: Mapping[str, SetStatistics]) -> None:
    _style(axes, "Objects per image", "objects", "share of images")
    most = max(int(statistics.objects_per_image.max()) for statistics in splits.values())
    step = max(1, -(-(most + 1) // 30))  # about 30 bars at most
    edges = np.arange(0, most + step + 1, step) - 0.5
    for (name, statistics), colour in zip(splits.items(), cycle(COLOURS), strict=False):
        counts = statistics.objects_per_image
        shares = np.histogram(counts, edges)[0] / len(counts)
        label = f"{_text(name)}: {counts.sum():,} objects in {len(counts):,} images"
        _steps(axes, shares, edges, colour, label)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _draw_classes(axes: Axes, splits: Mapping[str, SetStatistics], classes: list[str]) -> None:
    left_out = max(len(statistics.class_counts) for statistics in splits.values()) - len(classes)
    _style(axes, "Objects of each class" + (f", the {len(classes)} largest" if left_out > 0 else ""), "objects", "")
    thickness = 0.8 / len(splits)
    for index, (statistics, colour) in enumerate(zip(splits.values(), cycle(COLOURS), strict=False)):
        counts = [statistics.class_counts.get(name, 0) for name in classes]
        places = np.arange(len(classes)) + (index - (len(splits) - 1) / 2) * thickness
        bars = axes.barh(places, counts, height=thickness * 0.9, color=colour, alpha=0.85)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, color=INK, fontsize="small")
    axes.set_yticks(range(len(classes)), map(_text, classes))
    axes.set_ylim(max(len(classes), 3) - 0.4, -0.6)  # the first class on top; few classes stay slim
    axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=False, axis="y")


def _steps(axes: Axes, shares: np.ndarray, edges: np.ndarray, colour: str, label: str | None = None) -> None:
    """A histogram's outline; the first split's is filled, for more than one fill would be a muddle."""
    axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
    if colour == COLOURS[0]:
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.2, zorder=0.9)


def _style(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set_title(title, color=INK, fontweight="bold", pad=10)
    axes.set_xlabel(horizontal, color=INK)
    axes.set_ylabel(vertical, color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, length=0)
    if vertical:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _text(name: str) -> str:
    """A name that is not read as a formula, and leaves room for the plot."""
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}...").replace("$", r"\$")


def _say_nothing_there(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no objects", ha="center", va="center", color=INK, transform=axes.transAxes)
