"""Calls every op on the GPU once in each small variant, forward and backward, for compute-sanitizer to watch.

compute-sanitizer --tool memcheck python scripts/sanitize_ops.py --seconds 500

Cases go from small to large. Where time is over those that are left do not run, and the script says how many.

All inputs are made on the CPU and copied: so nearly all kernels that run are srtod's, and initcheck, which learns of a
value being written from the copy, has no reason to complain about PyTorch's generators.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from srtod import ops

# [N, C, h, w] of the features and [H, W] of the images, from small to large: one pixel, upsampling, rows that no vector
# access divides, more channels than threads of a block, a map of several blocks, and one of more parts than one block
# combines.
SIZES = [
    ((1, 1, 1, 1), (1, 1)),
    ((1, 3, 9, 10), (4, 3)),
    ((2, 7, 9, 13), (37, 50)),
    ((1, 272, 6, 7), (24, 28)),
    ((2, 16, 61, 67), (244, 268)),
    ((1, 2, 270, 280), (27, 28)),
]
ALL_RESIZES = SIZES[2]
OPS = [
    name
    for name in ops.__all__
    if hasattr(ops.reference, name.rstrip("_")) and name != "high_frequency_difference_map"  # has no kernel of srtod
]
FORMATS = [torch.contiguous_format, torch.channels_last]
LAUNCHES = {"dgfe": ("0", "1"), "dgfe_": ("0", "1")}  # values of SRTOD_COOPERATIVE; other ops have one form


def leaf(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """On the GPU by a plain copy, which keeps the memory format."""
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory_format)
    return x.to("cuda").requires_grad_()


def run(op: Callable[..., Any], tensors: dict[str, Tensor], options: dict[str, Any]) -> None:
    """Forward and backward; the gradients of all outputs are copied from the CPU as well."""
    results = op(**tensors, **options)
    outputs = results if isinstance(results, tuple) else (results,)
    if outputs[0].requires_grad:
        grads = [torch.randn_like(x, device="cpu").to("cuda") for x in outputs]
        torch.autograd.grad(outputs, [x for x in tensors.values() if x.requires_grad], grads, allow_unused=True)


def call_every_op(
    shape: tuple[int, int, int, int],
    image_size: tuple[int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    resize: str,
) -> None:
    """Arguments and options are found by their names, so that every op of `srtod.ops` is called."""
    batch, channels, height, width = shape
    hidden = max(channels // 4, 1)
    mlp = {"weight1": (hidden, channels), "bias1": (hidden,), "weight2": (channels, hidden), "bias2": (channels,)}
    arguments = {
        "features": leaf(torch.randn(shape).to(dtype), memory_format),
        "reconstruction": leaf(torch.randn(batch, 3, *image_size).to(dtype), memory_format),
        "image": leaf(torch.rand(batch, 3, *image_size), memory_format).detach(),
        "difference": leaf(torch.rand(batch, 1, *image_size) / 32),
        "threshold": leaf(torch.tensor(4 / 255)),
        **{name: leaf(torch.randn(size).to(dtype)) for name, size in mlp.items()},
    }
    valid_size = torch.tensor([[image_size[0] - n, image_size[1]] for n in range(batch)]).to("cuda")
    choices: dict[str, list[Any]] = {
        "from_logits": [False, True],
        "valid_size": [None, valid_size],
        "difference_gradient": [False, True],
        "resize": [resize],
        "size": [(height, width)],
    }
    for name in OPS:
        op = getattr(ops, name)
        parameters = inspect.signature(op).parameters
        tensors = {key: arguments[key] for key in parameters if key in arguments}
        of_op = {key: values for key, values in choices.items() if key in parameters}
        if resize != "nearest" and "resize" not in of_op:
            continue  # that op has run
        for values, cooperative in itertools.product(itertools.product(*of_op.values()), LAUNCHES.get(name, ("0",))):
            os.environ["SRTOD_COOPERATIVE"] = cooperative
            options = dict(zip(of_op, values, strict=True))
            if name.endswith("_"):  # overwrites its first argument, and is for inference
                with torch.no_grad():
                    run(op, tensors | {"features": tensors["features"].clone()}, options)
            else:
                run(op, tensors, options)
    torch.cuda.synchronize()


def all_cases() -> Iterator[tuple[Any, ...]]:
    """The arguments of `call_every_op`. The dtypes of both formats change from size to size."""
    for k, (shape, image_size) in enumerate(SIZES):
        dtypes = (torch.float32, torch.bfloat16) if k % 2 == 0 else (torch.bfloat16, torch.float32)
        for resize in ("nearest", "max", "area", "bilinear") if (shape, image_size) == ALL_RESIZES else ("nearest",):
            for dtype, memory_format in zip(dtypes, FORMATS, strict=True):
                yield shape, image_size, dtype, memory_format, resize


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls every op on the GPU, for compute-sanitizer to watch.")
    parser.add_argument("--seconds", type=float, help="start no case after this time (default: run all)")
    seconds = parser.parse_args().seconds
    if not ops.is_fused("cuda"):
        raise SystemExit("the CUDA ops are not usable here; `python -m srtod.info` tells why")
    torch.manual_seed(0)
    cases, start = list(all_cases()), time.monotonic()
    for k, case in enumerate(cases):
        if seconds is not None and time.monotonic() - start > seconds:
            raise SystemExit(f"sanitize_ops: time is over after {k} of {len(cases)} cases")
        call_every_op(*case)
        print(f"{k + 1}/{len(cases)}", *case, f"after {time.monotonic() - start:.0f} s", flush=True)
    print(f"every op ran in {len(cases)} cases")


if __name__ == "__main__":
    main()
