"""Calls every op on the GPU once in each small variant, forward and backward, for compute-sanitizer to watch.

compute-sanitizer --tool memcheck python scripts/sanitize_ops.py

All inputs are made on the CPU and copied: so nearly all kernels that run are srtod's, and initcheck, which learns of a
value being written from the copy, has no reason to complain about PyTorch's generators.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import torch
from torch import Tensor

from srtod import ops

# [N, C, h, w] of the features and [H, W] of the images: rows that no vector access divides, upsampling, one pixel, more
# channels than threads of a block, channels that tensor cores take (64, in half precision and channels_last), a map of
# several blocks, and one of more parts than one block combines.
SIZES = [
    ((2, 7, 9, 13), (37, 50)),
    ((1, 3, 9, 10), (4, 3)),
    ((1, 1, 1, 1), (1, 1)),
    ((1, 272, 6, 7), (24, 28)),
    ((1, 64, 9, 10), (36, 40)),
    ((2, 16, 61, 67), (244, 268)),
    ((1, 2, 270, 280), (27, 28)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


def leaf(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """On the GPU by a plain copy, which keeps the memory format."""
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory_format)
    return x.to("cuda").requires_grad_()


def differentiate(op: Callable[..., Tensor | tuple[Tensor | None, ...]], *inputs: Tensor) -> None:
    """Forward and backward; the gradients of all outputs are copied from the CPU as well."""
    results = op(*inputs)
    outputs = [x for x in (results if isinstance(results, tuple) else (results,)) if x is not None]
    grads = [torch.randn_like(x, device="cpu").to("cuda") for x in outputs]
    torch.autograd.grad(outputs, [x for x in inputs if x.requires_grad], grads)


def call_every_op(
    shape: tuple[int, int, int, int],
    image_size: tuple[int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    resize: str,
) -> None:
    batch, channels, height, width = shape
    hidden = max(channels // 4, 1)
    features = leaf(torch.randn(shape).to(dtype), memory_format)
    reconstruction = leaf(torch.randn(batch, 3, *image_size).to(dtype), memory_format)
    image = leaf(torch.rand(batch, 3, *image_size), memory_format).detach()
    difference = leaf(torch.rand(batch, 1, *image_size) / 32)
    threshold = leaf(torch.tensor(4 / 255))
    mlp = [leaf(torch.randn(size).to(dtype)) for size in ((hidden, channels), hidden, (channels, hidden), channels)]
    valid_size = torch.tensor([[image_size[0] - n, image_size[1]] for n in range(batch)]).to("cuda")

    differentiate(lambda r: ops.difference_map(r, image, from_logits=True), reconstruction)
    differentiate(lambda r: ops.reconstruction_difference(r, image, from_logits=True), reconstruction)
    differentiate(lambda r: ops.reconstruction_difference(r, image, valid_size=valid_size), reconstruction)
    decoded = leaf(torch.randn(batch, channels, *image_size).to(dtype), memory_format)
    output = [leaf(torch.randn(3, channels, 3, 3) / channels), leaf(torch.randn(3))]
    differentiate(lambda *x: ops.reconstruction_tail(*x, image, valid_size=valid_size), decoded, *output)
    samples = [[decoded] * 3, [features] * 9]
    step = image_size[0] // height
    if step > 1 and image_size == (step * height, step * width):  # rows around samples that are `step` pixels apart
        rows = torch.randn(batch, channels, height, image_size[1]).to(dtype)
        samples.append([leaf(rows, memory_format)] * 3)
    with torch.no_grad():
        for maps in samples:
            ops.sampled_difference_map(maps, *output, image)
    differentiate(lambda d, t: ops.filtration(d, t, (height, width), resize=resize), difference, threshold)
    differentiate(ops.channel_reweighting, features, *mlp)
    for cooperative in ("0", "1"):
        os.environ["SRTOD_COOPERATIVE"] = cooperative
        differentiate(lambda *x: ops.dgfe(*x, resize=resize), features, difference, threshold, *mlp)
        for with_mse in (True, False):
            differentiate(
                lambda x, r, *others, mse=with_mse: ops.dgfe_from_reconstruction(
                    x, r, image, *others, from_logits=True, with_mse=mse, resize=resize
                ),
                *(features, reconstruction, threshold, *mlp),
            )
        with torch.no_grad():
            ops.dgfe_(features.detach().clone(), difference, threshold, *mlp, resize=resize)
    torch.cuda.synchronize()


def main() -> None:
    if not ops.is_fused("cuda"):
        raise SystemExit("the CUDA ops are not usable here; `python -m srtod.info` tells why")
    torch.manual_seed(0)
    cases = list(itertools.product(SIZES, (torch.float32, torch.bfloat16), FORMATS))
    for (shape, image_size), dtype, memory_format in cases:
        for resize in ("nearest", "max", "area", "bilinear") if shape == SIZES[0][0] else ("nearest",):
            call_every_op(shape, image_size, dtype, memory_format, resize)
    print(f"every op ran in {len(cases)} cases")


if __name__ == "__main__":
    main()
