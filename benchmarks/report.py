"""Prints what `pytest benchmarks/ --benchmark-json=results.json` measured, as tables in Markdown.

python benchmarks/report.py RESULTS.json... > table.md

Times are medians in microseconds. A ratio says how many times as long the first form takes as the second.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

CASE = ("size", "batch", "layout", "dtype", "direction")
RATIOS = ("eager", "compile", "authors", "composed", "fused_one_launch", "fused_two_launches")

Entry = dict[str, Any]


def tables(entries: list[Entry]) -> list[str]:
    """Lines; `entries` are the `extra_info` of all benchmarks."""
    lines: list[str] = []
    for run in sorted({(e["device"], e["torch"], e["commit"]) for e in entries}):
        of_run = [e for e in entries if (e["device"], e["torch"], e["commit"]) == run]
        lines += ["{}, torch {}, commit {}; medians in microseconds.".format(*run), ""]
        for op in dict.fromkeys(e["op"] for e in of_run):
            lines += [f"### {op}", "", *_table([e for e in of_run if e["op"] == op]), ""]
    return lines


def _table(entries: list[Entry]) -> list[str]:
    cases: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in entries:
        cases.setdefault(tuple(entry[name] for name in CASE), {})[entry["variant"]] = entry
    peers = [variant for variant in RATIOS if any(variant in of_case for of_case in cases.values())]
    heads = [*CASE, "fused", "p20-p80", "copy", "fused / copy", "fused / floor"]
    heads += [f"{peer.replace('_', ' ')} / fused" for peer in peers] + ["peak MB"]
    rows = [heads, ["---"] * len(heads)]
    for case, of_case in cases.items():
        if "fused" not in of_case:
            continue
        fused, median = of_case["fused"], of_case["fused"]["median_us"]
        copy = of_case["copy"]["median_us"] if "copy" in of_case else None
        times = [f"{median:.1f}", f"{fused['p20_us']:.1f}-{fused['p80_us']:.1f}", _number(copy, 1)]
        ratios = [_ratio(median, copy), _ratio(median, fused["floor_us"])]
        ratios += [_ratio(of_case[peer]["median_us"], median) if peer in of_case else "-" for peer in peers]
        rows.append([*map(str, case), *times, *ratios, _number(fused["peak_mb"], 1)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _ratio(one: float, other: float | None) -> str:
    return _number(one / other if other else None, 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("usage: python benchmarks/report.py RESULTS.json... > table.md")
    files = [Path(name) for name in sys.argv[1:]]
    benchmarks = [b for file in files if file.stat().st_size for b in json.loads(file.read_text())["benchmarks"]]
    entries = [b["extra_info"] for b in benchmarks if "variant" in b["extra_info"]]
    if not entries:
        raise SystemExit(f"no results of `pytest benchmarks/` in {', '.join(map(str, files))}")
    print("\n".join(tables(entries)).rstrip())


if __name__ == "__main__":
    main()
