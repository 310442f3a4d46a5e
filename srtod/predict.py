"""Find objects in images or videos, and write a folder of detections and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from srtod._support.cli import run
from srtod._support.fields import number
from srtod._support.options import Parser

if TYPE_CHECKING:
    from srtod.prediction import Predictor

PRECISIONS = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}
NEAR = {
    "--conf": ["--score-threshold"],
    "--conf-thres": ["--score-threshold"],
    "--max-det": ["--detections-per-image"],
    "--half": ["--precision"],
    "--show": ["--pictures"],
    "--exist-ok": ["--overwrite"],
    "--agnostic-nms": ["--class-agnostic-nms"],
    "--tile": ["--slice"],
    "--vid-stride": ["--every"],
}
"""Options of other tools, and what each is called here."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m srtod.predict") -> None:
    options = _parser(prog).parse_args(arguments)

    from srtod._support.errors import first_line, is_out_of_memory

    try:
        _predict(options)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = not isinstance(error, MemoryError) and "CPUAllocator" not in str(error)
        raise SystemExit(f"error: not enough memory ({first_line(error)}); {_cure(options, on_gpu)}") from None


def _predict(options: argparse.Namespace) -> None:
    import torch

    from srtod.prediction import Predictor, Slicing, is_video

    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.score is not None and not 0 <= options.score <= 1:
        raise ValueError(f"--score must be from 0 to 1, got {options.score:g}")
    if options.overlap is not None and options.slice is None:
        raise ValueError("--overlap is that of tiles; add --slice SIZE, or leave it out")
    precision = PRECISIONS[options.precision]
    tiles = {} if options.overlap is None else {"overlap": options.overlap}
    load = partial(
        Predictor,
        options.checkpoint,
        options.device,
        batch_size=options.batch_size,
        autocast=None if precision is None else getattr(torch, precision),
        score_threshold=options.score_threshold,
        detections_per_image=options.detections_per_image,
        slicing=None if options.slice is None else Slicing(options.slice, **tiles),
        class_agnostic_nms=options.class_agnostic_nms,
    )
    (_predict_video if any(map(is_video, options.sources)) else _predict_images)(options, load)


def _predict_images(options: argparse.Namespace, load: Callable[[], Predictor]) -> None:
    from PIL.Image import DecompressionBombError

    from srtod.data.coco import name_some
    from srtod.data.image import ImageError
    from srtod.prediction import find_images, predict_folder

    if options.every is not None:
        raise ValueError("--every is for videos, cameras and streams; leave it out")
    images = find_images(options.sources, options.coco, without=options.out, allow_outside=options.allow_outside)
    predictor = load()
    if images.left_out:
        why = "are not images" if options.coco is None else f"are not in {options.coco}"
        print(f"left out {len(images.left_out)} files that {why}: {name_some(images.left_out)}", file=sys.stderr)
    try:
        predicted = predict_folder(
            predictor,
            images,
            options.out,
            pictures=options.pictures,
            figures=options.figures,
            score=options.score,
            skip_bad_images=options.skip_bad_images,
            overwrite=options.overwrite,
        )
    except ImageError as error:
        if _is_caused_by(error, DecompressionBombError):
            raise ValueError(f"{error.__cause__}, and look at these with --slice 640") from error
        raise
    if predicted.skipped:
        names = ", ".join(predicted.skipped)
        print(f"skipped {len(predicted.skipped)} images that cannot be decoded: {names}", file=sys.stderr)
    print(f"{options.out}: {predicted.detections} detections in {predicted.images} images")


def _predict_video(options: argparse.Namespace, load: Callable[[], Predictor]) -> None:
    from srtod.prediction import Video, predict_video

    if len(options.sources) > 1:
        raise ValueError("a video, camera or stream must be the only source; run the command once for each")
    for option, value in {"--coco": options.coco, "--figures": options.figures}.items():
        if value:
            raise ValueError(f"{option} is for images; leave it out")
    every = 1 if options.every is None else options.every
    if every < 1:
        raise ValueError(f"--every must be at least 1, got {every}")
    with Video(options.sources[0], every=every) as video:
        predicted = predict_video(
            load(), video, options.out, pictures=options.pictures, score=options.score, overwrite=options.overwrite
        )
    if video.damaged:
        print(f"left out {video.damaged} damaged packets of {video.name}", file=sys.stderr)
    if video.lost:
        print(f"{video.lost}; what was found until then is kept", file=sys.stderr)
    print(f"{options.out}: {predicted.detections} detections in {predicted.images} frames")


def _is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error is not None


def _cure(options: argparse.Namespace, on_gpu: bool) -> str:
    """What to do where memory ran out. The size at which the detector looks at images is the training run's."""
    cures = []
    if options.batch_size > 1:
        cures.append(f"lower --batch-size {options.batch_size}")
    if options.precision == "32-true":
        cures.append("pass --precision bf16-mixed")
    if options.figures:
        cures.append("leave out --figures")
    if on_gpu:
        cures.append("pass --device cpu")
    if options.slice is None:
        cures.append("pass --slice 640")
    elif options.slice == "auto" or options.slice > 64:
        cures.append(f"lower --slice {options.slice}")
    return " or ".join([", ".join(cures[:-1]), cures[-1]] if cures[:-1] else cures)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Find objects in images or a video. Writes a folder with detections.json (COCO results), "
        "images.json (what its ids stand for) and pictures, or of a video detections.csv and video.mp4; it is there "
        "when all of it is done. Ctrl-C keeps the frames of a video until then. Defaults are in brackets.",
        near=NEAR,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .ckpt file of `srtod train`, or hf://OWNER/NAME[@REVISION][/FILE]"
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="an image, a folder, searched with its subfolders, a quoted pattern such as 'photos/*.jpg', a list.txt of "
        "paths; or one video file, camera such as 0, or stream such as rtsp://...",
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write: a new or an empty one")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it holds predictions")
    parser.add_argument(
        "--coco",
        metavar="GT.json",
        help="take the images that this COCO file lists, with its ids, so that `srtod evaluate GT.json "
        "OUT/detections.json` works; without it images are numbered from 1 in the order of their names; "
        "where GT.json has annotations, pictures tell hits, false alarms and missed objects apart",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="take images that GT.json names outside of the folder, such as ../a.png or /data/a.png, if you trust it",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="also draw each image's reconstruction, difference map, filter, and P2 before and after enhancement",
    )
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="draw the detections [True]"
    )
    parser.add_argument(
        "--score",
        metavar="X",
        type=number,
        help="detections are drawn from this score on; detections.json has them all [that of the best F1 in the "
        "training run's evaluation, which the checkpoint holds; 0.5 for older checkpoints]",
    )
    parser.add_argument(
        "--score-threshold", metavar="X", type=number, help="detections must score above this [as trained]"
    )
    parser.add_argument(
        "--detections-per-image", metavar="N", type=int, help="the most detections an image [as trained]"
    )
    parser.add_argument(
        "--slice",
        metavar="SIZE",
        type=_tile,
        help="look at larger images tile by tile, each SIZE x SIZE pixels; auto: of the training images' size",
    )
    parser.add_argument(
        "--overlap", metavar="X", type=number, help="share of a tile that its neighbours see too, with --slice [0.2]"
    )
    parser.add_argument(
        "--class-agnostic-nms",
        action="store_true",
        help="report an object once, as its best class: of boxes that overlap by over half of the smaller, one stays",
    )
    parser.add_argument("--every", metavar="N", type=int, help="look at each N-th frame of a video [1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=1, help="the most images at once, if they have one size [1]"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="32-true",
        help="floating-point precision of the network; on a CPU bf16-mixed needs its instructions to be fast [32-true]",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads [all cores]")
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="leave out images that cannot be decoded, instead of stopping"
    )
    return parser


def _tile(text: str) -> int | str:
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    run(main)
