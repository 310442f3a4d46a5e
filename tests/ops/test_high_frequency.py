"""The high-frequency difference map: against its specification, against NumPy, on waves of known frequency."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from srtod import ops
from srtod.ops import high_frequency_difference_map, reference

CUTOFF = 1 / 16
SIZES = [(2, 3, 32, 48), (3, 3, 29, 50), (1, 1, 1, 1), (1, 3, 1, 17), (1, 3, 16, 1), (0, 3, 8, 8)]


def images(shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reconstruction, image = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return reconstruction.to(device, dtype), image.to(device, dtype)


def wave(cycles_down: int, cycles_across: int, size: tuple[int, int] = (32, 64)) -> Tensor:
    """A cosine `[1, 1, H, W]` around 0.5 that goes up and down so often over the whole image."""
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in size)
    phase = 2 * math.pi * (cycles_down * rows[:, None] + cycles_across * columns)
    return (0.5 + 0.25 * phase.cos()).float()[None, None]


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_filtering_the_difference_is_filtering_both_images(
    shape: tuple[int, ...], from_logits: bool, device: str
) -> None:
    reconstruction, image = images(shape, device)
    result = high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF, from_logits=from_logits)
    specified = reference.high_frequency_difference_map(
        reconstruction.double(), image.double(), cutoff=CUTOFF, from_logits=from_logits
    )
    assert result.shape == (shape[0], 1, *shape[2:])
    assert result.dtype == torch.float32
    # Rounding of a float32 transform of values up to 1: a few eps; measured 2e-7.
    torch.testing.assert_close(result.double(), specified, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(32, 48), (29, 50), (31, 33)])
def test_against_numpys_whole_spectrum(size: tuple[int, int]) -> None:
    reconstruction, image = images((2, 3, *size), "cpu", torch.float64)
    rows, columns = (np.fft.fftfreq(side) for side in size)
    passes = np.hypot(rows[:, None], columns[None]) >= 0.1
    high = [np.fft.ifft2(np.fft.fft2(x.numpy()) * passes) for x in (reconstruction, image)]
    assert max(np.abs(x.imag).max() for x in high) < 1e-12
    expected = np.abs(high[0].real - high[1].real).mean(axis=1, keepdims=True)
    result = high_frequency_difference_map(reconstruction, image, cutoff=0.1)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("down", "across"), [(1, 0), (0, 3), (4, 0), (0, 8), (3, 4), (16, 32)])
def test_a_wave_passes_from_the_cutoff_on(down: int, across: int, device: str) -> None:
    image = wave(down, across).to(device)
    grey = torch.full_like(image, 0.3)  # the other image differs by a constant, too
    radius = math.hypot(down / 32, across / 64)
    expected = (image - 0.5).abs()
    torch.testing.assert_close(
        high_frequency_difference_map(grey, image, cutoff=min(radius, 0.5)), expected, atol=1e-6, rtol=0
    )
    if radius < 0.49:
        removed = high_frequency_difference_map(grey, image, cutoff=radius + 0.01)
        torch.testing.assert_close(removed, torch.zeros_like(removed), atol=1e-6, rtol=0)


@pytest.mark.parametrize("period", [3, 6, 8, 12, 24, 32, 48, 96])
def test_a_frequency_at_the_cutoff_passes_whatever_its_rounding(period: int) -> None:
    image = wave(0, 96 // period, (4, 96))
    result = high_frequency_difference_map(torch.full_like(image, 0.5), image, cutoff=1 / period)
    torch.testing.assert_close(result, (image - 0.5).abs(), atol=1e-6, rtol=0)


def test_the_mean_goes_with_any_cutoff_above_zero(device: str) -> None:
    reconstruction, image = images((2, 3, 12, 10), device)
    for shift in (0.0, 0.2):
        result = high_frequency_difference_map(reconstruction + shift, image, cutoff=1e-6)
        signed = reconstruction - image
        expected = (signed - signed.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=1, keepdim=True)
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("from_logits", [False, True])
def test_cutoff_zero_is_the_pixel_difference_map(from_logits: bool, device: str) -> None:
    reconstruction, image = images((2, 3, 29, 50), device)
    result = high_frequency_difference_map(reconstruction, image, cutoff=0, from_logits=from_logits)
    expected = ops.difference_map(reconstruction, image, from_logits=from_logits)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [None, torch.float32])
def test_half_precision_is_rounded_once(dtype: torch.dtype, image_dtype: torch.dtype | None, device: str) -> None:
    reconstruction, image = images((2, 3, 29, 50), device, dtype)
    image = image.to(image_dtype or dtype)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF, from_logits=True)
    exact = reference.high_frequency_difference_map(
        reconstruction.double(), image.double(), cutoff=CUTOFF, from_logits=True
    )
    assert result.dtype == image.dtype
    rounding = torch.finfo(image.dtype).eps / 2
    assert bool(((result.double() - exact).abs() <= rounding * exact + 1e-6).all())


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_layouts(layout: str, device: str) -> None:
    reconstruction, image = images((2, 3, 16, 20), device)
    expected = high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF)
    if layout == "channels_last":
        other = reconstruction.to(memory_format=torch.channels_last)
    else:
        other = torch.nn.functional.pad(reconstruction, (1, 2, 3, 4))[..., 3:-4, 1:-2]
    result = high_frequency_difference_map(other, image, cutoff=CUTOFF)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_padding_does_not_spread_into_the_image(device: str) -> None:
    reconstruction, image = images((2, 3, 24, 32), device)
    valid_size = torch.tensor([[24, 32], [13, 17]], device=device)
    options = {"cutoff": CUTOFF, "from_logits": True, "valid_size": valid_size}
    result = high_frequency_difference_map(reconstruction, image, **options)  # type: ignore[arg-type]
    other = reconstruction.clone()
    other[1, :, 13:] = 7
    other[1, :, :, 17:] = -7
    assert torch.equal(high_frequency_difference_map(other, image, **options), result)  # type: ignore[arg-type]
    specified = reference.high_frequency_difference_map(other, image, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(result, specified, atol=1e-6, rtol=0)
    without = high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF, from_logits=True)
    torch.testing.assert_close(result[0], without[0])
    assert (result[1] - without[1]).abs().max() > 0.01


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (4, 7)])
def test_gradcheck(size: tuple[int, int], from_logits: bool, device: str) -> None:
    given = [x.requires_grad_() for x in images((2, 2, *size), device, torch.float64)]

    def run(reconstruction: Tensor, image: Tensor) -> Tensor:
        return high_frequency_difference_map(reconstruction, image, cutoff=0.2, from_logits=from_logits)

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_equal_images_have_no_difference_and_a_zero_gradient(device: str) -> None:
    image = torch.rand(1, 3, 8, 8, device=device)
    reconstruction = image.clone().requires_grad_()
    result = high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF)
    assert not result.any()
    result.sum().backward()
    assert reconstruction.grad is not None
    assert not reconstruction.grad.any()


def test_compile_without_graph_break(device: str) -> None:
    def run(reconstruction: Tensor, image: Tensor, valid_size: Tensor) -> Tensor:
        return high_frequency_difference_map(
            reconstruction, image, cutoff=CUTOFF, from_logits=True, valid_size=valid_size
        )

    reconstruction, image = images((2, 3, 29, 50), device)
    valid_size = torch.tensor([[29, 50], [13, 17]], device=device)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [x.clone().requires_grad_() for x in (reconstruction, reconstruction)]
    for function, given in zip((run, compiled), results, strict=True):
        function(given, image, valid_size).square().sum().backward()
    torch.testing.assert_close(compiled(*results[1:], image, valid_size), run(results[0], image, valid_size))
    torch.testing.assert_close(results[1].grad, results[0].grad)


@pytest.mark.parametrize("cutoff", [-0.1, 0.51, math.nan, math.inf])
def test_cutoff_is_a_frequency(cutoff: float) -> None:
    with pytest.raises(ValueError, match=r"^high_frequency_difference_map: cutoff must be in \[0, 0.5\] cycles per"):
        high_frequency_difference_map(*images((1, 3, 4, 4), "cpu"), cutoff=cutoff)


def test_bad_images_end_in_the_sentences_of_the_pixel_map(device: str) -> None:
    reconstruction, image = images((2, 3, 8, 12), device)
    wrong: list[tuple[object, object]] = [
        (reconstruction[..., :11], image),
        (reconstruction[0], image[0]),
        (reconstruction.double(), image),
        (reconstruction, (255 * image).to(torch.uint8)),
        (reconstruction, image.to("meta")),
        (0.5, image),
    ]
    for given in wrong:
        with pytest.raises((TypeError, ValueError)) as expected:
            ops.difference_map(*given)  # type: ignore[arg-type]
        with pytest.raises(expected.type) as error:
            high_frequency_difference_map(*given, cutoff=CUTOFF)  # type: ignore[arg-type]
        assert str(error.value) == str(expected.value).replace("difference_map:", "high_frequency_difference_map:")
    with pytest.raises(TypeError, match="high_frequency_difference_map: valid_size must be int64"):
        high_frequency_difference_map(reconstruction, image, cutoff=CUTOFF, valid_size=torch.ones(2, 2, device=device))
