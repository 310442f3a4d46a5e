"""The reconstruction head: structure, order of parameters, sizes."""

import pytest
import torch
import torch.nn.functional as F

from srtod import ops
from srtod.models import ReconstructionHead
from srtod.models.reconstruction.strips import strips
from srtod.ops.reference import nearest


def test_parameter_count_and_order() -> None:
    head = ReconstructionHead(256)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_025_923
    assert [(name, tuple(parameter.shape)) for name, parameter in head.named_parameters()] == [
        ("up1.transpose.weight", (256, 128, 4, 4)),
        ("up1.transpose.bias", (128,)),
        ("up1.conv1.weight", (128, 128, 3, 3)),
        ("up1.conv2.weight", (128, 128, 3, 3)),
        ("up2.transpose.weight", (128, 64, 4, 4)),
        ("up2.transpose.bias", (64,)),
        ("up2.conv1.weight", (64, 64, 3, 3)),
        ("up2.conv2.weight", (64, 64, 3, 3)),
        ("out.weight", (3, 64, 3, 3)),
        ("out.bias", (3,)),
    ]


def test_forward_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(8)
    features = torch.randn(2, 8, 5, 7)
    w = list(head.parameters())
    x = F.conv_transpose2d(features, w[0], w[1], stride=2, padding=1)
    x = F.conv2d(F.conv2d(x, w[2], padding=1).relu(), w[3], padding=1).relu()
    x = F.conv_transpose2d(x, w[4], w[5], stride=2, padding=1)
    x = F.conv2d(F.conv2d(x, w[6], padding=1).relu(), w[7], padding=1).relu()
    logits = F.conv2d(x, w[8], w[9], padding=1)
    torch.testing.assert_close(head.logits(features), logits)
    torch.testing.assert_close(head(features), logits.sigmoid())


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_size_follows_scale(scale: int) -> None:
    reconstruction = ReconstructionHead(16, scale)(torch.randn(2, 16, 3, 5))
    assert reconstruction.shape == (2, 3, 3 * scale, 5 * scale)
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1


@pytest.mark.parametrize("scale", [0, 1, 3, 6, -4])
def test_scale_must_be_a_power_of_two(scale: int) -> None:
    with pytest.raises(ValueError, match="scale must be a power of two above 1"):
        ReconstructionHead(256, scale)


@pytest.mark.parametrize("channels", [0, 2, 30, -4])
def test_channels_must_be_divisible_by_scale(channels: int) -> None:
    with pytest.raises(ValueError, match="in_channels must be a positive multiple of scale=4"):
        ReconstructionHead(channels)


@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 4, 4, 4)])
def test_features_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects features \[N, 8, h, w\]"):
        ReconstructionHead(8)(torch.zeros(shape))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("cut", [(0, 0), (1, 2), (3, 1)])
def test_predicted_samples_are_what_a_nearest_resize_takes(
    scale: int, cut: tuple[int, int], layout: torch.memory_format, device: torch.device
) -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(16, scale).double().to(device)
    for height, width in ((1, 1), (1, 5), (4, 3), (7, 9)):
        features = torch.randn(2, 16, height, width).double().contiguous(memory_format=layout).to(device)
        image = torch.rand(2, 3, max(scale * height - cut[0], 1), max(scale * width - cut[1], 1)).double().to(device)
        with torch.no_grad():
            logits, sampled = head.predict(features, image), head.predict_samples(features, image)
        torch.testing.assert_close(sampled, nearest(logits, (height, width)), rtol=1e-12, atol=1e-12)


def test_gradients_of_predicted_samples_are_those_of_the_whole_map() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(16).double()
    features, image = torch.randn(2, 16, 6, 5).double().requires_grad_(), torch.rand(2, 3, 24, 20).double()
    weights = torch.randn(2, 3, 6, 5).double()
    ours = torch.autograd.grad((head.predict_samples(features, image) * weights).sum(), [features, *head.parameters()])
    whole = nearest(head.predict(features, image), (6, 5))
    expected = torch.autograd.grad((whole * weights).sum(), [features, *head.parameters()])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_winograd_agrees_and_leaves_the_logits_alone() -> None:
    """Of a head whose blocks have enough channels for it."""
    torch.manual_seed(0)
    head = ReconstructionHead(128)
    features, image = torch.randn(2, 128, 9, 7), torch.rand(2, 3, 36, 28)
    (strip,) = strips(features)
    calls = {
        "predict": lambda: head.predict(features, image),
        "predict_strip": lambda: head.predict_strip(features, strip),
        "predict_samples": lambda: head.predict_samples(features, image),
    }
    for name, call in calls.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ours = torch.autograd.grad(call().square().mean(), [*head.parameters()])
        used = "srtod::conv3x3" in {event.key for event in profile.key_averages()}
        assert used == (torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")), name
        with ops.use_reference():
            expected = torch.autograd.grad(call().square().mean(), [*head.parameters()])
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    logits = head.logits(features)
    with ops.use_reference():
        assert torch.equal(logits, head.predict(features, image))
