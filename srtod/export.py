"""Write a trained detector as an ONNX file, or as a package of compiled code for C++."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srtod._support.cli import run
from srtod._support.fields import number
from srtod._support.options import Parser

NEAR = {
    "--conf": ["--score-threshold"],
    "--conf-thres": ["--score-threshold"],
    "--max-det": ["--detections-per-image"],
    "--exist-ok": ["--overwrite"],
}
"""Options of other tools, and what each is called here."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.export") -> None:
    parser = Parser(
        prog=prog,
        description="Write a trained detector as a file that other programs run. OUT.onnx has ONNX's standard "
        "operators alone; OUT.pt2 is compiled by AOTInductor for this kind of CPU, with srtod's fused ops. The file is "
        "there once it has found on pictures of two sizes what PyTorch finds. Defaults are in brackets.",
        near=NEAR,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt file of `srtod train`")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write, OUT.onnx or OUT.pt2")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--score-threshold", metavar="X", type=number, help="detections must score above this [as trained]"
    )
    parser.add_argument(
        "--detections-per-image", metavar="N", type=int, help="the most detections an image [as trained]"
    )
    options = parser.parse_args(arguments)

    from srtod.prediction.export import export_detector

    exported = export_detector(
        options.checkpoint,
        options.out,
        overwrite=options.overwrite,
        score_threshold=options.score_threshold,
        detections_per_image=options.detections_per_image,
    )
    metadata = exported.metadata
    made_for = f"ONNX opset {metadata['opset']}" if "opset" in metadata else f"torch {metadata['torch']}"
    print(f"{exported.path}: {metadata['detector']}, {made_for}; {exported.agreement}")


if __name__ == "__main__":
    run(main)
