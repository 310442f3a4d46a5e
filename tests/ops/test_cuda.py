"""What only a GPU can show: streams, graphs, several devices, no waiting, memory, huge inputs, agreement with the CPU.

The other tests of this folder run on CUDA as they do on the CPU, see `device` in conftest.py.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from srtod import ops
from srtod.ops import _extension, reference

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

DEVICE = "cuda"
LONG = 500_000_000  # cycles of torch.cuda._sleep: about a quarter of a second


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if not ops.is_fused(DEVICE):
        pytest.skip(f"no compiled ops for {DEVICE} here; `python -m srtod.info` tells why")


@pytest.fixture(params=["0", "1"], ids=["two_launches", "one_launch"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways that DGFE's forward pass can take; without the variable the op goes by size."""
    monkeypatch.setenv("SRTOD_COOPERATIVE", request.param)


def make(
    kit: Any, op: str, layout: str = "contiguous", dtype: torch.dtype = torch.float32, device: str = DEVICE
) -> Any:
    """A case of some blocks, large enough that they share work and small enough for the CPU; other values each time."""
    return kit.case(op, kit.new_sizes(2, 64, 40, 52, 160, 208, 8), dtype, device, layout).require_grad()


def tensors_of(case: Any) -> list[Tensor]:
    """All tensors that the case reads, with gradients or without."""
    return [*case.tensors.values(), *(x for x in case.options.values() if isinstance(x, Tensor))]


def overwrite(case: Any, other: Any) -> None:
    """Copies the values of `other` into the memory of `case`, on the current stream."""
    with torch.no_grad():
        for x, values in zip(tensors_of(case), tensors_of(other), strict=True):
            x.copy_(values)


def moved(case: Any, device: str) -> Any:
    """The same case on another device."""
    options = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in case.options.items()}
    return type(case)(case.op, {name: x.to(device) for name, x in case.tensors.items()}, options).require_grad()


def cotangents_of(case: Any) -> tuple[Tensor, ...]:
    """Random ones for the case's outputs, in their layout."""
    return tuple(torch.randn_like(x) for x in case.run())


def everything(case: Any, cotangents: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and gradients."""
    outputs = case.run()
    return [*outputs, *case.gradients(outputs, cotangents).values()]


def assert_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    """To the bit."""
    for k, (one, other) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(one, other), k


def assert_close(actual: Tensor, expected: Tensor, what: Any = "") -> None:
    """Both rounded once to their dtype, after arithmetic in another order: two units in the last place, or nearly."""
    arithmetic = 2e-12 if expected.dtype == torch.float64 else 2e-5
    if expected.dim() == 0:
        arithmetic *= 10  # a sum over all pixels, whose terms cancel
    scale = expected.nan_to_num().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.to(expected.device),
        expected,
        rtol=max(torch.finfo(expected.dtype).eps, arithmetic),
        atol=arithmetic * scale,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


# --- streams and graphs -----------------------------------------------------------------------------------------------


def test_runs_on_the_current_stream(op: str, kit: Any, launches: None, native_layout: str) -> None:
    """The inputs get their values late, on a stream of their own: an op on any other stream would not wait for them."""
    case, late = make(kit, op, native_layout), make(kit, op, native_layout)
    cotangents = cotangents_of(case)
    expected = everything(case, cotangents)
    everything(late, cotangents)  # so that nothing below waits for memory or initialisation
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        overwrite(late, case)
        results = everything(late, cotangents)
    stream.synchronize()
    assert_equal(results, expected)


def test_graph_capture_and_replay(op: str, kit: Any, launches: None, native_layout: str) -> None:
    """Forward and backward in one graph; replayed with new values in the same memory."""
    static = make(kit, op, native_layout)
    cotangents = cotangents_of(static)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as PyTorch asks for before a capture
        for _ in range(3):
            everything(static, cotangents)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = everything(static, cotangents)
    for _ in range(3):
        other = make(kit, op, native_layout)
        overwrite(static, other)
        for _ in range(3):  # counters that blocks share must be back where they were
            graph.replay()
        assert_equal(results, everything(other, cotangents))


def test_graph_of_inference(kit: Any, launches: None, native_layout: str) -> None:
    static = make(kit, "dgfe", native_layout)
    with torch.no_grad():
        enhanced, features = ops.dgfe(**static.tensors), static.tensors["features"]
        saved = features.clone()
        ops.dgfe_(**static.tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.dgfe_(**static.tensors)
        features.copy_(saved)
        graph.replay()
        assert torch.equal(features, enhanced)


# --- no waiting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _sync_debug_mode_ends() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_sync_debug_mode_ends")
def test_the_host_does_not_wait(op: str, kit: Any, launches: None, native_layout: str) -> None:
    case = make(kit, op, native_layout)
    cotangents = cotangents_of(case)
    everything(case, cotangents)
    torch.cuda.synchronize()
    before = torch.cuda.Event()
    torch.cuda._sleep(LONG)
    before.record()
    torch.cuda.set_sync_debug_mode("error")  # for what PyTorch itself would wait for; the event tells of the rest
    everything(case, cotangents)
    torch.cuda.set_sync_debug_mode("default")
    assert not before.query(), "the ops waited for the GPU, or took a quarter of a second to enqueue"
    torch.cuda.synchronize()


# --- the same in every run --------------------------------------------------------------------------------------------


def test_bitwise_the_same_in_every_run(op: str, kit: Any, launches: None, native_layout: str) -> None:
    """Alone, and while another stream takes multiprocessors away, which changes the order of the blocks."""
    case = make(kit, op, native_layout)
    cotangents = cotangents_of(case)
    first = everything(case, cotangents)
    for _ in range(20):
        assert_equal(everything(case, cotangents), first)
    matrix, busy = torch.randn(2048, 2048, device=DEVICE), torch.cuda.Stream()
    busy.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        with torch.cuda.stream(busy):
            matrix = (matrix @ matrix).clamp(-1, 1)
        assert_equal(everything(case, cotangents), first)
    torch.cuda.synchronize()


@pytest.mark.parametrize("size", ["even", "odd", "one", "long_rows", "many_channels", "empty"])
def test_one_launch_gives_what_two_give(
    size: str, kit: Any, native_layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = kit.case("dgfe", kit.sizes[size], dtype, DEVICE, native_layout).require_grad()
    cotangents = cotangents_of(case)
    results = []
    for cooperative in ("0", "1"):
        monkeypatch.setenv("SRTOD_COOPERATIVE", cooperative)
        results.append(everything(case, cotangents))
    for k, (one, two) in enumerate(zip(*results, strict=True)):
        assert_close(one, two, k)


# --- agreement with the CPU -------------------------------------------------------------------------------------------


def test_agrees_with_the_cpu(op: str, kit: Any, launches: None, native_layout: str, dtype: torch.dtype) -> None:
    """No difference of these inputs is near the threshold, so the filter is the same on both."""
    case = make(kit, op, native_layout, dtype, "cpu")
    cotangents = cotangents_of(case)
    on_gpu = everything(moved(case, DEVICE), tuple(c.to(DEVICE) for c in cotangents))
    for k, (ours, theirs) in enumerate(zip(on_gpu, everything(case, cotangents), strict=True)):
        assert_close(ours, theirs, k)


# --- memory -----------------------------------------------------------------------------------------------------------


def extra_memory(function: Callable[[], Any]) -> int:
    """Bytes that it has at most beyond what there is before, results included."""
    function()  # workspaces are allocated once
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = function()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    del kept
    return extra


def test_in_place_dgfe_allocates_no_map(kit: Any, launches: None, native_layout: str) -> None:
    case = kit.case("dgfe", kit.new_sizes(2, 256, 128, 128, 512, 512, 16), device=DEVICE, layout=native_layout)
    p2_bytes = case.tensors["features"].numel() * 4
    assert extra_memory(lambda: ops.dgfe_(**case.tensors)) < p2_bytes / 8
    assert extra_memory(lambda: ops.dgfe(**case.tensors)) < p2_bytes * 9 / 8


# --- more than 2^31 bytes, and more than 2^31 elements ----------------------------------------------------------------


def need_memory(count: int) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < count:
        pytest.skip(f"needs {count / 2**30:.0f} GiB of free GPU memory, there are {free / 2**30:.0f}")


def random_map(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Drawn in place: no second map."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return torch.empty(shape, dtype=dtype, device=DEVICE, memory_format=formats[layout]).normal_()


def assert_dgfe_of_sample(n: int, inputs: tuple[Tensor, ...], output: Tensor, cotangent: Tensor, grad: Tensor) -> None:
    """Output and gradient of the features for one sample, in float64 and channel by channel.

    The reference would need ten times the memory. Here it sees two pixels a channel whose average and maximum are the
    map's: so it gives the channel weights and their derivatives by both.
    """
    features, difference, threshold, *mlp = inputs
    planes, grads = features[n].detach(), cotangent[n]
    filter_ = reference.filtration(difference[n : n + 1], threshold, (planes.shape[1], planes.shape[2]))[0, 0].double()
    average = torch.stack([plane.double().mean() for plane in planes]).requires_grad_()
    maximum = torch.stack([plane.double().max() for plane in planes]).requires_grad_()
    two_pixels = torch.stack([maximum, 2 * average - maximum], dim=1)[None, :, None]
    weight = reference.channel_reweighting(two_pixels, *mlp).flatten()
    by_weight = [(g.double() * plane.double() * filter_).sum() for g, plane in zip(grads, planes, strict=True)]
    by_average, by_maximum = torch.autograd.grad(weight, (average, maximum), torch.stack(by_weight))
    weight = weight.detach()
    for c, (plane, g) in enumerate(zip(planes, grads, strict=True)):
        scale = weight[c] * filter_
        assert_close(output[n, c], (plane.double() * scale).to(output.dtype), f"output [{n}, {c}]")
        expected = g.double() * scale + by_average[c] / plane.numel()
        expected.view(-1)[plane.flatten().argmax()] += by_maximum[c]
        assert_close(grad[n, c], expected.to(grad.dtype), f"gradient [{n}, {c}]")


@pytest.mark.parametrize(
    ("shape", "dtype", "samples"),
    [
        pytest.param((9, 256, 512, 512), torch.float32, (0, 7, 8), id="bytes"),
        pytest.param((33, 256, 512, 512), torch.bfloat16, (0, 31, 32), id="elements"),
        pytest.param((1, 256, 2900, 2900), torch.bfloat16, (0,), id="elements_of_one_sample"),
    ],
)
def test_dgfe_beyond_32_bits(
    shape: tuple[int, ...], dtype: torch.dtype, samples: tuple[int, ...], kit: Any, launches: None, native_layout: str
) -> None:
    batch, channels, height, width = shape
    count = batch * channels * height * width * (2 if dtype == torch.bfloat16 else 4)
    assert count > 2**31
    need_memory(5 * count)
    small = kit.case("dgfe", kit.new_sizes(1, channels, 2, 2, 2, 2, 16), device=DEVICE).tensors
    difference = torch.randint(0, 64, (batch, 1, height, width), device=DEVICE) / 1024
    parameters = (small["threshold"], *(small[name] for name in ("weight1", "bias1", "weight2", "bias2")))
    inputs = (random_map(shape, dtype, native_layout).requires_grad_(), difference, *parameters)
    output = ops.dgfe(*inputs)
    cotangent = random_map(shape, dtype, native_layout)
    (gradient,) = torch.autograd.grad(output, inputs[0], cotangent)
    for n in samples:
        assert_dgfe_of_sample(n, inputs, output.detach(), cotangent, gradient)


def test_reconstruction_difference_beyond_32_bits(native_layout: str) -> None:
    shape = (180, 3, 2000, 2000)
    need_memory(5 * 2 * 180 * 3 * 2000 * 2000)
    reconstruction = random_map(shape, torch.bfloat16, native_layout).requires_grad_()
    image = random_map(shape, torch.bfloat16, native_layout)
    assert image.numel() > 2**31
    difference, mse = ops.reconstruction_difference(reconstruction, image)
    cotangents = (random_map((180, 1, 2000, 2000), torch.bfloat16, "contiguous"), mse.new_tensor(float(image.numel())))
    (gradient,) = torch.autograd.grad((difference, mse), reconstruction, cotangents)
    squares = torch.zeros((), dtype=torch.float64, device=DEVICE)
    for n in range(180):
        sample = reconstruction[n : n + 1].detach().double().requires_grad_()
        expected = reference.difference_map(sample, image[n : n + 1].double())
        square = (sample - image[n : n + 1].double()).square().sum()
        squares += square.detach()
        if n in (0, 90, 178, 179):
            assert_close(difference[n : n + 1].detach(), expected.detach().bfloat16(), f"difference {n}")
            (by_sample,) = torch.autograd.grad((expected, square), sample, (cotangents[0][n : n + 1].double(), None))
            assert_close(gradient[n : n + 1], by_sample.bfloat16(), f"gradient {n}")
    torch.testing.assert_close(mse.detach().double(), squares / image.numel(), rtol=1e-5, atol=0)


# --- devices, bad input, architectures --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_device_of_its_tensors(op: str, kit: Any, launches: None, native_layout: str) -> None:
    case = make(kit, op, native_layout, device="cuda:0")
    cotangents = cotangents_of(case)
    with torch.cuda.device(0):
        results = everything(moved(case, "cuda:1"), tuple(c.to("cuda:1") for c in cotangents))
        assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device("cuda", 1) for x in results)
    for ours, theirs in zip(results, everything(case, cotangents), strict=True):
        assert_close(ours, theirs)


def test_mixed_devices_are_named(op: str, kit: Any) -> None:
    case = kit.case(op, device=DEVICE)
    first = next(iter(case.tensors))
    for name in list(case.tensors)[1:]:
        mixed = {**case.tensors, name: case.tensors[name].cpu()}
        with pytest.raises(ValueError, match=f"^{op}: {name} is on cpu, but {first} is on cuda:0; move both to one"):
            getattr(ops, op)(**mixed, **case.options)


def test_bad_input_gets_the_sentence_of_the_cpu(op: str, kit: Any) -> None:
    on_gpu = kit.case(op, device=DEVICE)
    on_cpu = moved(on_gpu, "cpu")
    spoilers: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.long(),
        lambda x: x[None],
        lambda x: x.flatten()[:1],
    ]
    for name in on_gpu.tensors:
        for spoil in spoilers:
            said = []
            for case in (on_gpu, on_cpu):
                bad = {**case.tensors, name: spoil(case.tensors[name].detach())}
                with pytest.raises((TypeError, ValueError)) as caught:
                    getattr(ops, op)(**bad, **case.options)
                said.append((caught.type, str(caught.value)))
            assert said[0] == said[1]


@pytest.fixture
def _asks_anew() -> Iterator[None]:
    caches = (_extension._why_gpu_lacks_code, _extension._warn_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("_asks_anew")
def test_a_gpu_that_was_not_compiled_for_is_explained(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    monkeypatch.setattr(_extension, "build_info", lambda: {"architectures": "8.0;9.0+PTX"})
    case = kit.case("dgfe", device=DEVICE)
    assert not ops.is_fused(DEVICE)
    with pytest.warns(
        RuntimeWarning, match=r"compiled for the GPU architectures 8.0;9.0\+PTX, and .* is 6.1; with TORCH"
    ):
        (output,) = case.run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        case.run()
    assert torch.equal(output, case.specified()[0])


# --- launches ---------------------------------------------------------------------------------------------------------


def kernels_in(function: Callable[[], Any]) -> int:
    """How many of srtod's kernels `function` launches."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "srtod::" in event.key)


@pytest.mark.parametrize(("cooperative", "forward"), [("1", 1), ("0", 2)])
def test_number_of_launches(
    cooperative: str, forward: int, kit: Any, native_layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One or two forward, two backward."""
    monkeypatch.setenv("SRTOD_COOPERATIVE", cooperative)
    case = make(kit, "dgfe", native_layout)
    cotangents = cotangents_of(case)
    assert kernels_in(case.run) == forward
    assert kernels_in(lambda: everything(case, cotangents)) == forward + 2


def test_one_launch_or_two_is_asked_for_clearly(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRTOD_COOPERATIVE", "maybe")
    with pytest.raises(RuntimeError, match="SRTOD_COOPERATIVE must be 0, 1 or unset, got maybe"):
        make(kit, "dgfe").run()
