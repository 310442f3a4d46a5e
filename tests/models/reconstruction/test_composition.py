"""A transposed and a 3x3 convolution as one: the same as both, borders and gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srtod.models import ReconstructionHead
from srtod.models.reconstruction.composition import composed, is_cheaper

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 6), (3, 2), (5, 7)]


def layers(channels: int = 6, out_channels: int = 4) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    torch.manual_seed(0)
    transpose = nn.ConvTranspose2d(channels, out_channels, kernel_size=4, stride=2, padding=1)
    return transpose, nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)


def gradients(out: Tensor, x: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    weights = torch.randn(out.shape, dtype=out.dtype).to(out.device)  # not in the layout of `out`
    before = weights.clone()
    results = torch.autograd.grad(out, [x, *(p for module in modules for p in module.parameters())], weights)
    assert torch.equal(weights, before)  # the gradient given is not ours to change
    return results


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_composed_is_both_steps(
    batch: int, size: tuple[int, int], layout: torch.memory_format, device: torch.device
) -> None:
    transpose, conv = (layer.double().to(device) for layer in layers())
    x = torch.randn(batch, 6, *size).double().contiguous(memory_format=layout).to(device).requires_grad_()
    expected, ours = F.relu(conv(transpose(x))), composed(transpose, conv, x)
    assert 0 < (expected > 0).double().mean() < 1
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(ours, x, transpose, conv), gradients(expected, x, transpose, conv), rtol=1e-11, atol=1e-12
    )


def test_composed_keeps_its_input_and_its_result() -> None:
    transpose, conv = layers(64, 64)
    x = torch.randn(1, 64, 24, 24).requires_grad_()
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        out = composed(transpose, conv, x)
    of_maps = x.nbytes + out.nbytes
    assert of_maps <= sum(kept.values()) < of_maps + 0.5 * out.nbytes + 4 * 64 * 64 * (16 + 9 + 36)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_composed_under_autocast(dtype: torch.dtype) -> None:
    transpose, conv = layers()
    x = torch.randn(2, 6, 5, 7).requires_grad_()
    with torch.autocast("cpu", dtype):
        out = composed(transpose, conv, x)
        two_steps = F.relu(conv(transpose(x)))
    assert out.dtype == dtype
    expected = F.relu(conv(transpose(x)))
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    of = (x, transpose, conv)
    results = (gradients(out.float(), *of), gradients(two_steps.float(), *of), gradients(expected, *of))
    for ours, theirs, exact in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 1.5 * (theirs - exact).norm() + 1e-3 * exact.norm()


def test_the_head_composes_where_that_is_cheaper_and_gradients_are_recorded() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(8).double()
    assert is_cheaper(head.up1.conv1, torch.empty(1, 8, 24, 24))
    assert not is_cheaper(head.up1.conv1, torch.empty(1, 8, 23, 25))
    features = torch.randn(2, 8, 24, 30).double().requires_grad_()
    logits = head.logits(features)
    names = set()
    nodes = [logits.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert "_InterleaveBackward" in names
    with torch.no_grad():
        torch.testing.assert_close(head.logits(features), logits, rtol=1e-12, atol=1e-12)
    x = features
    for up in (head.up1, head.up2):
        x = F.relu(up.conv2(F.relu(up.conv1(up.transpose(x)))))
    torch.testing.assert_close(
        gradients(logits, features, head), gradients(head.out(x), features, head), rtol=1e-10, atol=1e-12
    )


def test_anyone_may_read_an_up_blocks_result() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(8).double()
    x = torch.randn(2, 8, 24, 30).double().requires_grad_()
    up = head.up1
    plain = F.relu(up.conv2(F.relu(up.conv1(up.transpose(x)))))
    ours, expected = up(x), plain
    torch.testing.assert_close(gradients(ours + ours.tanh(), x, up), gradients(expected + expected.tanh(), x, up))
    up(x).sum().backward()  # whose gradient is one number, expanded
