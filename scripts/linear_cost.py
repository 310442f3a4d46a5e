"""Shows that the cost is linear in an image's pixels: time per pixel of each op and of whole models, over the size.

    python scripts/linear_cost.py --out docs/linear_cost.png
    python scripts/linear_cost.py --device cuda --largest-training 2160x3840 --out linear_cost_cuda.png
    python scripts/linear_cost.py --parts ops --sizes 512x512 800x800 1088x1920      # minutes

Prints the time per pixel, relative to the first size's, as a table in Markdown, and draws it. The aim is 1.2 at most.

Float32, batch 1. P2 has 256 channels at stride 4, channels_last. The detector is Faster R-CNN on ResNet-50; its region
head costs the same at every size, as the number of proposals is.

A round goes through all sizes, each called up to `--repeats` times, of which the median counts, and no more pixels than
the largest has; of all rounds the fastest counts. So noise falls on all sizes alike. Before each call a buffer larger
than the caches is overwritten: otherwise the small sizes alone would find their inputs there. Outputs that fit into a
cache are still quicker to write, and outputs of small sizes reuse memory where large ones get new pages. How much that
is shows a plain copy of P2, `p2.clone()`, which nobody doubts is linear: compare the ops with its line.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from srtod import ops
from srtod.models import SelfReconstruction

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_detectors import random_detector, random_images
from measurement import commit, device_clock, device_name

SIZES = ["512x512", "800x800", "1280x736", "1088x1920", "1440x2560", "2160x3840"]
PARTS = ["ops", "self_reconstruction", "detector"]
COPY = "copy of P2"
LIMIT = 1.2
INK, GRID, GREY = "#24292f", "#d8dde3", "#8b949e"
COLOURS = ("#2f6fb0", "#e07b39", "#3d9a50", "#b04a9c", "#7a5c3e", "#c9a227", "#2aa5ab", "#8b1e3f")

Run = Callable[[], Any]


class Workload(NamedTuple):
    """What is measured at every size."""

    panel: str  # of the picture
    name: str
    prepare: Callable[[str], Run]  # given a size "HxW", what to time
    sizes: list[str]
    rounds: int


class Inputs:
    """Inputs of the ops for an image of `size` "HxW", by the names of their parameters."""

    def __init__(self, size: str, options: argparse.Namespace) -> None:
        height, width = map(int, size.split("x"))
        level = (-(-height // 4), -(-width // 4))
        device = options.device

        def normal(*shape: int) -> Tensor:
            return torch.empty((1, *shape), device=device, memory_format=torch.channels_last).normal_()

        module = ops.DGFE(options.channels).to(device)
        self.leaves = {  # which get gradients
            "features": normal(options.channels, *level),
            "reconstruction": normal(3, height, width),
            "threshold": module.threshold,
            "weight1": module.fc1.weight,
            "bias1": module.fc1.bias,
            "weight2": module.fc2.weight,
            "bias2": module.fc2.bias,
        }
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self.all: dict[str, Any] = self.leaves | {
            "image": torch.rand((1, 3, height, width), device=device),
            "difference": torch.rand((1, 1, height, width), device=device) / 10,
            "size": level,
            "from_logits": True,
        }

    def call(self, op: Callable[..., Any]) -> Any:
        return op(**{name: self.all[name] for name in inspect.signature(op).parameters if name in self.all})

    @property
    def p2(self) -> Tensor:
        return self.leaves["features"]

    @property
    def image(self) -> Tensor:
        image: Tensor = self.all["image"]
        return image


def copy_of_p2(features: Tensor) -> Tensor:
    return features.clone()


OPS: dict[str, Callable[..., Any]] = {COPY: copy_of_p2} | {
    name: getattr(ops, name)
    for name in ops.__all__
    if hasattr(ops.reference, name) and name != "high_frequency_difference_map"  # a Fourier transform is not linear
}


def op_workloads(options: argparse.Namespace) -> Iterator[Workload]:
    def forward(op: Callable[..., Any], size: str) -> Run:
        inputs = Inputs(size, options)
        return torch.no_grad()(lambda: inputs.call(op))

    def both(op: Callable[..., Any], size: str) -> Run:
        inputs = Inputs(size, options)
        grads: list[Tensor] = []

        def run() -> None:
            outputs = inputs.call(op)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if not grads:  # once, before anything is timed
                grads.extend(map(torch.ones_like, outputs))
            torch.autograd.backward(outputs, grads)
            for leaf in inputs.leaves.values():
                leaf.grad = None

        return run

    for name, op in OPS.items():
        yield Workload("ops, forward", name, functools.partial(forward, op), options.sizes, options.rounds)
    for name, op in OPS.items():
        prepare = functools.partial(forward if name == COPY else both, op)
        yield Workload("ops, forward + backward", name, prepare, options.sizes, options.rounds)


def self_reconstruction_workloads(options: argparse.Namespace) -> Iterator[Workload]:
    module = SelfReconstruction(options.channels, enhancement="dgfe").to(options.device)

    def inference(size: str) -> Run:
        inputs = Inputs(size, options)
        return torch.no_grad()(lambda: module.enhance(inputs.p2, inputs.image))

    def training(size: str) -> Run:
        inputs = Inputs(size, options)
        grad = torch.ones_like(inputs.p2)

        def run() -> None:
            inputs.p2.grad = None
            enhanced, output = module(inputs.p2, inputs.image)
            torch.autograd.backward((output.loss, enhanced), (None, grad))

        return run

    yield from _model_workloads("self-reconstruction", inference, training, options)


def detector_workloads(options: argparse.Namespace) -> Iterator[Workload]:
    for with_it in (False, True):
        detector = random_detector("faster_rcnn", self_reconstruction=with_it, enhancement="dgfe").to(options.device)
        yield from _model_workloads(
            f"Faster R-CNN{' with SR-TOD' if with_it else ''}",
            functools.partial(_detect, detector, options.device),
            functools.partial(_train, detector, options.device),
            options,
        )


def _detect(detector: torch.nn.Module, device: str, size: str) -> Run:
    images = [image.to(device) for image in random_images(1, size)[0]]
    detector.eval()
    return torch.no_grad()(lambda: detector(images))


def _train(detector: torch.nn.Module, device: str, size: str) -> Run:
    images, targets = random_images(1, size)
    images = [image.to(device) for image in images]
    targets = [{name: values.to(device) for name, values in target.items()} for target in targets]
    detector.train()

    def run() -> None:
        detector.zero_grad()
        torch.stack(list(detector(images, targets).values())).sum().backward()

    return run


def _model_workloads(
    name: str, inference: Callable[[str], Run], training: Callable[[str], Run], options: argparse.Namespace
) -> Iterator[Workload]:
    largest = _pixels(options.largest_training)
    fitting = [size for size in options.sizes if _pixels(size) <= largest]
    yield Workload("models, inference", name, inference, options.sizes, options.model_rounds)
    yield Workload("models, training", name, training, fitting, options.model_rounds)


WORKLOADS = dict(zip(PARTS, (op_workloads, self_reconstruction_workloads, detector_workloads), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="PNG to draw into; default: none")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW", help=f"[{' '.join(SIZES)}]")
    parser.add_argument(
        "--largest-training", default="1440x2560", metavar="HxW", help="largest training of a model [1440x2560]"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help=f"[{' '.join(PARTS)}]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the ops [5]")
    parser.add_argument("--model-rounds", type=int, default=2, help="rounds of the models [2]")
    parser.add_argument("--repeats", type=int, default=3, help="most calls of a size in a round [3]")
    parser.add_argument("--channels", type=int, default=256, help="channels of P2 but for the detector's [256]")
    parser.add_argument("--threads", type=int, help="threads of the CPU; default: PyTorch's choice")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print("\n".join(_header(options)), flush=True)
    curves: dict[str, dict[str, dict[str, float]]] = {}  # of panels, of names, of sizes
    for part in options.parts:
        for workload in WORKLOADS[part](options):
            curve = measure(workload, options)
            curves.setdefault(workload.panel, {})[workload.name] = curve
            print(_row(workload, curve, options.sizes), flush=True)
    if options.out is not None:
        save(draw(curves, options.sizes), options.out)


def measure(workload: Workload, options: argparse.Namespace) -> dict[str, float]:
    """Nanoseconds per pixel of each size."""
    torch.manual_seed(0)
    runs = {size: workload.prepare(size) for size in workload.sizes}
    for run in runs.values():
        run()  # warms up
    most = max(map(_pixels, runs))
    fastest: dict[str, float] = {}
    for _ in range(workload.rounds):
        for size, run in runs.items():
            repeats = min(options.repeats, most // _pixels(size))
            seconds = statistics.median(_time(run, options.device) for _ in range(repeats))
            fastest[size] = min(fastest.get(size, seconds), seconds)
    return {size: 1e9 * seconds / _pixels(size) for size, seconds in fastest.items()}


def _time(run: Run, device: str) -> float:
    """Seconds that `run()` takes with cold caches."""
    if device == "cuda":
        return device_clock.time(run)
    _buffer().fill_(1).sum()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@functools.cache
def _buffer() -> Tensor:
    return torch.empty(2**26)  # 256 MiB


def _pixels(size: str) -> int:
    height, width = map(int, size.split("x"))
    return height * width


def _header(options: argparse.Namespace) -> list[str]:
    device = device_name(options.device) + (f", {torch.get_num_threads()} threads" if options.device == "cpu" else "")
    conditions = (
        f"{device}; torch {torch.__version__}, commit {commit()}; fastest of {options.rounds} rounds for ops, "
        f"{options.model_rounds} for models. Time per pixel, as a multiple of that at {options.sizes[0]}."
    )
    heads = ["", "", f"{options.sizes[0]}, ns per pixel", *options.sizes[1:]]
    return [conditions, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _row(workload: Workload, curve: dict[str, float], sizes: list[str]) -> str:
    first = curve[sizes[0]]
    ratios = [f"{curve[size] / first:.2f}" if size in curve else "-" for size in sizes[1:]]
    return f"| {' | '.join([workload.panel, workload.name, f'{first:.2f}', *ratios])} |"


def draw(curves: dict[str, dict[str, dict[str, float]]], sizes: list[str]) -> Figure:
    """A panel for each group, over the pixels on a logarithmic axis; the copy is a dashed line."""
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)  # inches
    figure = Figure(figsize=(4.4 * columns, 4.6 * rows), dpi=100, layout=layout)
    panels = figure.subplots(rows, columns, sharey="row", squeeze=False)
    for axes, (title, of_names) in zip(panels.flat, curves.items(), strict=False):
        _draw_panel(axes, title, of_names, sizes)
    for axes in panels.flat[len(curves) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylim(0, max(2, axes.get_ylim()[1]))
        axes.set_ylabel(f"time per pixel / that at {sizes[0]}", color=INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 64 colours, which its lines have enough of: a third of the size."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        Image.open(buffer).convert("RGB").quantize(64).save(path, format="png", optimize=True)


def _draw_panel(axes: Axes, title: str, curves: dict[str, dict[str, float]], sizes: list[str]) -> None:
    axes.set_title(title, color=INK, fontweight="bold")
    axes.axhline(LIMIT, color=INK, linewidth=0.8, linestyle=":")
    colours = iter(COLOURS)
    for name, curve in curves.items():
        is_copy = name == COPY
        ratios = [ns / curve[sizes[0]] for ns in curve.values()]
        style: dict[str, Any] = (
            {"color": GREY, "linestyle": "--"} if is_copy else {"color": next(colours), "marker": "o"}
        )
        axes.plot([_pixels(size) for size in curve], ratios, linewidth=1.6, markersize=3.5, label=name, **style)
    axes.set_xscale("log")
    axes.set_xticks([_pixels(size) for size in sizes], sizes, rotation=45, ha="right")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize="small", length=0)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24), "ncols": 2}  # no line runs there
    axes.legend(**below, fontsize="x-small", frameon=False, labelcolor=INK)


if __name__ == "__main__":
    main()
