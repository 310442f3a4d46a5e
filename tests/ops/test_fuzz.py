"""Random sizes, dtypes, layouts and options of the ops with compiled kernels, against the reference.

The sizes meet the limits that the kernels cut their work at: vectors, warps, blocks, parts and groups of them.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from srtod.ops.surrogate import RESIZES, SURROGATES

CASES, CHUNKS = 2000, 20
MOST_ELEMENTS = 40_000  # of the features
EDGES = (1, 2, 4, 7, 8, 9, 16, 31, 32, 33, 64, 127, 128, 129, 255, 256, 257, 512, 513, 1024, 1025, 2048, 2049)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")


def random_sizes(rng: random.Random, kit: Any) -> Any:
    """One of them may be large, at or beside an edge; then the others are small."""

    def small() -> int:
        return rng.choice((rng.randint(1, 6), rng.randint(1, 40)))

    batch, channels, h, w = rng.choice((1, 1, 2, 3, rng.randint(4, 15))), small(), small(), small()
    large = rng.randrange(6)
    if large == 0:
        channels = rng.choice(EDGES)
    elif large == 1:
        w = rng.choice(EDGES)
    elif large == 2:
        h, w = rng.randint(40, 130), rng.randint(40, 130)
    while batch * channels * h * w > MOST_ELEMENTS:
        if channels > 3 and large != 0:
            channels = (channels + 1) // 2
        elif batch > 1:
            batch //= 2
        else:
            h, w = (h + 1) // 2, (w + 1) // 2
            channels = channels if h * w > 1 else min(channels, MOST_ELEMENTS)
    height, width = rng.choice(
        (
            (4 * h, 4 * w),
            (h, w),
            (rng.randint(1, 4 * h), rng.randint(1, 4 * w)),
            (rng.randint(h, 3 * h), rng.randint(w, 6 * w)),
        )
    )
    return kit.new_sizes(batch, channels, h, w, height, width, rng.choice((1, 2, 4, rng.randint(1, 40))))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_cases(chunk: int, kit: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(chunk)
    for k in range(CASES // CHUNKS):
        torch.manual_seed(1000 * chunk + k)
        op = rng.choice((*kit.ops, "dgfe", "dgfe"))
        sizes, dtype, layout = random_sizes(rng, kit), rng.choice(DTYPES), rng.choice(LAYOUTS)
        options: dict[str, Any] = {}
        if op in ("dgfe", "filtration"):
            options = {"resize": rng.choice((*RESIZES, "nearest")), "surrogate": rng.choice(SURROGATES), "alpha": 40}
        elif op != "channel_reweighting":
            options = {"from_logits": rng.random() < 0.5}
        if op == "reconstruction_difference" and rng.random() < 0.5:
            options["valid_size"] = True
        if dtype in (torch.bfloat16, torch.float16) and rng.random() < 0.3:
            options["mlp_dtype"] = torch.float32
        launches = rng.choice(("", "0", "1"))
        monkeypatch.setenv("SRTOD_COOPERATIVE", launches)
        try:
            kit.assert_agrees(kit.case(op, sizes, dtype, device, layout, **options), cancelling=10)
        except AssertionError as error:
            raise AssertionError(f"case {k}: {op} {sizes} {dtype} {layout} {options} {launches}: {error}") from error
