"""The anchor scale fitted to object sizes."""

from __future__ import annotations

import time

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from srtod.models import ANCHORS, build_detector
from srtod.models.anchors import fit_anchor_scale


def test_squares_of_one_size_get_anchors_of_that_size() -> None:
    for side, scale in [(8.0, 2.0), (16.0, 4.0), (24.0, 6.0)]:
        fit = fit_anchor_scale(torch.full((10,), side), (4,))
        assert fit.scale == pytest.approx(scale, abs=0.26)  # a pixel more or less: between anchors both overlap alike
        assert fit.covered == 1


def test_the_paper_takes_a_smaller_scale_for_smaller_objects() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = 2 ** torch.randn(2000, generator=generator).mul(0.5)
    scales = [fit_anchor_scale(mean * factors).scale for mean in (8.0, 12.8, 35.8)]  # DroneSwarms, AI-TOD, VisDrone
    assert scales == sorted(scales)
    assert 1.5 <= scales[0] <= 3


def test_the_mean_is_that_of_boxes_against_an_anchor_grid() -> None:
    """Against boxes at random places and every anchor of a grid; the best of a shape is the nearest."""
    generator = torch.Generator().manual_seed(1)
    sizes = 6 + 20 * torch.rand(400, 2, generator=generator, dtype=torch.float64)
    fit = fit_anchor_scale(sizes, (8,), ratios=(1.0,))
    centres = 64 + 8 * torch.rand(400, 2, generator=generator, dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.arange(48.0, 97, 8, dtype=torch.float64)] * 2)
    half = fit.scale * 8 / 2
    iou = box_iou(torch.cat([centres - sizes / 2, centres + sizes / 2], 1), torch.cat([grid - half, grid + half], 1))
    assert fit.mean_iou == pytest.approx(float(iou.amax(dim=1).mean()), abs=0.02)  # measured 0.004


def test_shapes_count() -> None:
    wide = torch.tensor([[32.0, 8.0]]).expand(5, 2)
    ratios = fit_anchor_scale(wide, (4,), ratios=(0.25,))
    square = fit_anchor_scale(wide, (4,), ratios=(1.0,))
    assert ratios.mean_iou > square.mean_iou + 0.2
    assert ratios.scale == pytest.approx(4, abs=0.26)
    tall = fit_anchor_scale(wide.flip(1), (4,), ratios=(4.0,))
    assert tall == ratios


def test_many_objects_are_fast_and_give_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = 4 + 30 * torch.rand(700_000, 2, generator=generator)
    start = time.process_time()
    many = fit_anchor_scale(sizes)
    assert time.process_time() - start < 30
    few = fit_anchor_scale(sizes[:4096])
    assert many.scale == pytest.approx(few.scale, abs=0.51)
    assert fit_anchor_scale(sizes) == many


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (torch.zeros(0, 2), {}, "at least one object, got \\[0, 2\\]"),
        (torch.ones(3, 4), {}, "must be \\[M, 2\\]"),
        (torch.tensor([3.0, 0.0]), {}, "must be positive"),
        (torch.tensor([float("nan")]), {}, "must be positive"),
        (torch.ones(3), {"ratios": ()}, "at least one each"),
        (torch.ones(3), {"strides": (0, 4)}, "must be positive"),
    ],
)
def test_bad_input(sizes: torch.Tensor, options: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_anchor_scale(sizes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ANCHORS)
def test_layouts_are_those_of_the_heads(name: str) -> None:
    detector = build_detector(name, 2, backbone="resnet18", channels=16, anchor_scale=3)
    [generator] = [module for module in detector.modules() if isinstance(module, AnchorGenerator)]
    layout = ANCHORS[name]
    for sizes, ratios, stride in zip(generator.sizes, generator.aspect_ratios, layout.strides, strict=True):
        assert sizes == pytest.approx([3 * stride * octave for octave in layout.octaves])
        assert tuple(ratios) == layout.ratios
