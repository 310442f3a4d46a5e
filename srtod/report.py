"""Write a training run as one HTML page: curves, tables, pictures, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srtod._support.cli import run
from srtod._support.files import replacing
from srtod._support.options import Parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.report") -> None:
    parser = Parser(
        prog=prog,
        description="Write a training run as one HTML page, which holds all that it shows and can be mailed. The end "
        "of a training has written it already, as report/report.html.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder, such as runs/train")
    parser.add_argument("--output", metavar="OUT.html", type=Path, help="the page; by default RUN/report/report.html")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output if it exists")
    options = parser.parse_args(arguments)

    from srtod.engine.page import run_page
    from srtod.engine.report import PAGE, REPORT

    report = options.run / REPORT
    if not report.is_dir():
        known = "train it to the end (srtod train --resume RUN)" if (options.run / "config.yaml").is_file() else None
        raise FileNotFoundError(
            f"{options.run} has no report; {known or 'pass the folder of a training run, such as runs/train'}"
        )
    page = options.output or options.run / PAGE
    if options.output and page.exists() and not options.overwrite:
        raise FileExistsError(f"{page} exists; choose another name, or add --overwrite")
    html = run_page(options.run, report)
    with replacing(page) as file:
        file.write(html)
    print(page)


if __name__ == "__main__":
    run(main)
