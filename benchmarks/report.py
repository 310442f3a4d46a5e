"""Prints what `pytest benchmarks/ --benchmark-json=results.json` measured, as tables in Markdown.

python benchmarks/report.py RESULTS.json... > table.md

Times of ops are medians in microseconds, of models in milliseconds. A ratio says how many times as long, or how much
memory, the first form takes as the second. Detectors are compared with the plain one, which runs before each of their
rounds; self-reconstruction alone, which that does not have, with the authors' form of it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

CASE = ("size", "batch", "layout", "dtype", "direction")
RATIOS = ("eager", "compile", "authors", "fused_one_launch", "fused_two_launches")
MODELS = ("authors", "paper", "subpixel")

Entry = dict[str, Any]
Cases = dict[tuple[Any, ...], dict[str, Entry]]  # of cases, of variants


def tables(entries: list[Entry]) -> list[str]:
    """Lines; `entries` are the `extra_info` of all benchmarks."""
    lines: list[str] = []
    for run in sorted({(e["device"], e["torch"], e["commit"]) for e in entries}):
        of_run = [e for e in entries if (e["device"], e["torch"], e["commit"]) == run]
        lines += ["{}, torch {}, commit {}; medians.".format(*run), ""]
        for op in dict.fromkeys(e["op"] for e in of_run):
            cases: Cases = {}
            for entry in (e for e in of_run if e["op"] == op):
                cases.setdefault(tuple(entry[name] for name in CASE), {})[entry["variant"]] = entry
            is_model = any("fused" not in of_case and "paper" in of_case for of_case in cases.values())
            rows = _rows_of_models(cases) if is_model else _rows_of_ops(cases)
            rows.insert(1, ["---"] * len(rows[0]))
            lines += [f"### {op}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    return lines


def _rows_of_ops(cases: Cases) -> list[list[str]]:
    peers = [variant for variant in RATIOS if any(variant in of_case for of_case in cases.values())]
    heads = [*CASE, "fused, us", "p20-p80", "copy", "fused / copy", "fused / floor"]
    heads += [f"{peer.replace('_', ' ')} / fused" for peer in peers] + ["peak MB"]
    rows = [heads]
    for case, of_case in cases.items():
        if "fused" not in of_case:
            continue
        fused, median = of_case["fused"], of_case["fused"]["median_us"]
        copy = of_case["copy"]["median_us"] if "copy" in of_case else None
        times = [f"{median:.1f}", f"{fused['p20_us']:.1f}-{fused['p80_us']:.1f}", _number(copy, 1)]
        ratios = [_ratio(median, copy), _ratio(median, fused["floor_us"])]
        ratios += [_ratio(of_case[peer]["median_us"], median) if peer in of_case else "-" for peer in peers]
        rows.append([*map(str, case), *times, *ratios, _number(fused["peak_mb"], 1)])
    return rows


def _rows_of_models(cases: Cases) -> list[list[str]]:
    base = "plain" if any("plain" in of_case for of_case in cases.values()) else "authors"
    others = [
        variant for variant in MODELS if variant != base and any(variant in of_case for of_case in cases.values())
    ]
    ratios = [f"{other.replace('_', ' ')} / {base}" for other in others]
    rows = [[*CASE, f"{base}, ms", "p20-p80", *ratios, f"{base}, peak MB", *ratios]]
    for case, of_case in cases.items():
        if base not in of_case:
            continue
        first, nothing = of_case[base], {"time_ratio": None, "peak_mb": None}
        peers = [of_case.get(other, nothing) for other in others]
        times = [
            _number(first["median_us"] / 1e3, 1),
            "-".join(_number(first[p] / 1e3, 1) for p in ("p20_us", "p80_us")),
        ]
        times += [_number(peer["time_ratio"], 2) for peer in peers]
        memory = [_number(first["peak_mb"], 0), *(_ratio(peer["peak_mb"], first["peak_mb"]) for peer in peers)]
        rows.append([*map(str, case), *times, *memory])
    return rows


def _ratio(one: float | None, other: float | None) -> str:
    return _number(one / other if one is not None and other else None, 2)


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
