"""Prints how far a trained detector's filter and detections depend on how they are computed, as Markdown.

    python scripts/filter_precision.py runs/sirst_v2/checkpoints/best.ckpt sirst_v2/images --coco sirst_v2/test.json
    python scripts/filter_precision.py runs/x/checkpoints/best.ckpt photos/ --device cuda --every 5

The yardstick is the full path in float32 and contiguous memory: the whole image is reconstructed and compared, as
`Detector.reconstruct` does, and the map is resized to the filter. Against it stand the pruned path of inference
(`SelfReconstruction.enhance`), which makes the map's samples alone, in float32, in channels_last and in bfloat16: the
enhancement alone, on the yardstick's P2 in float32, and the whole detector, whose P2 differs too.

Images go through the detector one by one. Padding does not count. A pixel of the filter is flipped if it passes where
the yardstick's does not, or the other way round; how far the yardstick's D lies from the threshold t there is said
beside. A detection is changed if the other run has none of its class that overlaps it by an IoU of more than 0.9; those
of both runs count.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

import srtod
from srtod.data import read_image
from srtod.info import environment
from srtod.models import Detector, SelfReconstruction
from srtod.models.checkpoint import load_detector
from srtod.prediction import find_images

PARTNERS = 0.9  # IoU above which detections of two runs are the same


class Way(NamedTuple):
    """A way to compute a detector's results."""

    name: str
    full: bool = False
    channels_last: bool = False
    half_enhancement: bool = False
    half: bool = False


YARDSTICK = Way("full path, float32", full=True)
WAYS = (
    Way("float32"),
    Way("float32, channels_last", channels_last=True),
    Way("bfloat16 enhancement, P2 in float32", half_enhancement=True),
    Way("bfloat16 detector", half=True),
    Way("bfloat16 detector, channels_last", half=True, channels_last=True),
)


class Result(NamedTuple):
    """What a detector makes of an image, without its padding.

    Attributes:
        difference: the difference map where the filter looks at it, `[h, w]`, float32.
        passes: whether the filter's pixels are above 1, `[h, w]`.
        detections: see `Detector`.
    """

    difference: Tensor
    passes: Tensor
    detections: dict[str, Tensor]


class Tally:
    """What one way was found to differ by from the yardstick, over all images."""

    def __init__(self) -> None:
        self.pixels = self.passing = self.flipped = self.detections = self.changed = 0
        self.largest = self.total = self.farthest = 0.0

    def add(self, result: Result, yardstick: Result, threshold: float) -> None:
        error = (result.difference - yardstick.difference).abs()
        flipped = result.passes != yardstick.passes
        self.pixels += flipped.numel()
        self.passing += int(result.passes.sum())
        self.flipped += int(flipped.sum())
        self.largest = max(self.largest, float(error.max()))
        self.total += float(error.double().sum())
        if flipped.any():
            self.farthest = max(self.farthest, float((yardstick.difference - threshold)[flipped].abs().max()))
        for one, other in ((result.detections, yardstick.detections), (yardstick.detections, result.detections)):
            self.detections += len(one["boxes"])
            self.changed += without_partner(one, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint of python -m srtod.train with self-reconstruction")
    parser.add_argument("images", help="a folder of images, or an image")
    parser.add_argument("--coco", help="a COCO file: only the images that it lists, such as a test set's")
    parser.add_argument("--every", type=int, default=1, help="only every so many of the images [1]")
    parser.add_argument("--score", type=float, default=0.05, help="detections must score above this [0.05]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="threads of the CPU; default: PyTorch's choice")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    trained = load_detector(options.checkpoint, options.device, score_threshold=options.score)
    detector = trained.detector
    plug = detector.self_reconstruction
    if (
        plug is None
        or plug.threshold is None
        or plug.enhancer.resize != "nearest"
        or plug.options.difference != "pixel"
    ):
        parser.error(f"{options.checkpoint} must have a threshold, resize nearest and difference pixel, to be pruned")
    found = find_images(options.images, options.coco)
    paths = [found.folder / entry["file_name"] for entry in found.entries[:: options.every]]
    pictures = (read_image(path, trained.intensity_range) for path in tqdm(paths, unit="image"))
    tallies = compare(detector, pictures, options.device)
    print("\n".join(_header(options, len(paths), 255 * plug.threshold.item(), tallies[YARDSTICK])))
    for way in WAYS:
        print(_row(way, tallies[way]))


@torch.no_grad()
def compare(detector: Detector, images: Iterable[Tensor], device: str) -> dict[Way, Tally]:
    """Looks at images `[3, H, W]` in every way."""
    # The yardstick is of float32 alone.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    detectors = {False: detector, True: copy.deepcopy(detector).to(memory_format=torch.channels_last)}
    threshold = detector.self_reconstruction.threshold.item()
    tallies = {way: Tally() for way in (YARDSTICK, *WAYS)}
    for image in images:
        results = {way: run(detectors[way.channels_last], image.to(device), way) for way in tallies}
        for way, tally in tallies.items():
            tally.add(results[way], results[YARDSTICK], threshold)
    return tallies


def run(detector: Detector, image: Tensor, way: Way) -> Result:
    """One image `[3, H, W]` through a detector."""
    plug = detector.self_reconstruction
    seen: dict[str, Any] = {}

    def note_size(transform: Any, arguments: Any, result: Any) -> None:
        [seen["size"]] = result[0].image_sizes

    def note_difference(enhancer: Any, arguments: tuple[Tensor, Tensor], enhanced: Tensor) -> None:
        seen["difference"], seen["cells"] = arguments[1], enhanced.shape[-2:]

    hooks = [detector.transform.register_forward_hook(note_size), plug.enhancer.register_forward_hook(note_difference)]
    try:
        with enhancing(plug, way), _half(way.half, image.device):
            [detections] = detector([image])
    finally:
        for hook in hooks:
            hook.remove()
    scale = plug.scale
    height, width = (-(-side // scale) for side in seen["size"])
    difference = seen["difference"].float()
    passes = plug.filter(difference, tuple(seen["cells"])) > 1
    sampled = F.interpolate(difference, seen["cells"], mode="nearest")
    return Result(sampled[0, 0, :height, :width], passes[0, 0, :height, :width], detections)


@contextmanager
def enhancing(plug: SelfReconstruction, way: Way) -> Iterator[None]:
    """Exchanges how inference enhances the features."""
    pruned: Callable[..., Tensor] = plug.enhance

    def enhance(*arguments: Any) -> Tensor:
        with _half(way.half or way.half_enhancement, arguments[0].device):
            return plug(*arguments)[0] if way.full else pruned(*arguments)

    plug.enhance = enhance
    try:
        yield
    finally:
        del plug.enhance  # and the class's is back


def _half(enabled: bool, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def without_partner(one: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    """How many of the detections of one run have none of their class at their place in the other."""
    same = box_iou(one["boxes"], other["boxes"]) > PARTNERS
    same &= one["labels"][:, None] == other["labels"]
    return int((~same.any(dim=1)).sum())


def _header(options: argparse.Namespace, count: int, threshold: float, yardstick: Tally) -> list[str]:
    cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else environment()["processor"].split(",")[0]
    heads = [
        "computed in",
        "flipped pixels",
        "of those, farthest D from t",
        "largest error of D",
        "mean error of D",
        "changed detections",
    ]
    conditions = (
        f"{count} images, {yardstick.pixels} pixels of the filter, of which {yardstick.passing / yardstick.pixels:.1%} "
        f"pass; t = {threshold:.2f}; D, t and errors in grey levels (1/255). {device}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, srtod {srtod.__version__}."
    )
    return [conditions, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _row(way: Way, tally: Tally) -> str:
    cells = [
        way.name,
        f"{tally.flipped} ({_share(tally.flipped, tally.pixels)})",
        f"{255 * tally.farthest:.2g}" if tally.flipped else "-",
        f"{255 * tally.largest:.2g}",
        f"{255 * tally.total / tally.pixels:.2g}",
        f"{tally.changed} of {tally.detections} ({_share(tally.changed, tally.detections)})",
    ]
    return f"| {' | '.join(cells)} |"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g} %"


if __name__ == "__main__":
    main()
