"""The plug between neck and head: loss, padding, sizes, threshold, in-place form."""

import pytest
import torch

from srtod.models import SelfReconstruction
from srtod.ops import reference


def make(**options: object) -> SelfReconstruction:
    torch.manual_seed(0)
    return SelfReconstruction(16, **options)  # type: ignore[arg-type]


def example(height: int = 24, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 16, -(-height // 4), -(-width // 4), generator=generator)
    return features, torch.rand(2, 3, height, width, generator=generator)


def test_output_is_the_reference_formula() -> None:
    module = make(surrogate="none", threshold=0.25)
    features, image = example()
    enhanced, output = module(features, image)
    logits = module.reconstruction_head.logits(features)
    difference, loss = reference.reconstruction_difference(logits, image, from_logits=True)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.difference, difference)
    torch.testing.assert_close(output.reconstruction, module.reconstruction_head(features))
    threshold, *mlp = module.dgfe.parameters()
    expected = reference.dgfe(features, difference, threshold, *mlp, surrogate="none")
    assert torch.equal(enhanced, expected) or torch.allclose(enhanced, expected, rtol=1e-6, atol=1e-6)
    filter_ = module.filter(output.difference, (6, 8))
    assert filter_.shape == (2, 1, 6, 8)
    assert set(filter_.unique().tolist()) == {1.0, 2.0}


def test_loss_leaves_padding_out_unless_asked() -> None:
    features, image = example()
    sizes = [(24, 32), (13, 17)]
    image[1, :, 13:] = 0
    image[1, :, :, 17:] = 0
    masked, paper = make(), make(padding_in_loss=True)
    squared = (masked.reconstruction_head(features) - image).square()
    valid = torch.cat([squared[0].flatten(), squared[1, :, :13, :17].flatten()])
    torch.testing.assert_close(masked(features, image, sizes)[1].loss, valid.mean())
    torch.testing.assert_close(paper(features, image, sizes)[1].loss, squared.mean())
    changed = image.clone()
    changed[1, :, 20:] = 1
    assert torch.equal(masked(features, changed, sizes)[1].loss, masked(features, image, sizes)[1].loss)
    assert paper(features, changed, sizes)[1].loss != paper(features, image, sizes)[1].loss


@pytest.mark.parametrize("size", [(24, 32), (21, 30), (1, 1), (23, 4)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    features, image = example(*size)
    enhanced, output = make()(features, image)
    assert enhanced.shape == features.shape
    assert output.difference.shape == (2, 1, *size)
    assert output.reconstruction.shape == image.shape


def test_stride_eight() -> None:
    enhanced, output = make(scale=8)(torch.randn(1, 16, 3, 4), torch.rand(1, 3, 24, 32))
    assert enhanced.shape == (1, 16, 3, 4)
    assert output.logits.shape == (1, 3, 24, 32)


@pytest.mark.parametrize("surrogate", ["none", "ste", "sigmoid", "atan", "triangle", "rect"])
def test_gradients(surrogate: str) -> None:
    module = make(surrogate=surrogate, threshold=0.25)
    features, image = example()
    features.requires_grad_()
    enhanced, _ = module(features, image)
    (enhanced * torch.linspace(-1, 2, enhanced.numel()).view_as(enhanced)).sum().backward()
    learns = surrogate != "none"  # the authors' zero gradient reaches neither the threshold nor the head
    assert bool(module.dgfe.threshold.grad) == learns
    head = module.reconstruction_head.out.weight.grad
    assert (head is not None and bool(head.any())) == learns
    assert features.grad is not None
    assert features.grad.any()


def test_loss_reaches_the_features() -> None:
    module = make()
    features, image = example()
    features.requires_grad_()
    module(features, image)[1].loss.backward()
    assert features.grad is not None
    assert features.grad.any()


def test_threshold_name_and_value() -> None:
    name = [name for name, parameter in make(threshold=3 / 255).named_parameters() if parameter.dim() == 0]
    assert name == ["dgfe.threshold"]
    assert make(threshold=3 / 255).dgfe.threshold.item() == pytest.approx(3 / 255)
    fixed = make(learn_threshold=False)
    assert not any(n.endswith("threshold") for n, p in fixed.named_parameters() if p.requires_grad)


def test_inplace_gives_the_same_and_spares_training() -> None:
    features, image = example()
    with torch.no_grad():
        expected, _ = make()(features.clone(), image)
        overwritten = features.clone()
        enhanced, _ = make(inplace=True)(overwritten, image)
    assert torch.equal(enhanced, expected)
    assert enhanced.data_ptr() == overwritten.data_ptr()
    before = features.clone()
    make(inplace=True)(features, image)
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("features", "image", "sizes", "message"),
    [
        ((2, 16, 6, 8), (2, 3, 25, 32), None, r"must have the size \[7, 8\], got \[6, 8\]"),
        ((2, 16, 7, 8), (2, 3, 24, 32), None, r"must have the size \[6, 8\], got \[7, 8\]"),
        ((2, 16, 3, 4), (2, 3, 24, 32), None, "set scale to the stride"),
        ((1, 16, 6, 8), (2, 3, 24, 32), None, "with the same N"),
        ((2, 16, 6, 8), (2, 1, 24, 32), None, r"image \[N, 3, H, W\]"),
        ((2, 8, 6, 8), (2, 3, 24, 32), None, r"expects features \[N, 16, h, w\]"),
        ((2, 16, 6, 8), (2, 3, 24, 32), [(24, 32)], "one .height, width. per image, got 1 for 2"),
    ],
)
def test_shapes_must_fit(
    features: tuple[int, ...], image: tuple[int, ...], sizes: list[tuple[int, int]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(features), torch.zeros(image), sizes)


@pytest.mark.parametrize(
    "image", [torch.full((2, 3, 24, 32), 200.0), torch.randn(2, 3, 24, 32), torch.tensor(torch.nan)]
)
def test_image_must_not_be_normalised(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image must be un-normalised"):
        make()(torch.zeros(2, 16, 6, 8), image.expand(2, 3, 24, 32))
