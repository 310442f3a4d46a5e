"""`python -m srtod.predict CHECKPOINT IMAGES OUT`: finds objects in images and writes a folder of them."""

from __future__ import annotations

import argparse
import sys

from srtod._support.cli import run
from srtod._support.fields import number

PRECISIONS = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}


def main() -> None:
    arguments = _parser().parse_args()

    from srtod._support.errors import first_line, is_out_of_memory

    try:
        _predict(arguments)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = not isinstance(error, MemoryError) and "CPUAllocator" not in str(error)
        raise SystemExit(f"error: not enough memory ({first_line(error)}); {_cure(arguments, on_gpu)}") from None


def _predict(arguments: argparse.Namespace) -> None:
    import torch

    from srtod.data.coco import name_some
    from srtod.prediction import Predictor, find_images, predict_folder

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    images = find_images(arguments.images, arguments.coco, without=arguments.out)
    precision = PRECISIONS[arguments.precision]
    predictor = Predictor(
        arguments.checkpoint,
        arguments.device,
        batch_size=arguments.batch_size,
        autocast=None if precision is None else getattr(torch, precision),
        score_threshold=arguments.score_threshold,
        detections_per_image=arguments.detections_per_image,
    )
    if images.left_out:
        why = "are not images" if arguments.coco is None else f"are not in {arguments.coco}"
        print(f"left out {len(images.left_out)} files that {why}: {name_some(images.left_out)}", file=sys.stderr)
    predicted = predict_folder(
        predictor,
        images,
        arguments.out,
        pictures=arguments.pictures,
        figures=arguments.figures,
        score=arguments.score,
        skip_bad_images=arguments.skip_bad_images,
        overwrite=arguments.overwrite,
    )
    if predicted.skipped:
        names = ", ".join(predicted.skipped)
        print(f"skipped {len(predicted.skipped)} images that cannot be decoded: {names}", file=sys.stderr)
    print(f"{arguments.out}: {predicted.detections} detections in {predicted.images} images")


def _cure(arguments: argparse.Namespace, on_gpu: bool) -> str:
    """What to do where memory ran out. The size at which the detector looks at images is the training run's."""
    cures = []
    if arguments.batch_size > 1:
        cures.append(f"lower --batch-size {arguments.batch_size}")
    if arguments.precision == "32-true":
        cures.append("pass --precision bf16-mixed")
    if arguments.figures:
        cures.append("leave out --figures")
    if on_gpu:
        cures.append("pass --device cpu")
    cures.append("cut the images into smaller ones (of no use if the training run set min_size)")
    return " or ".join([", ".join(cures[:-1]), cures[-1]] if cures[:-1] else cures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srtod.predict",
        description="Find objects in images. Writes a folder with detections.json (COCO results), images.json (what "
        "its ids stand for) and pictures; it is there when all of it is done. Defaults are in brackets.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt file of `python -m srtod.train`")
    parser.add_argument("images", metavar="IMAGES", help="an image, or a folder, searched with its subfolders")
    parser.add_argument("out", metavar="OUT", help="the folder to write: a new or an empty one")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it holds predictions")
    parser.add_argument(
        "--coco",
        metavar="GT.json",
        help="take the images that this COCO file lists, with its ids, so that `python -m srtod.evaluate GT.json "
        "OUT/detections.json` works; without it images are numbered from 1 in the order of their names",
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
        "--score", metavar="X", type=number, default=0.5, help="detections are drawn from this score on [0.5]"
    )
    parser.add_argument(
        "--score-threshold", metavar="X", type=number, help="detections must score above this [as trained]"
    )
    parser.add_argument(
        "--detections-per-image", metavar="N", type=int, help="the most detections an image [as trained]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=1, help="the most images at once, if they have one size [1]"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="floating-point precision of the network [32-true]"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads [all cores]")
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="leave out images that cannot be decoded, instead of stopping"
    )
    return parser


if __name__ == "__main__":
    run(main)
