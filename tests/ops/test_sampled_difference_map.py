"""The difference map at the samples of a nearest resize is the whole map's, whatever way its features come."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srtod import ops
from srtod.ops import reference

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Of values up to 1. Measured worst cases (CPU, torch 2.14, AVX-512): 1.3e-7 and 5e-16."""


class Inputs(NamedTuple):
    """What the op takes, and what it is to return."""

    features: list[Tensor]
    weight: Tensor
    bias: Tensor
    image: Tensor
    expected: Tensor  # from the whole map, in float64


def maps_around(features: Tensor, image_size: tuple[int, int], size: tuple[int, int], count: int) -> list[Tensor]:
    """The three or nine maps around the samples, from the last feature map `[N, C, H, W]`."""
    padded = F.pad(features, (1, 1, 1, 1))
    rows, columns = (reference.nearest_index(size[k], image_size[k], features.device) for k in (0, 1))
    if count == 3:
        return [padded[:, :, rows + dy, 1:-1] for dy in range(3)]
    return [padded[:, :, rows + dy][..., columns + dx] for dy, dx in itertools.product(range(3), range(3))]


def make(
    kit: Any,
    count: int,
    size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    channels: int = 16,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    device: str = "cpu",
    batch: int = 2,
) -> Inputs:
    """Samples h x w of an image H x W, and random features."""
    features = torch.randn(batch, channels, *image_size).to(dtype)
    weight, bias = torch.randn(3, channels, 3, 3) / (3 * channels**0.5), torch.randn(3) * 0.3
    weight, bias = weight.to(reference.compute_dtype(dtype)), bias.to(reference.compute_dtype(dtype))
    image = torch.rand(batch, 3, *image_size).to(dtype)
    whole, *_ = reference.reconstruction_tail(features.double(), weight.double(), bias.double(), image.double())
    maps = [kit.lay_out(x.to(device), layout) for x in maps_around(features, image_size, size, count)]
    if layout == "expanded":  # which repeats the first sample
        whole, image = whole[:1].expand(whole.shape), image[:1].expand(image.shape)
    expected = reference.nearest(whole, size).to(device)
    return Inputs(maps, weight.to(device), bias.to(device), kit.lay_out(image.to(device), layout), expected)


def assert_right(result: Tensor, inputs: Inputs) -> None:
    dtype = reference.compute_dtype(inputs.image.dtype)
    assert result.dtype == dtype
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), inputs.expected, rtol=0, atol=TOLERANCES[dtype])


SIZES = {  # samples, and pixels of a side from one to the next
    "one": (1, 1, 1),
    "all": (5, 7, 1),
    "every_other": (4, 9, 2),
    "every_third": (3, 5, 3),
    "paper": (6, 75, 4),
    "stride_8": (2, 40, 8),
    "far_apart": (2, 3, 300),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("count", [3, 9])
def test_is_the_whole_map_sampled(
    count: int, size: tuple[int, int, int], kit: Any, dtype: torch.dtype, layout: str, device: str
) -> None:
    h, w, step = size
    inputs = make(kit, count, (h, w), (step * h, step * w), dtype=dtype, layout=layout, device=device)
    assert_right(ops.sampled_difference_map(*inputs[:4]), inputs)
    assert_right(reference.sampled_difference_map(*inputs[:4]), inputs)


@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 64, 96, 130])
@pytest.mark.parametrize("count", [3, 9])
def test_any_number_of_channels(
    count: int, channels: int, kit: Any, dtype: torch.dtype, native_layout: str, device: str
) -> None:
    inputs = make(kit, count, (3, 21), (12, 84), channels=channels, dtype=dtype, layout=native_layout, device=device)
    assert_right(ops.sampled_difference_map(*inputs[:4]), inputs)


@pytest.mark.parametrize("sizes", [((7, 13), (29, 50)), ((9, 10), (4, 3)), ((5, 5), (5, 8)), ((1, 4), (9, 1))])
def test_nine_maps_go_with_any_size(
    sizes: tuple[tuple[int, int], tuple[int, int]], kit: Any, native_layout: str, device: str
) -> None:
    inputs = make(kit, 9, *sizes, layout=native_layout, device=device)
    assert_right(ops.sampled_difference_map(*inputs[:4]), inputs)


@pytest.mark.parametrize("count", [3, 9])
def test_channels_of_a_larger_map(count: int, kit: Any, dtype: torch.dtype, device: str) -> None:
    """Rows and channels in place, with others between them that must not count: neither as values nor as padding."""
    inputs = make(kit, count, (3, 5), (12, 20), channels=31, dtype=dtype, device=device)
    maps = []
    for x in inputs.features:
        around = x.new_full((2, 2 * x.shape[2], x.shape[3] + 3, 32), float("nan")).permute(0, 3, 1, 2)
        maps.append(around[:, :31, ::2, 1:-2].copy_(x))
    assert_right(ops.sampled_difference_map(maps, *inputs[1:4]), inputs)


def test_maps_may_differ_in_layout(kit: Any, device: str) -> None:
    inputs = make(kit, 3, (3, 5), (12, 20), device=device)
    layouts = ("channels_last", "sliced", "contiguous")
    maps = [kit.lay_out(x, layout) for x, layout in zip(inputs.features, layouts, strict=True)]
    assert_right(ops.sampled_difference_map(maps, *inputs[1:4]), inputs)


@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize("narrowed", ["features", "image", "parameters"])
def test_mixed_dtypes(narrowed: str, count: int, kit: Any, native_layout: str, device: str) -> None:
    """Float32 beside half precision is not rounded."""
    inputs = make(kit, count, (6, 9), (24, 36), layout=native_layout, device=device)
    features, weight, bias, image, _ = inputs
    for half in (torch.bfloat16, torch.float16):
        maps = [x.to(half) if narrowed == "features" else x for x in features]
        others = [x.to(half) if narrowed == "parameters" else x for x in (weight, bias)]
        others.append(image.to(half) if narrowed == "image" else image)
        result = ops.sampled_difference_map(maps, *others)
        wide = [x.double() for x in others]
        expected = reference.sampled_difference_map([x.double() for x in maps], *wide)
        assert_right(result, inputs._replace(expected=expected))


@pytest.mark.parametrize("count", [3, 9])
def test_an_empty_batch(count: int, kit: Any, native_layout: str, device: str) -> None:
    inputs = make(kit, count, (3, 5), (12, 20), layout=native_layout, device=device, batch=0)
    assert ops.sampled_difference_map(*inputs[:4]).shape == (0, 1, 3, 5)


@pytest.mark.parametrize("count", [3, 9])
def test_nan_stays_where_it_is(count: int, kit: Any, native_layout: str, device: str) -> None:
    inputs = make(kit, count, (4, 6), (16, 24), layout=native_layout, device=device)
    inputs.features[1][1, 3, 2, -1] = float("nan")  # three maps: the last sample's right neighbour but one, not seen
    result = ops.sampled_difference_map(*inputs[:4])
    assert result[1, 0, 2, 5].isnan() == (count == 9)
    assert result.isnan().sum() == (count == 9)
    inputs.image[0, 1, 4, 8] = float("nan")
    assert ops.sampled_difference_map(*inputs[:4])[0, 0, 1, 2].isnan()


@pytest.mark.parametrize("count", [3, 9])
def test_reads_in_place(count: int, kit: Any, dtype: torch.dtype, layout: str, device: str) -> None:
    inputs = make(kit, count, (3, 5), (12, 20), dtype=dtype, layout=layout, device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.sampled_difference_map(*inputs[:4])
    names = {event.key for event in profile.key_averages()}
    assert "srtod::sampled_difference_map" in names
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


@pytest.mark.parametrize("count", [3, 9])
def test_bitwise_the_same_with_any_number_of_threads(
    count: int, kit: Any, dtype: torch.dtype, native_layout: str, device: str
) -> None:
    inputs = make(kit, count, (24, 33), (96, 132), channels=33, dtype=dtype, layout=native_layout, device=device)
    first, threads = ops.sampled_difference_map(*inputs[:4]), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(ops.sampled_difference_map(*inputs[:4]), first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [3, 9])
def test_where_a_gradient_is_recorded_the_reference_gives_it(count: int, kit: Any, device: str) -> None:
    features, weight, bias, image, _ = make(kit, count, (2, 3), (8, 12), dtype=torch.float64, device=device, channels=2)
    inputs = [x.requires_grad_() for x in (weight, bias, image, *features)]
    assert torch.autograd.gradcheck(lambda w, b, i, *maps: ops.sampled_difference_map(maps, w, b, i), inputs)
    for needed in inputs:
        given = [x.detach().requires_grad_(x is needed) for x in inputs]
        assert ops.sampled_difference_map(given[3:], *given[:3]).requires_grad
    with torch.no_grad():
        assert not ops.sampled_difference_map(features, weight, bias, image).requires_grad
    with pytest.raises(RuntimeError, match=r"srtod::sampled_difference_map cannot be .* `srtod.ops.use_reference\(\)`"):
        torch.ops.srtod.sampled_difference_map(features, weight, bias, image).sum().backward()


# --- torch's features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 9])
def test_opcheck(count: int, kit: Any, native_layout: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make(kit, count, (3, 5), (12, 20), dtype=dtype, layout=native_layout, device=device)
        torch.library.opcheck(torch.ops.srtod.sampled_difference_map, inputs[:4])


@pytest.mark.parametrize("count", [3, 9])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiles_once_for_all_sizes(count: int, kit: Any, native_layout: str, device: str) -> None:
    targets: set[str] = set()

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        targets.update(str(node.target) for node in graph.graph.nodes)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)
        return compiled

    compiled = torch.compile(ops.sampled_difference_map, backend=backend, fullgraph=True, dynamic=True)
    for h, w, batch in ((5, 7, 2), (6, 9, 3), (10, 8, 4)):
        inputs = make(kit, count, (h, w), (4 * h, 4 * w), layout=native_layout, device=device, batch=batch)
        assert torch.equal(compiled(*inputs[:4]), ops.sampled_difference_map(*inputs[:4]))
    assert {"srtod.sampled_difference_map", "srtod.sampled_difference_map.default"} & targets
    torch._dynamo.reset()


class Sampled(torch.nn.Module):
    """The op as a module, which is what can be exported."""

    def forward(self, features: list[Tensor], weight: Tensor, bias: Tensor, image: Tensor) -> Tensor:
        return ops.sampled_difference_map(features, weight, bias, image)


@pytest.mark.parametrize("count", [3, 9])
def test_export(count: int, kit: Any, device: str) -> None:
    inputs = make(kit, count, (4, 6), (16, 24), device=device)
    h, w = torch.export.Dim("h", min=2), torch.export.Dim("w", min=2)
    of_map = {2: h, 3: 4 * w if count == 3 else w}
    program = torch.export.export(
        Sampled(), tuple(inputs[:4]), dynamic_shapes=([of_map] * count, None, None, {2: 4 * h, 3: 4 * w})
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for other in (inputs, make(kit, count, (9, 5), (36, 20), device=device)):
        assert torch.equal(loaded(*other[:4]), ops.sampled_difference_map(*other[:4]))


def test_autocast_rounds_nothing(kit: Any, device: str) -> None:
    features, weight, bias, image, _ = make(kit, 3, (4, 6), (16, 24), device=device)
    maps = [x.bfloat16() for x in features]
    plain = ops.sampled_difference_map(maps, weight, bias, image)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(ops.sampled_difference_map(maps, weight, bias, image), plain)
        torch.testing.assert_close(reference.sampled_difference_map(maps, weight, bias, image), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("count", [3, 9])
def test_in_a_cuda_graph(count: int, kit: Any, native_layout: str) -> None:
    inputs = make(kit, count, (24, 33), (96, 132), layout=native_layout, device="cuda")
    ops.sampled_difference_map(*inputs[:4])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.sampled_difference_map(*inputs[:4])
    inputs.features[0].mul_(2)
    graph.replay()
    assert torch.equal(result, ops.sampled_difference_map(*inputs[:4]))


# --- bad input --------------------------------------------------------------------------------------------------------


def arguments(device: str, count: int = 3) -> dict[str, Any]:
    """Good ones."""
    shape = (2, 16, 2, 12) if count == 3 else (2, 16, 2, 3)
    return {
        "features": [torch.rand(shape, device=device) for _ in range(count)],
        "weight": torch.rand(3, 16, 3, 3, device=device),
        "bias": torch.rand(3, device=device),
        "image": torch.rand(2, 3, 8, 12, device=device),
    }


@pytest.mark.parametrize("count", [0, 1, 2, 4, 8])
def test_another_number_of_maps(count: int, device: str) -> None:
    with pytest.raises(ValueError, match=rf"^sampled_difference_map: features must be three maps .* got {count}$"):
        ops.sampled_difference_map(**arguments(device) | {"features": arguments(device)["features"][:1] * count})


@pytest.mark.parametrize("count", [3, 9])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("features[0]", (16, 2, 12), r"features\[0\] must have shape \[N, C, h, w\], got \[16, 2, 12\]"),
        ("features[2]", (2, 16, 2, 11), r"features\[2\] must have shape \[2, 16, 2, \d+\], that of features\[0\]"),
        ("features[1]", (2, 16, 0, 12), r"features\[1\] must have shape \[2, 16, 2, \d+\], that of features\[0\]"),
        ("weight", (3, 15, 3, 3), r"weight must have shape \[3, 16, 3, 3\] for 16 channels"),
        ("weight", (3, 16, 1, 1), r"weight must have shape \[3, 16, 3, 3\]"),
        ("bias", (1,), r"bias must have shape \[3\], got \[1\]"),
        ("image", (2, 1, 8, 12), r"image must have shape \[2, 3, H, W\], the features' batch"),
        ("image", (1, 3, 8, 12), r"image must have shape \[2, 3, H, W\], the features' batch"),
        ("image", (2, 3, 0, 12), r"image must .* at least one element"),
    ],
)
def test_shapes(count: int, name: str, shape: tuple[int, ...], message: str, device: str) -> None:
    given = arguments(device, count)
    if name.startswith("features"):
        given["features"][int(name[9])] = torch.rand(shape, device=device)
    else:
        given[name] = torch.rand(shape, device=device)
    with pytest.raises(ValueError, match=f"^sampled_difference_map: {message}"):
        ops.sampled_difference_map(**given)


@pytest.mark.parametrize("image_size", [(7, 12), (9, 12), (8, 11), (8, 16), (10, 12), (1, 12)])
def test_three_maps_go_with_evenly_spaced_samples_alone(image_size: tuple[int, int], device: str) -> None:
    given = arguments(device) | {"image": torch.rand(2, 3, *image_size, device=device)}
    message = r"three maps must have one row for every s rows .* got features\[0\] \[2, 16, 2, 12\] for an image of "
    with pytest.raises(ValueError, match=f"^sampled_difference_map: {message}"):
        ops.sampled_difference_map(**given)
    ops.sampled_difference_map(**given | {"features": arguments(device, 9)["features"]})


def test_dtypes_and_devices(device: str) -> None:
    good = arguments(device)
    for name in ("weight", "bias", "image"):
        with pytest.raises(TypeError, match=f"^sampled_difference_map: {name} must be float16, bfloat16, float32 or"):
            ops.sampled_difference_map(**good | {name: good[name].long()})
        with pytest.raises(ValueError, match=f"^sampled_difference_map: {name} is on meta, but .* to one device$"):
            ops.sampled_difference_map(**good | {name: good[name].to("meta")})
    maps = good["features"]
    for wrong, message in (
        ([maps[0], maps[1].half(), maps[2]], r"features\[1\] must have the dtype of features\[0\], torch.float32, got"),
        ([maps[0], maps[1], maps[2].long()], r"features\[2\] must be float16, bfloat16, float32 or float64, got"),
        ([maps[0], 0.5, maps[2]], r"features\[1\] must be a torch.Tensor, got float"),
        ([x.double() for x in maps], "features and image must both be float64 or neither"),
    ):
        with pytest.raises(TypeError, match=f"^sampled_difference_map: {message}"):
            ops.sampled_difference_map(wrong, good["weight"], good["bias"], good["image"])
    with pytest.raises(ValueError, match=r"^sampled_difference_map: features\[1\] is on meta, but features\[0\] is on"):
        ops.sampled_difference_map(**good | {"features": [maps[0], maps[1].to("meta"), maps[2]]})
    with pytest.raises(TypeError, match=r"^sampled_difference_map: bias must have the weight's dtype"):
        ops.sampled_difference_map(**good | {"bias": good["bias"].half()})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("features", (2, 16, 2, 11), r"expected maps of one shape"),
        ("features", (2, 15, 2, 12), r"expected weight \[3, C, 3, 3\] and bias \[3\]"),
        ("bias", (2,), r"expected weight \[3, C, 3, 3\] and bias \[3\]"),
        ("image", (2, 3, 9, 12), r"three maps must have the image's width"),
        ("image", (2, 3, 1, 12), r"three maps must have the image's width"),
        ("image", (2, 3, 8, 16), r"three maps must have the image's width"),
        ("image", (1, 3, 8, 12), r"expected an image \[N, 3, H, W\] of the maps' batch"),
    ],
)
def test_compiled_op_by_itself_reads_nothing_it_should_not(
    name: str, shape: tuple[int, ...], message: str, device: str
) -> None:
    given = arguments(device)
    wrong = torch.rand(shape, device=device)
    given[name] = [*given["features"][:2], wrong] if name == "features" else wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.srtod.sampled_difference_map(*given.values())
