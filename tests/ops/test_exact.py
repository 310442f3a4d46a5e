"""What must hold to the bit: the step and its tie, resize indices, NaN, storage conversions, the authors' behaviour."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srtod import ops
from srtod.ops import reference
from srtod.ops.surrogate import RESIZES, SURROGATES


def binarised(difference: Tensor, threshold: Tensor) -> Tensor:
    """The authors' expression."""
    return (torch.sign(difference - threshold) + 1) * 0.5


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_step_and_its_tie(surrogate: str, dtype: torch.dtype, device: str) -> None:
    threshold = torch.tensor(1 / 64, dtype=dtype, device=device)
    around = [torch.nextafter(threshold, threshold.new_tensor(limit)) for limit in (0.0, 1.0)]
    zeros = threshold.new_tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf")])
    difference = torch.cat([threshold[None], torch.stack(around), zeros])
    expected = difference.new_tensor([1.5, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    for resize in RESIZES:
        result = ops.filtration(
            difference.reshape(1, 1, 1, -1), threshold, (1, difference.numel()), resize=resize, surrogate=surrogate
        )
        assert torch.equal(result.flatten(), expected)
    at_zero = ops.filtration(zeros[:2].reshape(1, 1, 1, 2), threshold * 0, (1, 2), surrogate=surrogate)
    assert torch.equal(at_zero.flatten(), difference.new_tensor([1.5, 1.5]))


def assert_same_nearest_index(input_size: tuple[int, int], output_size: tuple[int, int], device: str) -> None:
    """Forward on a random pattern, and backward, whose counts tell where each output came from.

    PyTorch's gradient is the CPU's: on CUDA it rounds indices up on the way back, which is not always the inverse of
    its forward pass (`test_pytorchs_nearest_gradient_on_cuda_is_no_oracle`).
    """
    theirs = torch.randint(0, 2, (1, 1, *input_size)).float().requires_grad_()
    pattern = theirs.detach().to(device)
    ours = pattern.clone().requires_grad_()
    half = torch.tensor(0.5, device=device)
    result = ops.filtration(ours, half, output_size, resize="nearest", surrogate="ste", difference_gradient=True)
    expected = F.interpolate(theirs, size=output_size, mode="nearest")
    assert torch.equal(result.cpu(), expected + 1), (input_size, output_size)
    assert torch.equal(F.interpolate(pattern, size=output_size, mode="nearest").cpu(), expected)
    result.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad.cpu(), theirs.grad), (input_size, output_size)
    assert torch.equal(ops.filtration(pattern.double(), half, output_size, resize="nearest"), result.double())
    assert torch.equal(reference.nearest(pattern.double(), output_size).cpu(), expected.double())


def test_pytorchs_nearest_gradient_on_cuda_is_no_oracle() -> None:
    """upsample_nearest2d's CUDA kernel gives input i the outputs from ceil(i s) to ceil((i + 1) s), s = out / in.

    Forward that is so for most sizes of `test_nearest_index_of_all_small_sizes`, but not for all.
    """

    def is_inverse(inputs: int, outputs: int) -> bool:
        forward = F.interpolate(torch.arange(float(inputs))[None, None], outputs, mode="nearest").flatten()
        scale = torch.tensor(float(outputs)) / torch.tensor(float(inputs))
        ends = (torch.arange(inputs + 1) * scale).ceil().clamp(max=outputs).long()
        return torch.equal(ends.diff(), torch.bincount(forward.long(), minlength=inputs))

    pairs = itertools.product(range(1, 49), repeat=2)
    wrong = [(i, o) for i, o in pairs if not (is_inverse(i, o) and is_inverse(o + 3, i + 5))]
    assert (42, 6) in wrong
    assert len(wrong) == 73


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((800, 800), (200, 200)),
        ((736, 1280), (184, 320)),
        ((1088, 1920), (272, 480)),
        ((749, 1333), (188, 334)),
        ((1080, 1919), (270, 479)),
        ((641, 1), (1283, 7)),
        ((3, 65537), (1, 21846)),
        ((1, 1000003), (2, 333337)),
    ],
)
def test_nearest_index_of_large_sizes(inputs: tuple[int, int], outputs: tuple[int, int], device: str) -> None:
    assert_same_nearest_index(inputs, outputs, device)


def test_other_resizes_are_those_of_pytorch_on_the_binarised_map(layout: str, kit: Any, device: str) -> None:
    threshold = torch.tensor(0.5, device=device)
    pairs = [
        ((8, 12), (2, 3)),
        ((7, 13), (3, 5)),
        ((5, 4), (9, 11)),
        ((1, 1), (3, 2)),
        ((39, 50), (1, 1)),
        ((6, 6), (6, 6)),
    ]
    for (height, width), size in pairs:
        difference = kit.lay_out(torch.randint(0, 5, (2, 1, height, width)).to(device) / 4, layout)
        steps = binarised(difference, threshold)
        of = {resize: ops.filtration(difference, threshold, size, resize=resize) for resize in RESIZES}
        assert torch.equal(of["max"], F.adaptive_max_pool2d(steps, size) + 1)
        torch.testing.assert_close(of["area"], F.adaptive_avg_pool2d(steps, size) + 1, rtol=1e-6, atol=0)
        bilinear = F.interpolate(steps, size=size, mode="bilinear", align_corners=False) + 1
        torch.testing.assert_close(of["bilinear"], bilinear, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_uniform_maps_stay_uniform_under_every_resize(value: float, device: str) -> None:
    threshold = torch.tensor(0.5, device=device)
    for size in (1, 2, 7, 39, 100):
        difference = torch.full((1, 1, size, size + 1), value, device=device)
        for resize in RESIZES:
            result = ops.filtration(difference, threshold, (3, 5), resize=resize)
            torch.testing.assert_close(result, torch.full_like(result, 1 + value), rtol=5e-7, atol=0)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("where", ["features", "difference", "threshold", "weight1", "cotangent"])
def test_nan_spreads_as_in_the_reference(
    where: str, resize: str, kit: Any, native_layout: str, dtype: torch.dtype, device: str
) -> None:
    for size in ("odd", "long_rows"):
        case = kit.case("dgfe", kit.sizes[size], dtype, device, native_layout, resize=resize)
        cotangent = torch.randn_like(case.tensors["features"])
        spoil(case.tensors.get(where, cotangent), float("nan"))
        case.require_grad()
        ours, theirs = case.run(), case.specified()
        pairs = {"output": (ours[0], theirs[0])}
        expected = case.gradients(theirs, (cotangent,))
        for name, gradient in case.gradients(ours, (cotangent,)).items():
            pairs[name] = (gradient, expected[name])
        for name, (actual, exact) in pairs.items():
            assert torch.equal(actual.isnan(), exact.isnan()), (name, size)
            tolerance = max(torch.finfo(actual.dtype).eps, 1e-4)
            scale = exact.nan_to_num(0).abs().max().item() if exact.numel() else 0
            torch.testing.assert_close(actual, exact, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["features", "difference", "threshold", "weight1"])
def test_infinity_spreads_as_in_the_reference(
    where: str, value: float, kit: Any, native_layout: str, device: str
) -> None:
    for size in ("odd", "long_rows"):
        case = kit.case("dgfe", kit.sizes[size], device=device, layout=native_layout)
        spoil(case.tensors[where], value)
        (ours,), (theirs,) = case.run(), case.specified()
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        torch.testing.assert_close(ours[ours.isfinite()], theirs[ours.isfinite()], rtol=1e-5, atol=1e-6)


def spoil(x: Tensor, value: float) -> None:
    """Writes `value` at two random positions, into any strides."""
    for _ in range(2):
        x[tuple(int(torch.randint(0, size, ())) for size in x.shape)] = value


def test_infinities_of_both_signs_in_one_channel(kit: Any, native_layout: str, device: str) -> None:
    """Their sum is NaN, their maximum is not."""
    case = kit.case("channel_reweighting", device=device, layout=native_layout)
    case.tensors["features"][0, 0, 0, 0] = -float("inf")
    case.tensors["features"][0, 0, 2, 1] = float("inf")
    _, average, maximum, argmax, _ = torch.ops.srtod.channel_reweighting(*case.tensors.values())
    assert average[0, 0].isnan()
    assert maximum[0, 0] == float("inf")
    assert argmax[0, 0] == 2 * 12 + 1


@pytest.mark.parametrize("from_logits", [False, True])
def test_nan_in_images(from_logits: bool, kit: Any, layout: str, device: str) -> None:
    """NaN in the padding stays out of the loss; anywhere it shows in the difference map."""
    case = kit.case("reconstruction_difference", device=device, layout="contiguous", from_logits=from_logits)
    case.options["valid_size"] = torch.tensor([[20, 30], [32, 48]], device=device)
    case.tensors["image"][0, 1, 25, 40] = float("nan")
    case.tensors["reconstruction"][1, :, 3, 3] = float("inf")
    case.tensors = {name: kit.lay_out(x, layout) for name, x in case.tensors.items()}
    (ours, mse), (theirs, expected) = case.run(), case.specified()
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(mse, expected, equal_nan=True)
    assert ours[0, 0, 25, 40].isnan()


@pytest.mark.parametrize("valid", [[[0, 5]], [[-3, 5]], [[3, 0]], [[99, 99]], [[2, 99]]])
def test_valid_sizes_beyond_the_image(valid: list[list[int]], device: str) -> None:
    reconstruction = torch.rand(1, 3, 4, 5, device=device, requires_grad=True)
    image, valid_size = torch.rand(1, 3, 4, 5, device=device), torch.tensor(valid, device=device)
    gradients = []
    for module in (ops, reference):
        _, mse = module.reconstruction_difference(reconstruction, image, valid_size=valid_size)
        gradients.append((mse, *torch.autograd.grad(mse, reconstruction)))
    torch.testing.assert_close(gradients[0], gradients[1], equal_nan=True)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_every_half_value_is_read_and_written_exactly(half: torch.dtype, device: str) -> None:
    """All 65536 bit patterns: |x - 0| in one channel is |x|; |x - y| is rounded once, to even at ties."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(half).reshape(1, 1, 128, 512).to(device)
    difference = ops.difference_map(x, torch.zeros_like(x))
    torch.testing.assert_close(difference, x.abs(), rtol=0, atol=0, equal_nan=True)
    for _ in range(4):
        y = x.flatten()[torch.randperm(x.numel())].reshape(x.shape)
        expected = (x.float() - y.float()).abs().to(half)
        torch.testing.assert_close(ops.difference_map(x, y), expected, rtol=0, atol=0, equal_nan=True)
        strided = ops.difference_map(x.transpose(2, 3), y.transpose(2, 3))
        torch.testing.assert_close(strided, expected.transpose(2, 3), rtol=0, atol=0, equal_nan=True)


class AuthorsDGFE(nn.Module):
    """The paper's formulas in the form of its release: full-map pools, repeated masks, one operation at a time."""

    def __init__(self, ours: ops.DGFE) -> None:
        super().__init__()
        self.threshold = nn.Parameter(ours.threshold.detach().clone())
        self.fc1 = nn.Linear(ours.fc1.in_features, ours.fc1.out_features)
        self.fc2 = nn.Linear(ours.fc2.in_features, ours.fc2.out_features)
        self.load_state_dict(ours.state_dict())

    def forward(self, features: Tensor, difference: Tensor) -> Tensor:
        height, width = features.shape[2:]
        mask = (torch.sign(difference - self.threshold) + 1) * 0.5
        mask = F.interpolate(mask, size=(height, width), mode="nearest") + 1
        attention = torch.zeros(1, device=features.device)
        for pool in (F.avg_pool2d, F.max_pool2d):
            pooled = pool(features, (height, width), stride=(height, width)).flatten(1)
            attention = attention + self.fc2(F.relu(self.fc1(pooled)))
        scale = torch.sigmoid(attention).unsqueeze(2).unsqueeze(3).expand_as(features)
        return torch.mul(features * scale, mask.repeat(1, features.shape[1], 1, 1))


def test_surrogate_none_is_the_authors_formulation(kit: Any, native_layout: str, device: str) -> None:
    ours = ops.DGFE(32, 8, surrogate="none", threshold=1 / 64).to(device)
    authors = AuthorsDGFE(ours).to(device)
    features = kit.lay_out(torch.randn(2, 32, 13, 11, device=device), native_layout)
    difference = torch.randint(0, 64, (2, 1, 52, 44), device=device) / 1024
    results = []
    for module in (ours, authors):
        x = features.detach().requires_grad_()
        output = module(x, difference)
        output.square().sum().backward()
        weights = (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
        results.append([output, x.grad, module.threshold.grad, *(w.grad for w in weights)])
    assert results[0][2] == results[1][2] == 0
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-6, atol=0)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
