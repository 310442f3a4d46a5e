"""What a set consists of, in numbers: images, objects, their sizes and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SetStatistics", "format_statistics", "has_area", "set_statistics"]

HUGE = 1e10
"""Square pixels from which a bin has no upper end."""


@dataclass(frozen=True)
class SetStatistics:
    """The numbers of a set. Objects are the boxes that are trained on: no crowd, with an area inside their image.

    Attributes:
        image_sizes: width and height of every image, int `[N, 2]`, in pixels.
        object_sizes: width and height of every object as annotated, float `[M, 2]`, in pixels.
        objects_per_image: int `[N]`.
        class_counts: the number of objects of each class by name, in the order of the category ids.
        ignore_regions: number of ignore regions; one that is annotated for several categories counts once.
    """

    image_sizes: np.ndarray
    object_sizes: np.ndarray
    objects_per_image: np.ndarray
    class_counts: dict[str, int]
    ignore_regions: int

    @property
    def absolute_sizes(self) -> np.ndarray:
        """The square root of the area of every object `[M]`, in pixels: AI-TOD's absolute size."""
        return np.sqrt(self.object_sizes.prod(axis=1))

    def size_counts(self, areas: Mapping[str, tuple[float, float]]) -> dict[str, int]:
        """The number of objects in each bin of areas, in square pixels; on a boundary, an object is in the lower."""
        area = self.object_sizes.prod(axis=1)
        return {name: int(((area > low) & (area <= high)).sum()) for name, (low, high) in areas.items()}


def set_statistics(content: Mapping[str, Any]) -> SetStatistics:
    """Counts a set.

    Args:
        content: the set as COCO data, as `srtod.data.read_coco` returns it.
    """
    images = {image["id"]: image for image in content["images"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    objects = [
        entry
        for entry in content["annotations"]
        if not entry.get("iscrowd") and has_area(entry["bbox"], images[entry["image_id"]])
    ]
    in_image = Counter(entry["image_id"] for entry in objects)
    of_class = Counter(entry["category_id"] for entry in objects)
    regions = {(entry["image_id"], *entry["bbox"]) for entry in content["annotations"] if entry.get("iscrowd")}
    counts: Counter[str] = Counter()  # categories may share a name
    for category in categories:
        counts[str(category.get("name", category["id"]))] += of_class[category["id"]]
    return SetStatistics(
        image_sizes=np.array([(image["width"], image["height"]) for image in images.values()], dtype=np.int64),
        object_sizes=np.array([entry["bbox"][2:] for entry in objects], dtype=np.float64).reshape(-1, 2),
        objects_per_image=np.array([in_image[identity] for identity in images], dtype=np.int64),
        class_counts=dict(counts),
        ignore_regions=len(regions),
    )


def has_area(box: Any, image: Mapping[str, Any]) -> bool:
    """Whether a box [x, y, width, height] has an area inside its image; in float32, as it is trained on."""
    x, y, width, height = box
    x1, y1, x2, y2 = np.array([x, y, x + width, y + height], dtype=np.float32).tolist()
    return min(x2, image["width"]) > max(x1, 0) and min(y2, image["height"]) > max(y1, 0)


def format_statistics(splits: Mapping[str, SetStatistics], areas: Mapping[str, tuple[float, float]]) -> str:
    """A table with a column for each split.

    Args:
        splits: the numbers of each split by name.
        areas: bins of areas by name, in square pixels.
    """
    classes = dict.fromkeys(name for statistics in splits.values() for name in statistics.class_counts)
    columns = [["", *(label for label, _ in _rows(next(iter(splits.values())), areas, list(classes)))]]
    for name, statistics in splits.items():
        columns.append([name, *(cell for _, cell in _rows(statistics, areas, list(classes)))])
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for label, *cells in zip(*columns, strict=True):
        row = [label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
        lines.append("   ".join(row).rstrip())
    return "\n".join(lines)


def _rows(
    statistics: SetStatistics, areas: Mapping[str, tuple[float, float]], classes: list[str]
) -> Iterator[tuple[str, str]]:
    """Label and cell of each row of a split's column; the labels are the same for all."""
    counts, sizes = statistics.objects_per_image, statistics.absolute_sizes
    objects = len(sizes)
    yield "images", f"{len(counts):,}"
    yield "  without objects", _share(int((counts == 0).sum()), len(counts))
    order = statistics.image_sizes.prod(axis=1).argsort(kind="stable")
    smallest, largest = statistics.image_sizes[order[[0, -1]]].tolist()
    [(common, number)] = Counter(map(tuple, statistics.image_sizes.tolist())).most_common(1)
    yield "  smallest, largest", f"{_by(smallest)}, {_by(largest)}"
    yield "  most common size", f"{_by(common)} {_percent(number, len(counts))}"
    yield "objects", f"{objects:,}"
    yield "  in an image: min, median, max", f"{counts.min()}, {np.median(counts):g}, {counts.max()}"
    yield "  in an image: mean", f"{counts.mean():.2f}"
    yield "ignore regions", f"{statistics.ignore_regions:,}"
    yield "size, square root of the area", ""
    for name, count in statistics.size_counts(areas).items():
        low, high = areas[name]
        extent = f"above {low**0.5:g} px" if high >= HUGE else f"{low**0.5:g}-{high**0.5:g} px"
        yield f"  {name}, {extent}", _share(count, objects)
    yield "  mean, standard deviation", f"{sizes.mean():.1f}, {sizes.std():.1f} px" if objects else "-"
    yield "  smallest, largest", f"{sizes.min():.1f}, {sizes.max():.1f} px" if objects else "-"
    ratios = statistics.object_sizes[:, 0] / statistics.object_sizes[:, 1]
    yield "width / height, 5th, 50th, 95th percentile", _percentiles(ratios) if objects else "-"
    yield "objects of each class", ""
    for name in classes:
        known = name in statistics.class_counts
        yield f"  {name}", _share(statistics.class_counts[name], objects) if known else "-"


def _share(count: int, total: int) -> str:
    return f"{count:,} {_percent(count, total)}"


def _percent(count: int, total: int) -> str:
    """What share of a total a count is, as wide as `(100 %)`; below 1 % and just below 100 % to one place."""
    percent = 100 * count / total if total else 0.0
    return f"({percent:.{0 < percent < 1 or 99 < percent < 100:d}f} %)".rjust(8)


def _percentiles(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in np.percentile(values, (5, 50, 95)))


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
