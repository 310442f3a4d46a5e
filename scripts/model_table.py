"""Prints the table of docs/models.md: parameters, GMAC, time and peak memory of every detector, as Markdown.

    python scripts/model_table.py                       # on the CPU: 800x800, ResNet-50, 256 channels; minutes
    python scripts/model_table.py --device cuda
    python scripts/model_table.py --size 128 --channels 64 --backbone resnet18      # a quick look

One image, inference from the image to its detections, float32, random weights. Each row runs in a process of its own,
so that its memory is its own.

GMAC are multiplications with addition, half of what PyTorch's `FlopCounterMode` counts: convolutions (transposed ones
too, so the reconstruction head is in), matrix products, and here deformable convolutions (without their bilinear
sampling). RoI align, NMS, norms, pointwise functions and the fused ops of `srtod.ops` (of DGFE: 2 * 2 * C * C/16
multiplications an image) are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import srtod
from srtod import ops
from srtod.info import environment
from srtod.models import DETECTORS, Detector, build_detector

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measurement import commit, resident_bytes

VARIANTS: dict[str, dict[str, Any]] = {"detectors": {"sac": False}}
"""A second row of a detector, with these options."""


class Row(NamedTuple):
    """One detector's numbers."""

    parameters: int
    macs: int
    reconstruction_macs: int
    seconds: float
    peak_bytes: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=800, help="side of the image, in pixels [800]")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--channels", type=int, default=256, help="channels of the pyramid [256]")
    parser.add_argument("--threads", type=int, default=None, help="threads of the CPU; default: PyTorch's choice")
    parser.add_argument("--repeats", type=int, default=3, help="timed inferences, after one to warm up [3]")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    options = parser.parse_args()
    print("\n".join(_header(options)), flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name in options.detectors:
            for variant in ({}, *([VARIANTS[name]] if name in VARIANTS else [])):
                plain, enhanced = (pool.apply(measure, (name, variant, with_it, options)) for with_it in (False, True))
                print("\n".join(_lines(name, variant, plain, enhanced)), flush=True)


def measure(name: str, variant: dict[str, Any], self_reconstruction: bool, options: argparse.Namespace) -> Row:
    """Builds a detector and measures it; to be called in a fresh process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    resident = resident_bytes("VmRSS")
    detector = build_detector(
        name,
        9,  # AI-TOD's eight classes
        self_reconstruction=self_reconstruction,
        enhancement="dgfe",
        backbone=options.backbone,
        norm="frozen_batch",
        channels=options.channels,
        min_size=None,
        max_size=None,
        **variant,
    )
    detector.eval().to(options.device)
    images = [torch.rand(3, options.size, options.size, device=options.device)]
    with torch.no_grad():
        seconds = _median_time(lambda: detector(images), options)
        if options.device == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated()
        else:
            highest = resident_bytes("VmHWM")
            peak = None if highest is None or resident is None else highest - resident
        macs, reconstruction_macs = count_macs(detector, images)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return Row(parameters, macs, reconstruction_macs, seconds, peak)


def count_macs(detector: Detector, images: list[torch.Tensor]) -> tuple[int, int]:
    """Multiplications with addition of one inference: all, and those of self-reconstruction."""
    deformable = {torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops}
    of_all, of_reconstruction = (FlopCounterMode(display=False, custom_mapping=deformable) for _ in range(2))
    plug = detector.self_reconstruction

    def enhance(*args: Any) -> torch.Tensor:
        assert plug is not None
        with of_reconstruction:
            return type(plug).enhance(plug, *args)

    with ops.use_reference(), of_all, torch.no_grad(), contextlib.ExitStack() as stack:  # what runs is PyTorch's alone
        if plug is not None:
            stack.enter_context(mock.patch.object(plug, "enhance", enhance))
        detector(images)
    return of_all.get_total_flops() // 2, of_reconstruction.get_total_flops() // 2


def _deform_conv2d_flops(
    input_shape: list[int], weight_shape: list[int], *args: Any, out_shape: list[int], **kwargs: Any
) -> int:
    """Those of the convolution: each output value is a sum over the kernel of one group's channels."""
    output = 1
    for side in out_shape:
        output *= side
    _, channels, height, width = weight_shape
    return 2 * output * channels * height * width


def _median_time(infer: Callable[[], Any], options: argparse.Namespace) -> float:
    """Median time of an inference in seconds, after one that is not counted."""
    times = []
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        infer()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _header(options: argparse.Namespace) -> list[str]:
    threads = options.threads or torch.get_num_threads()
    device = torch.cuda.get_device_name() if options.device == "cuda" else environment()["processor"].split(",")[0]
    device += f", {threads} threads" if options.device == "cpu" else ""
    memory = "allocated on the GPU" if options.device == "cuda" else "resident beyond the empty program"
    conditions = (
        f"{options.backbone}, {options.channels} channels, one {options.size}x{options.size} image, float32; {device}; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, srtod {srtod.__version__} ({commit()}). "
        f"Time: median of {options.repeats}; memory: the most {memory}, weights included."
    )
    heads = ["detector", "SR-TOD", "parameters (M)", "GMAC", "time (ms)", "peak memory (MB)"]
    return [conditions, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _lines(name: str, variant: dict[str, Any], plain: Row, enhanced: Row) -> list[str]:
    title = ", ".join([f"`{name}`", *(f"`{option}={value}`" for option, value in variant.items())])
    lines = []
    for with_it, row in (("no", plain), ("yes", enhanced)):
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        of_it = f" ({row.reconstruction_macs / 1e9:.1f} of them SR-TOD's)" if row.reconstruction_macs else ""
        macs = f"{row.macs / 1e9:.1f}{of_it}"
        lines.append(
            f"| {title} | {with_it} | {row.parameters / 1e6:.2f} | {macs} | {1000 * row.seconds:.0f} | {peak} |"
        )
    return lines


if __name__ == "__main__":
    main()
