"""Which layout results have, that no map is copied, and that every run gives bitwise the same."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "op",
    [
        "difference_map",
        "reconstruction_difference",
        "reconstruction_tail",
        "filtration",
        "dgfe",
        "dgfe_from_reconstruction",
    ],
)
def test_no_hidden_copy(op: str, kit: Any, native_layout: str, dtype: torch.dtype, device: str) -> None:
    case = kit.case(op, kit.sizes["odd"], dtype, device, native_layout)
    if op == "reconstruction_tail" and dtype != torch.float64:  # as under autocast; else three channels are converted
        case.options["image"] = case.options["image"].float()
        case.tensors |= {name: case.tensors[name].float() for name in ("weight", "bias")}
    case.tensors = {name: x.detach().requires_grad_(name != "image") for name, x in case.tensors.items()}
    inputs = [x for x in case.tensors.values() if x.requires_grad]
    assert not copies_in(case.run)
    outputs = case.run()
    cotangents = [torch.randn_like(output) for output in outputs]
    assert not copies_in(lambda: torch.autograd.grad(outputs, inputs, cotangents))


def test_no_hidden_copy_of_features_in_channel_reweighting(kit: Any, native_layout: str, device: str) -> None:
    case = kit.case("channel_reweighting", kit.sizes["odd"], torch.float32, device, native_layout)
    assert not copies_in(case.run)


def test_other_strides_cost_one_copy(kit: Any, device: str) -> None:
    """Also the proof that `copies_in` sees copies made inside the compiled ops."""
    assert copies_in(kit.case("dgfe", kit.sizes["odd"], device=device, layout="transposed").run)


def test_images_of_any_strides_are_read_in_place(kit: Any, layout: str, device: str) -> None:
    assert not copies_in(kit.case("reconstruction_difference", kit.sizes["odd"], device=device, layout=layout).run)
    case = kit.case("dgfe_from_reconstruction", kit.sizes["odd"], device=device, layout=layout)
    case.tensors["features"] = case.tensors["features"].contiguous()
    assert not copies_in(case.run)


@pytest.mark.parametrize("op", ["dgfe", "dgfe_from_reconstruction"])
def test_results_follow_the_layout_of_the_features(
    op: str, kit: Any, layout: str, dtype: torch.dtype, device: str
) -> None:
    case = kit.case(op, kit.sizes["even"], dtype, device, layout)
    output = case.run()[0]
    assert kit.follows_layout(output, case.tensors["features"])
    case.require_grad()
    cotangent = torch.randn_like(output)[:1].expand(output.shape)
    expected = case.gradients(case.run()[:1], (kit.lay_out(cotangent, layout),))
    for cotangent_layout in ("contiguous", "channels_last", "expanded"):
        gradients = case.gradients(case.run()[:1], (kit.lay_out(cotangent, cotangent_layout),))
        for name in ("features", "reconstruction") if op == "dgfe_from_reconstruction" else ("features",):
            assert kit.follows_layout(gradients[name], case.tensors[name])
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


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    "op",
    [
        "reconstruction_difference",
        "reconstruction_tail",
        "filtration",
        "channel_reweighting",
        "dgfe",
        "dgfe_from_reconstruction",
    ],
)
def test_bitwise_the_same_in_every_run_and_with_any_number_of_threads(
    op: str, resize: str, kit: Any, native_layout: str, dtype: torch.dtype, device: str
) -> None:
    has_resize = op in ("filtration", "dgfe", "dgfe_from_reconstruction")
    if resize != "nearest" and not has_resize:
        pytest.skip("has no resize")
    options: dict[str, Any] = {"resize": resize} if has_resize else {}
    if "reconstruction" in op:
        options["valid_size"] = True
    case = kit.case(
        op, kit.new_sizes(2, 33, 48, 67, 192, 268, 4), dtype, device, native_layout, **options
    ).require_grad()
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
