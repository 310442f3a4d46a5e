"""The convolution by Winograd's way, on CPUs that have it, and where PyTorch's runs in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srtod.ops import reference, use_reference
from srtod.ops.conv3x3 import conv3x3, runs_winograd

if not torch._C._dispatch_has_kernel_for_dispatch_key("srtod::conv3x3", "CPU"):
    pytest.skip("these ops were built without conv3x3", allow_module_level=True)

SIZES = {  # N, C, K, H, W
    "even": (1, 64, 64, 12, 16),
    "odd": (3, 33, 47, 9, 13),  # tiles, channels and filters that no vector divides
    "one_pixel": (2, 32, 40, 1, 1),
    "one_row": (1, 48, 32, 1, 37),
    "some_blocks": (2, 128, 32, 31, 29),
    "many_channels": (1, 520, 36, 5, 6),  # a block is as small as can be
    "empty": (0, 32, 32, 4, 5),
}


def make(n: int, c: int, k: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    features = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    return features.requires_grad_(), (torch.randn(k, c, 3, 3) / 8).requires_grad_()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("needs a CPU with AVX2")
    return make(2, 40, 36, 6, 7)


def assert_close(actual: Tensor, exact: Tensor) -> None:
    """Worst of these cases (AVX-512): 8e-7 of the greatest value."""
    assert actual.dtype == torch.float32
    greatest = float(exact.detach().abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=4e-6 * max(greatest, 1.0))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size: str, relu: bool) -> None:
    """Of the compiled op itself, which runs on every CPU."""
    features, weight = make(*SIZES[size])
    exact_inputs = [x.detach().double().requires_grad_() for x in (features, weight)]
    exact = reference.conv3x3(*exact_inputs, relu=relu)
    output = torch.ops.srtod.conv3x3(features, weight, relu)
    assert_close(output, exact)
    assert output.is_contiguous(memory_format=torch.channels_last)
    for cotangent in (torch.randn(output.shape), torch.randn(output.shape[1:]).expand_as(output)):
        # A pixel at the ReLU's kink may be on either side of it.
        away = cotangent * (exact.detach().abs() > 1e-4)
        gradients = torch.autograd.grad(output, (features, weight), away, retain_graph=True)
        exact_gradients = torch.autograd.grad(exact, exact_inputs, away.double(), retain_graph=True)
        for gradient, expected in zip(gradients, exact_gradients, strict=True):
            assert_close(gradient, expected)


def test_one_gradient_alone(inputs: tuple[Tensor, Tensor]) -> None:
    for k in range(2):
        ours = torch.autograd.grad(conv3x3(*inputs, relu=True).sum(), inputs[k])
        torch.testing.assert_close(ours, torch.autograd.grad(F.conv2d(*inputs, padding=1).relu().sum(), inputs[k]))


@pytest.mark.parametrize("relu", [False, True])
def test_a_bias_is_added(inputs: tuple[Tensor, Tensor], relu: bool) -> None:
    bias = torch.randn(len(inputs[1])).requires_grad_()
    output = conv3x3(*inputs, bias, relu=relu)
    expected = reference.conv3x3(*inputs, bias, relu=relu)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    cotangent = torch.randn(output.shape) * (expected.detach().abs() > 1e-3)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, (*inputs, bias), cotangent) for x in (output, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_second_derivatives(inputs: tuple[Tensor, Tensor]) -> None:
    def second(convolve: Any) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(convolve(*inputs).pow(3).sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs)

    torch.testing.assert_close(second(conv3x3), second(reference.conv3x3), rtol=1e-4, atol=1.0)


def test_pytorch_runs_where_winograd_does_not(inputs: tuple[Tensor, Tensor]) -> None:
    features, weight = inputs
    assert runs_winograd(features, weight)
    others = {
        "layout": (features.contiguous(), weight),
        "dtype": (features.double(), weight.double()),
        "channels": (features[:, :31].contiguous(memory_format=torch.channels_last), weight[:, :31]),
        "filters": (features, weight[:31]),
    }
    for name, other in others.items():
        assert not runs_winograd(*other), name
        assert torch.equal(conv3x3(*other, relu=True), F.conv2d(*other, padding=1).relu()), name
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(*inputs).dtype == torch.bfloat16
    with use_reference():
        assert torch.equal(conv3x3(*inputs), F.conv2d(*inputs, padding=1))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    features, weight = make(2, 64, 64, 40, 33)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(torch.ops.srtod.conv3x3(features, weight, True))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_nan_stays(inputs: tuple[Tensor, Tensor]) -> None:
    features, weight = (x.detach() for x in inputs)
    features[1, 3, 2, 2] = float("nan")
    output = conv3x3(features, weight, relu=True)
    assert output[1, :, 1:4, 1:4].isnan().all()
    assert not output[0].isnan().any()


def test_opcheck_and_compile(inputs: tuple[Tensor, Tensor]) -> None:
    torch.library.opcheck(torch.ops.srtod.conv3x3, (*inputs, True))
    compiled = torch.compile(lambda *x: conv3x3(*x, relu=True), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), conv3x3(*inputs, relu=True))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("features", "weight", "message"),
    [
        (torch.zeros(3, 4, 5), torch.zeros(2, 3, 3, 3), r"features \[N, C, H, W\], float32"),
        (torch.zeros(1, 0, 4, 5), torch.zeros(2, 0, 3, 3), "features .* with channels"),
        (torch.zeros(1, 3, 4, 5).double(), torch.zeros(2, 3, 3, 3), r"features \[N, C, H, W\], float32"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(2, 4, 3, 3), r"weight \[K, C, 3, 3\], float32"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(2, 3, 3, 1), r"weight \[K, C, 3, 3\], float32"),
        (torch.zeros(1, 3, 4, 5), torch.zeros(2, 3, 3, 3).half(), r"weight \[K, C, 3, 3\], float32"),
    ],
)
def test_wrong_tensors_are_refused(features: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"conv3x3: expected {message}"):
        torch.ops.srtod.conv3x3(features, weight, False)
