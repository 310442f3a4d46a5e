"""Bad input ends in one sentence that names op, argument, expected and got; and nothing ends in a crash."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srtod import ops
from srtod.ops.surrogate import RESIZES, SURROGATES

SIZES = (2, 16, 4, 6, 8, 12, 4)
RAW_SIZES = (8, 2, 4, 4, 8, 8, 3)  # N = 8 and C = 2 differ, so that a [C, N] tensor shows


def arguments(kit: Any, op: str, device: str) -> dict[str, Any]:
    """Good ones."""
    case = kit.case(op, kit.new_sizes(*SIZES), device=device)
    return case.tensors | {name: value for name, value in case.options.items() if name == "size"}


def raw_arguments(kit: Any, op: str, device: str) -> list[Any]:
    """Good ones of a registered op."""
    return list(kit.calls(kit.new_sizes(*RAW_SIZES), device=device)[op])


def test_good_arguments_are_accepted(public_op: str, kit: Any, device: str) -> None:
    getattr(ops, public_op)(**arguments(kit, public_op, device))


@pytest.mark.parametrize(
    ("op", "name", "shape", "message"),
    [
        ("difference_map", "image", (3, 8, 12), r"image must have shape \[N, C, H, W\], got \[3, 8, 12\]"),
        ("difference_map", "image", (2, 3, 0, 12), r"image must .* at least one element in every dimension but N"),
        (
            "difference_map",
            "image",
            (1, 3, 8, 12),
            r"reconstruction must have shape \[1, 3, 8, 12\], the image's, got \[2, 3",
        ),
        ("difference_map", "image", (2, 1, 8, 12), r"reconstruction must have shape \[2, 1, 8, 12\]"),
        ("reconstruction_difference", "reconstruction", (2, 3, 8, 11), r"must have shape \[2, 3, 8, 12\], the image's"),
        ("filtration", "difference", (2, 3, 8, 12), r"difference must have shape \[N, 1, H, W\], got \[2, 3, 8, 12\]"),
        ("filtration", "difference", (8, 12), r"difference must have shape \[N, 1, H, W\], got \[8, 12\]"),
        ("filtration", "difference", (2, 1, 8, 0), r"difference must .* at least one element in every dimension but N"),
        ("filtration", "threshold", (1,), r"threshold must be a scalar \(0-d\) tensor such as .*, got shape \[1\]"),
        ("filtration", "threshold", (2, 1, 1, 1), r"threshold must be a scalar"),
        ("channel_reweighting", "features", (16, 4, 6), r"features must have shape \[N, C, h, w\], got \[16, 4, 6\]"),
        ("channel_reweighting", "features", (2, 16, 0, 6), r"features must .* at least one element"),
        (
            "channel_reweighting",
            "features",
            (2, 15, 4, 6),
            r"weight1 must .* \[R, 15\] for features of 15 channels, got \[4, 16\]",
        ),
        ("channel_reweighting", "weight1", (16,), r"weight1 must have shape \[R, 16\]"),
        ("channel_reweighting", "bias1", (5,), r"bias1 must have shape \[4\], got \[5\]"),
        ("channel_reweighting", "weight2", (4, 16), r"weight2 must have shape \[16, 4\], got \[4, 16\]"),
        ("channel_reweighting", "bias2", (4,), r"bias2 must have shape \[16\], got \[4\]"),
        ("dgfe", "features", (2, 8, 4, 6), r"weight1 must have shape \[R, 8\]"),
        (
            "dgfe",
            "difference",
            (1, 1, 8, 12),
            r"difference must have shape \[2, 1, H, W\], the features' batch of 2, got \[1, 1",
        ),
        ("dgfe", "difference", (2, 3, 8, 12), r"difference must have shape \[2, 1, H, W\]"),
        ("dgfe", "threshold", (1,), r"threshold must be a scalar"),
        ("dgfe", "bias2", (1,), r"bias2 must have shape \[16\]"),
        ("dgfe_", "difference", (3, 1, 8, 12), r"difference must have shape \[2, 1, H, W\]"),
        ("dgfe_", "features", (2, 16), r"features must have shape \[N, C, h, w\], got \[2, 16\]"),
    ],
)
def test_shapes(op: str, name: str, shape: tuple[int, ...], message: str, kit: Any, device: str) -> None:
    given = arguments(kit, op, device)
    given[name] = torch.rand(shape, device=device)
    with pytest.raises(ValueError, match=f"^{op}: .*{message}"):
        getattr(ops, op)(**given)


def test_dtypes_and_devices_of_every_tensor(public_op: str, kit: Any, device: str) -> None:
    op, call = public_op, getattr(ops, public_op)
    given = arguments(kit, op, device)
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    for name in tensors:
        for dtype in (torch.int64, torch.bool, torch.complex64):
            wrong = given | {name: given[name].to(dtype)}
            with pytest.raises(
                TypeError, match=f"^{op}: {name} must be float16, bfloat16, float32 or float64, got {dtype}$"
            ):
                call(**wrong)
        with pytest.raises(
            TypeError, match=rf"^{op}: {name} must be .*got torch.uint8; images in 0..255 go to \[0, 1\] by"
        ):
            call(**given | {name: given[name].to(torch.uint8)})
        with pytest.raises(TypeError, match=f"^{op}: {name} must be a torch.Tensor, got float$"):
            call(**given | {name: 0.5})
        if len(tensors) == 1:  # with which others could its device differ?
            continue
        with pytest.raises(
            ValueError, match=rf"^{op}: \w+ is on (meta|{device}\S*), but {tensors[0]} is on .* to one device$"
        ):
            call(**given | {name: given[name].to("meta")})


@pytest.mark.parametrize(
    ("op", "name", "dtype", "message"),
    [
        (
            "difference_map",
            "image",
            torch.float64,
            "image must have the reconstruction's dtype torch.float32, got torch.float64",
        ),
        (
            "difference_map",
            "image",
            torch.float16,
            "image must have the reconstruction's dtype torch.float32, got torch.float16",
        ),
        ("reconstruction_difference", "reconstruction", torch.float64, "dtype torch.float64, got torch.float32"),
        (
            "channel_reweighting",
            "bias1",
            torch.float64,
            "weights and biases must share one dtype, got torch.float32, torch.float64",
        ),
        ("dgfe", "weight2", torch.bfloat16, "weights and biases must share one dtype"),
        (
            "dgfe",
            "features",
            torch.float64,
            "features and difference must both be float64 or neither, got torch.float64 and",
        ),
        (
            "dgfe",
            "difference",
            torch.float64,
            "features and difference must both be float64 or neither, got torch.float32 and",
        ),
    ],
)
def test_dtypes_that_do_not_go_together(
    op: str, name: str, dtype: torch.dtype, message: str, kit: Any, device: str
) -> None:
    given = arguments(kit, op, device)
    with pytest.raises(TypeError, match=f"^{op}: .*{message}"):
        getattr(ops, op)(**given | {name: given[name].to(dtype)})


def test_half_images_differ_in_kind(device: str) -> None:
    given = {
        "reconstruction": torch.rand(1, 3, 4, 4).half().to(device),
        "image": torch.rand(1, 3, 4, 4).bfloat16().to(device),
    }
    with pytest.raises(TypeError, match=r"dtype torch.float16 or float32, got torch.bfloat16"):
        ops.difference_map(**given)


@pytest.mark.parametrize(
    ("valid_size", "error", "message"),
    [
        (torch.ones(2, 2), TypeError, "valid_size must be int64, got torch.float32"),
        (torch.ones(2, 2, dtype=torch.int32), TypeError, "valid_size must be int64, got torch.int32"),
        (
            torch.ones(3, 2, dtype=torch.int64),
            ValueError,
            r"valid_size must have shape \[2, 2\], \(height, width\), got \[3, 2\]",
        ),
        (torch.ones(4, dtype=torch.int64), ValueError, r"valid_size must have shape \[2, 2\]"),
        (torch.ones(2, 2, dtype=torch.int64, device="meta"), ValueError, "valid_size is on meta, but image is on"),
        ([[8, 12], [8, 12]], TypeError, "valid_size must be a torch.Tensor, got list"),
    ],
)
def test_valid_size(valid_size: Any, error: type[Exception], message: str, kit: Any, device: str) -> None:
    op = "reconstruction_difference"
    if isinstance(valid_size, Tensor) and valid_size.device.type != "meta":
        valid_size = valid_size.to(device)
    with pytest.raises(error, match=f"^{op}: {message}"):
        getattr(ops, op)(**arguments(kit, op, device), valid_size=valid_size)


@pytest.mark.parametrize("op", ["filtration", "dgfe", "dgfe_", "DGFE"])
def test_unknown_names_and_alpha(op: str, kit: Any, device: str) -> None:
    def call(**options: Any) -> None:
        if op == "DGFE":
            ops.DGFE(32, **options)
        else:
            getattr(ops, op)(**arguments(kit, op, device), **options)

    with pytest.raises(ValueError, match=f"^resize must be one of {', '.join(RESIZES)}, got 'cubic'$"):
        call(resize="cubic")
    if op == "dgfe_":
        return
    with pytest.raises(ValueError, match=f"^surrogate must be one of {', '.join(SURROGATES)}, got 'relu'$"):
        call(surrogate="relu")
    for alpha in (0, -1.0, float("nan"), float("inf")):
        asked = "a positive finite number"
        if op == "DGFE":  # whose options are checked by their kind first, and then by their range
            asked = "positive" if math.isfinite(alpha) else "a number or none"
        with pytest.raises(ValueError, match=f"^alpha must be {asked}, got {alpha}$"):
            call(alpha=alpha)


@pytest.mark.parametrize("size", [(0, 3), (3, -1)])
def test_filter_size(size: tuple[int, int], kit: Any, device: str) -> None:
    with pytest.raises(ValueError, match=r"^filtration: size must be \(h, w\), both at least 1, got \("):
        ops.filtration(**arguments(kit, "filtration", device) | {"size": size})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 30}, "channels must be a positive multiple of reduction, got 30 and 16"),
        ({"channels": 8, "reduction": 16}, "channels must be a positive multiple of reduction, got 8 and 16"),
        ({"channels": 0}, "channels must be a positive multiple"),
        ({"channels": 32, "reduction": 0}, "channels must be a positive multiple"),
        ({"channels": 32, "threshold": 4.0}, "threshold must be from 0 to 1, got 4.0"),
        ({"channels": 32, "threshold": float("nan")}, "threshold must be a number or one of auto or none, got nan"),
    ],
)
def test_module(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.DGFE(**options)


@pytest.mark.parametrize("name", ["features", "threshold", "weight1", "difference"])
def test_inplace_dgfe_under_gradients(name: str, kit: Any, device: str) -> None:
    given = arguments(kit, "dgfe_", device)
    before = given["features"].clone()
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=r"^dgfe_: overwrites what the backward pass needs; .* torch.no_grad\(\)"):
        ops.dgfe_(**given)
    assert torch.equal(given["features"], before)
    with torch.no_grad():
        ops.dgfe_(**given)


# --- torch.ops.srtod.* called past the Python checks: an error, never a crash -----------------------------------------


def misshapen(x: Tensor) -> list[Tensor]:
    """More or fewer elements, another order of the sizes, another dimension, another type."""
    wrong = [x.new_zeros(3, 5, 2, 7, 2), x.new_zeros(0, 2, 3), x.new_zeros(8, 2, 0, 4), x.new_zeros(1000), x.int()]
    if x.dim() > 0:
        wrong += [x[:-1].contiguous(), torch.cat([x, x]), x.new_zeros(())]
    if x.dim() > 1:
        wrong += [x.transpose(0, 1).contiguous(), x.flatten(), x[None].contiguous()]
    return [w for w in wrong if w.shape != x.shape or w.dtype != x.dtype]


def test_raw_ops_survive_wrong_tensors(registered_op: str, kit: Any, device: str) -> None:
    """Each tensor in turn is replaced. What is not refused must be harmless, as CI sees under AddressSanitizer."""
    function = getattr(torch.ops.srtod, registered_op)
    good = raw_arguments(kit, registered_op, device)
    function(*good)
    refused = 0
    for k, argument in enumerate(good):
        if not isinstance(argument, Tensor):
            continue
        for wrong in misshapen(argument):
            with contextlib.suppress(RuntimeError, IndexError):
                function(*good[:k], wrong, *good[k + 1 :])
                continue
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("op", "position", "wrong", "message"),
    [
        ("difference_map", 0, (8, 3, 8, 9), "expected two images of the same shape, with pixels"),
        ("reconstruction_difference", 3, (7, 2), r"expected valid_size int64 \[N, 2\]"),
        ("_reconstruction_difference_backward", 0, (8, 1, 8, 7), r"expected a gradient \[N, 1, H, W\]"),
        ("_reconstruction_difference_backward", 1, (2,), "expected a gradient of one element"),
        ("filtration", 0, (8, 2, 8, 8), r"expected difference \[N, 1, H, W\] and a size, neither empty"),
        ("filtration", 1, (2,), "expected a threshold of one element"),
        ("_filtration_backward", 0, (7, 1, 4, 4), r"expected a gradient \[N, 1, h, w\]"),
        ("_filtration_backward", 0, (8, 1, 0, 4), "neither empty"),
        ("channel_reweighting", 0, (8, 2, 4), r"expected features \[N, C, h, w\]"),
        ("channel_reweighting", 0, (8, 3, 4, 4), r"expected weight1 \[R, C\], bias1 \[R\]"),
        ("channel_reweighting", 4, (1,), r"expected weight1 \[R, C\], bias1 \[R\]"),
        ("_channel_reweighting_backward", 0, (8, 3), r"expected pooled values \[N, C\]"),
        ("_channel_reweighting_backward", 2, (2, 8), r"expected pooled values \[N, C\]"),
        ("_channel_reweighting_backward", 2, (1, 16), r"expected pooled values \[N, C\]"),
        ("_channel_reweighting_backward", 2, (16,), r"expected pooled values \[N, C\]"),
        ("_channel_reweighting_backward", 5, (3, 2), r"expected argmax \[N, C\]"),
        ("_channel_reweighting_backward", 6, (8, 2, 4), r"expected weight1 \[R, C\] and weight2 \[C, R\]"),
        ("_channel_reweighting_backward", 6, (8, 1, 4), r"expected a hidden layer \[N, 2, R\]"),
        ("dgfe", 1, (7, 1, 8, 8), r"expected features \[N, C, h, w\] and difference \[N, 1, H, W\]"),
        ("dgfe", 3, (3, 3), r"expected weight1 \[R, C\], bias1 \[R\]"),
        ("dgfe_", 0, (8, 2, 0, 4), "none of the last four empty"),
        ("_dgfe_backward", 0, (8, 2, 4, 5), "expected a gradient of the features' shape and type"),
        ("_dgfe_backward", 4, (8, 1, 4, 3), r"expected a filter \[N, 1, h, w\]"),
        ("_dgfe_backward", 5, (2, 8), r"expected pooled values \[N, C\]"),
        ("_dgfe_backward", 5, (1, 16), r"expected pooled values \[N, C\]"),
        ("_dgfe_backward", 8, (8, 3), r"expected argmax \[N, C\]"),
        ("_dgfe_backward", 9, (7, 2, 4), r"expected a hidden layer \[N, 2, R\]"),
    ],
)
def test_raw_ops_name_what_they_expect(
    op: str, position: int, wrong: tuple[int, ...], message: str, kit: Any, device: str
) -> None:
    args = raw_arguments(kit, op, device)
    args[position] = args[position].new_zeros(wrong)
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.srtod, op)(*args)


@pytest.mark.parametrize("index", [-1, 16, 2**62, -(2**62)])
def test_raw_backward_with_an_argmax_outside_the_map(index: int, native_layout: str, kit: Any, device: str) -> None:
    for op, position, maps in (
        ("_dgfe_backward", 8, (0, 1)),
        ("_channel_reweighting_backward", 5, (1,)),
    ):
        args = raw_arguments(kit, op, device)
        for k in maps:
            args[k] = kit.lay_out(args[k], native_layout)
        args[position].fill_(index)
        gradient = getattr(torch.ops.srtod, op)(*args)[0]
        assert gradient.isfinite().all()


@pytest.mark.parametrize("code", [-1, 4, 99])
def test_raw_ops_with_unknown_codes_stay_in_bounds(code: int, kit: Any, device: str) -> None:
    calls = kit.calls(kit.new_sizes(*RAW_SIZES), device=device)
    filter_: Callable[..., Tensor] = torch.ops.srtod.filtration
    for resize, surrogate in ((code, 0), (0, code)):
        with contextlib.suppress(RuntimeError):
            filter_(*calls["filtration"][:4], resize, surrogate, 9.0)
            torch.ops.srtod._filtration_backward(*calls["_filtration_backward"][:3], resize, surrogate, 9.0, True)


def test_raw_filter_sizes(kit: Any, device: str) -> None:
    difference, threshold, *_ = raw_arguments(kit, "filtration", device)
    for height, width in ((0, 4), (4, -1), (2**62, 2**62)):
        with pytest.raises(RuntimeError):
            torch.ops.srtod.filtration(difference, threshold, height, width, 0, 2, 9.0)


@pytest.mark.parametrize("name", ["difference_map", "reconstruction_difference", "high_frequency_difference_map"])
def test_images_that_are_not_in_unit_range(name: str) -> None:
    """Dark pictures too; on the CPU only. What lies beyond 16 bits is no image in another unit."""
    options = {"cutoff": 0.1} if name.startswith("high") else {}
    op, image = functools.partial(getattr(ops, name), **options), torch.rand(2, 3, 70, 90)
    sentence = rf"^{name}: image must lie in \[0, 1\], got values up to [\d.]+; images in 0..255 go to \[0, 1\] by"
    dark = (20 * image**3).round()
    for wrong in (255 * image, dark, 65535 * image, (image - 0.45) / 0.225):
        with pytest.raises(ValueError, match=sentence):
            op(image, wrong)
        with ops.use_reference(), pytest.raises(ValueError, match=sentence):
            op(image, wrong)
    op(255 * image, 1.0005 * image)  # the reconstruction may be anything
    op(image, torch.full_like(image, 1e30))
