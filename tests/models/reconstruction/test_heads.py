"""The heads beside the paper's: subpixel and resampled; and what all heads share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srtod.models import ReconstructionHead, SelfReconstruction, SubpixelHead
from srtod.models.reconstruction import ResampledImage
from srtod.ops.reference import nearest


def make(kind: str, scale: int) -> nn.Module:
    torch.manual_seed(0)
    if kind == "resampled":
        return ResampledImage(scale)
    return (ReconstructionHead if kind == "paper" else SubpixelHead)(16, scale).double()


def test_subpixel_head_is_its_formula() -> None:
    head = SubpixelHead(10, 4).double()
    assert [(name, tuple(parameter.shape)) for name, parameter in head.named_parameters()] == [
        ("conv.weight", (64, 10, 3, 3)),
        ("conv.bias", (64,)),
        ("out.weight", (48, 64, 3, 3)),
        ("out.bias", (48,)),
    ]
    nn.init.normal_(head.out.weight)
    nn.init.normal_(head.out.get_parameter("bias"))
    features = torch.randn(2, 10, 5, 7).double()
    blocks = head.out(head.conv(features).relu())
    logits = head.logits(features)
    assert logits.shape == (2, 3, 20, 28)
    for colour, y, x in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        torch.testing.assert_close(logits[:, colour, y::4, x::4], blocks[:, 16 * colour + 4 * y + x])
    torch.testing.assert_close(head(features), logits.sigmoid())


def test_subpixel_head_starts_without_a_checkerboard() -> None:
    logits = SubpixelHead(16, 4).logits(torch.randn(1, 16, 3, 5))
    torch.testing.assert_close(logits, F.interpolate(logits[..., ::4, ::4], scale_factor=4, mode="nearest"))
    assert logits.std() > 0.1


def test_resampled_image_is_exact_where_nothing_is_lost() -> None:
    head = ResampledImage(4)
    flat = torch.rand(1, 3, 1, 1).expand(1, 3, 8, 12)
    torch.testing.assert_close(head.predict(torch.zeros(1, 1, 2, 3), flat), flat)
    image = flat.clone()
    image[..., 5, 6] = 1 - image[..., 5, 6].round()  # one pixel, far from its surroundings
    difference = (head.predict(torch.zeros(1, 1, 2, 3), image) - image).abs().mean(1)
    assert difference.argmax() == 5 * 12 + 6
    assert not list(head.parameters())


@pytest.mark.parametrize("cut", [(0, 0), (1, 2)])
@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("kind", ["paper", "subpixel", "resampled"])
def test_samples_are_those_of_the_whole_prediction(kind: str, scale: int, cut: tuple[int, int]) -> None:
    head = make(kind, scale)
    for height, width in ((1, 1), (3, 5)):
        features = torch.randn(2, 16, height, width).double()
        image = torch.rand(2, 3, max(scale * height - cut[0], 1), max(scale * width - cut[1], 1)).double()
        with torch.no_grad():
            whole, samples = head.predict(features, image), head.predict_samples(features, image)
        assert whole.shape == image.shape
        torch.testing.assert_close(samples, nearest(whole, (height, width)))


@pytest.mark.parametrize("kind", ["paper", "subpixel"])
def test_logits_stay_in_float32_under_autocast(kind: str) -> None:
    head = make(kind, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert head.logits(torch.randn(1, 16, 2, 3)).dtype == torch.float32
        assert head.predict_samples(torch.randn(1, 16, 2, 3), torch.rand(1, 3, 8, 12)).dtype == torch.float32


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"SubpixelHead expects features \[N, 16, h, w\], got \[1, 8, 2, 2\]"):
        SubpixelHead(16)(torch.zeros(1, 8, 2, 2))
    with pytest.raises(ValueError, match="scale and in_channels must be positive, got 0 and 16"):
        SubpixelHead(16, 0)
    # A level with channels that the paper's head cannot halve suits the subpixel head.
    with pytest.raises(ValueError, match="in_channels must be a positive multiple of scale=4"):
        SelfReconstruction(18, enhancement="dgfe", reduction=6, reconstruction="paper")
    SelfReconstruction(18, enhancement="dgfe", reduction=6, reconstruction="subpixel")
