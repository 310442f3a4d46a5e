"""Write a data set of another layout as a COCO file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from srtod._support.cli import run
from srtod._support.files import replacing
from srtod._support.options import Parser

DESCRIPTION = "Write a data set as a COCO file, and print what is in it. The images stay where they are."


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.convert") -> None:
    from srtod.data import LAYOUTS

    layouts = {layout.name.lower(): layout for layout in LAYOUTS if layout.read}
    files = "; ".join(f"{name}: {layout.files}" for name, layout in layouts.items())
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("layout", choices=layouts, help="how SRC is laid out")
    parser.add_argument("source", metavar="SRC", help=f"folder of the set, or the file that describes it ({files})")
    parser.add_argument("output", metavar="OUT.json", type=Path, help="the COCO file")
    parser.add_argument("--split", help="which split, such as train, where SRC has several")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json if it exists")
    options = parser.parse_args(arguments)

    source, output, layout = Path(options.source), options.output, layouts[options.layout]
    if output.is_file() and not options.overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or pass --overwrite to replace it")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass the folder of the set")
    splits = layout.splits(source)
    if not splits:
        raise FileNotFoundError(f"{source} is no {options.layout} set; looked for {layout.files}")
    split = splits.get(options.split or next(iter(splits)))
    if split is None or (options.split is None and len(splits) > 1):
        raise ValueError(f"{source} has the splits {', '.join(splits)}; choose one with --split")
    assert split.convert is not None  # the layouts to choose from are those that are converted
    with replacing(output) as file:
        conversion = split.convert()
        json.dump(conversion.content, file)
    print(conversion.summary())
    print(f"{output}: COCO annotations of {split.name}; its images are in {conversion.folder.resolve()}")


if __name__ == "__main__":
    run(main)
