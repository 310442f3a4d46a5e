"""Which layout results have, that no map is copied, and that every run gives bitwise the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from srtod import ops
from srtod.ops.surrogate import RESIZES

COPIES = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


def copies_in(function: Any) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    names = {event.key for event in profile.key_averages()}
    assert any(name.startswith("srtod::") for name in names)
    return names & COPIES


def test_no_hidden_copy(op: str, kit: Any, native_layout: str, dtype: torch.dtype, device: str) -> None:
    if op == "channel_reweighting":  # of which only the result [N, C, 1, 1] is converted
        dtype = torch.promote_types(dtype, torch.float32)
    case = kit.case(op, kit.sizes["odd"], dtype, device, native_layout)
    case.tensors = {name: x.detach().requires_grad_(name != "image") for name, x in case.tensors.items()}
    inputs = [x for x in case.tensors.values() if x.requires_grad]
    assert not copies_in(case.run)
    outputs = case.run()
    cotangents = [torch.randn_like(output) for output in outputs]
    assert not copies_in(lambda: torch.autograd.grad(outputs, inputs, cotangents))


def test_other_strides_cost_one_copy(kit: Any, device: str) -> None:
    """Also the proof that `copies_in` sees copies made inside the compiled ops."""
    assert copies_in(kit.case("dgfe", kit.sizes["odd"], device=device, layout="transposed").run)


def test_images_of_any_strides_are_read_in_place(kit: Any, layout: str, device: str) -> None:
    assert not copies_in(kit.case("reconstruction_difference", kit.sizes["odd"], device=device, layout=layout).run)


def test_results_follow_the_layout_of_the_features(kit: Any, layout: str, dtype: torch.dtype, device: str) -> None:
    case = kit.case("dgfe", kit.sizes["even"], dtype, device, layout)
    output = case.run()[0]
    assert kit.follows_layout(output, case.tensors["features"])
    case.require_grad()
    cotangent = torch.randn_like(output)[:1].expand(output.shape)
    expected = case.gradients(case.run()[:1], (kit.lay_out(cotangent, layout),))
    for cotangent_layout in ("contiguous", "channels_last", "expanded"):
        gradients = case.gradients(case.run()[:1], (kit.lay_out(cotangent, cotangent_layout),))
        assert kit.follows_layout(gradients["features"], case.tensors["features"])
        for name, gradient in gradients.items():
            assert torch.equal(gradient, expected[name]), name


def test_inplace_dgfe_refuses_other_strides(kit: Any, device: str) -> None:
    case = kit.case("dgfe", device=device, layout="transposed")
    with pytest.raises(
        ValueError, match=r"dgfe_: features must be contiguous or channels_last, got strides .* call dgfe"
    ):
        ops.dgfe_(**case.tensors)


def everything(case: Any) -> list[torch.Tensor]:
    outputs = case.run()
    generator = torch.Generator().manual_seed(1)
    cotangents = tuple(torch.randn(x.shape, generator=generator).to(x) for x in outputs)
    return [*outputs, *case.gradients(outputs, cotangents).values()]


def test_bitwise_the_same_in_every_run_and_with_any_number_of_threads(
    op: str, kit: Any, native_layout: str, dtype: torch.dtype, device: str
) -> None:
    parameters = inspect.signature(getattr(ops, op)).parameters
    for resize in RESIZES if "resize" in parameters else (None,):
        options: dict[str, Any] = {} if resize is None else {"resize": resize}
        if "valid_size" in parameters:
            options["valid_size"] = True
        sizes = kit.new_sizes(2, 33, 48, 67, 192, 268, 4)
        assert_repeatable(kit.case(op, sizes, dtype, device, native_layout, **options).require_grad())


def assert_repeatable(case: Any) -> None:
    first = everything(case)
    threads, kept = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            kept.append(torch.empty(1021 * count))  # so that the next scratch memory lies elsewhere
            for once, again in zip(first, everything(case), strict=True):
                assert torch.equal(once, again)
    finally:
        torch.set_num_threads(threads)
