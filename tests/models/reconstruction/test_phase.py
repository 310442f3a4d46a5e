"""The reconstruction is no worse at the one pixel in 16 that the filter reads than at the 15 others."""

import pytest
import torch
from torch import nn

from srtod.models import SelfReconstruction


def ratio_of_the_sampled_phase(reconstruction: str, difference_gradient: bool) -> float:
    """Mean difference at the pixels that a nearest resize reads, by that at all others, after a short training.

    What stands for the detector is a loss that falls where the filter passes more, as detectors' losses do.
    """
    torch.manual_seed(0)
    module = SelfReconstruction(
        16,
        reconstruction=reconstruction,
        enhancement="dgfe",
        threshold=0.2,
        resize="nearest",
        learn_threshold=False,
        difference_gradient=difference_gradient,
    )
    backbone = nn.Conv2d(3, 16, kernel_size=7, stride=4, padding=3)
    optimizer = torch.optim.Adam([*module.parameters(), *backbone.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    maps = []
    for _ in range(150):
        image = torch.rand(4, 3, 10, 10, generator=generator)
        image = nn.functional.interpolate(image, (40, 40), mode="bilinear")
        y, x = torch.randint(0, 8, (2,), generator=generator).tolist()  # so that no phase is special in the images
        image = image[:, :, y : y + 32, x : x + 32]
        _, output = module(backbone(image).detach(), image)
        passes = module.filter(output.difference, (8, 8)).mean()
        optimizer.zero_grad()
        (output.loss - 0.05 * passes).backward()
        optimizer.step()
        maps.append(output.difference.detach().mean((0, 1)))
    means = torch.stack(maps[-50:]).mean(0).unflatten(0, (8, 4)).unflatten(2, (8, 4)).mean((0, 2))  # [4, 4]
    return float(means[0, 0] / means.flatten()[1:].mean())


@pytest.mark.parametrize("reconstruction", ["paper", "subpixel"])
def test_the_sampled_phase_is_like_the_others(reconstruction: str) -> None:
    assert ratio_of_the_sampled_phase(reconstruction, False) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("reconstruction", ["paper", "subpixel"])
def test_with_the_gradient_through_the_difference_it_is_not(reconstruction: str) -> None:
    """This is what the other test would find."""
    assert ratio_of_the_sampled_phase(reconstruction, True) > 1.3
