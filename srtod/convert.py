"""`python -m srtod.convert visdrone|yolo SRC OUT.json`: writes a set of another format as a COCO file."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from srtod._support.cli import run
from srtod._support.files import replacing


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srtod.convert",
        description="Write a data set as a COCO file, and print what is in it. The images stay where they are.",
        allow_abbrev=False,
    )
    parser.add_argument("format", choices=["visdrone", "yolo"], help="what SRC is")
    parser.add_argument(
        "source", metavar="SRC", help="folder of the set, such as VisDrone2019-DET-val; for yolo also its data.yaml"
    )
    parser.add_argument("output", metavar="OUT.json", type=Path, help="the COCO file")
    parser.add_argument("--split", help="which split, such as train, where SRC has several")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json if it exists")
    arguments = parser.parse_args()

    from srtod.data.visdrone import find_visdrone, read_visdrone
    from srtod.data.yolo import find_yolo, read_yolo

    if arguments.output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{arguments.output} exists; choose another name, or pass --overwrite to replace it")
    if not Path(arguments.source).exists():
        raise FileNotFoundError(f"{arguments.source} does not exist; pass the folder of the set")
    if arguments.format == "visdrone":
        readers = {name: partial(read_visdrone, folder) for name, folder in find_visdrone(arguments.source).items()}
        expected = "images/ and annotations/*.txt, or folders such as VisDrone2019-DET-val with these"
    else:
        readers = {name: partial(read_yolo, file, name) for name, file in find_yolo(arguments.source).items()}
        expected = "data.yaml"
    if not readers:
        raise FileNotFoundError(f"{arguments.source} is no {arguments.format} set; looked for {expected}")
    split = arguments.split or next(iter(readers))
    if split not in readers or (arguments.split is None and len(readers) > 1):
        raise ValueError(f"{arguments.source} has the splits {', '.join(readers)}; choose one with --split")
    with replacing(arguments.output) as file:
        conversion = readers[split]()
        json.dump(conversion.content, file)
    print(conversion.summary())
    print(f"{arguments.output}: COCO annotations of {split}; its images are in {conversion.folder.resolve()}")


if __name__ == "__main__":
    run(main)
