"""RoI pooling must be exact where torchvision's pooler is not: regions of a few pixels."""

from __future__ import annotations

import pytest
import torch

from srtod.models.heads.pooling import PyramidRoIAlign

STRIDES = (4, 8, 16, 32)


def ramp_pyramid(height: int, width: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Each level holds the image coordinates (x, y) of its cells' centres in pixels."""
    pyramid = {}
    for stride in STRIDES:
        y = (torch.arange(height // stride) + 0.5) * stride
        x = (torch.arange(width // stride) + 0.5) * stride
        pyramid[f"p{stride.bit_length() - 1}"] = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None].to(dtype)
    return pyramid


@pytest.mark.parametrize(
    "box",
    [[101.0, 63.0, 103.0, 66.0], [40.5, 80.25, 48.0, 84.0], [32.0, 32.0, 160.0, 160.0], [10.0, 20.0, 250.0, 250.0]],
)
def test_a_bin_samples_its_own_centre(box: list[float]) -> None:
    pooled = PyramidRoIAlign(STRIDES)(ramp_pyramid(256, 256), [torch.tensor([box])], [(256, 256)])
    x1, y1, x2, y2 = box
    centres = (torch.arange(7) + 0.5) / 7
    inside = slice(1, -1) if x2 - x1 > 100 else slice(None)  # samples next to the border are clamped to it
    torch.testing.assert_close(pooled[0, 0, 3, inside], (x1 + centres * (x2 - x1))[inside], rtol=0, atol=1e-3)
    torch.testing.assert_close(pooled[0, 1, inside, 3], (y1 + centres * (y2 - y1))[inside], rtol=0, atol=1e-3)


def test_order_of_boxes_images_and_levels_is_kept() -> None:
    boxes = [
        torch.tensor([[8.0, 8, 16, 16], [0.0, 0, 256, 256]]),
        torch.zeros(0, 4),
        torch.tensor([[64.0, 64, 70, 70]]),
    ]
    pyramid = {name: level.repeat(3, 1, 1, 1) for name, level in ramp_pyramid(256, 256).items()}
    pooled = PyramidRoIAlign(STRIDES)(pyramid, boxes, [(256, 256)] * 3)
    assert pooled.shape == (3, 2, 7, 7)
    torch.testing.assert_close(pooled[:, 0, 3, 3], torch.tensor([12.0, 128.0, 67.0]), rtol=0, atol=1e-3)


def test_half_precision_features_do_not_move_boxes() -> None:
    box = torch.tensor([[1001.0, 33.0, 1007.0, 39.0]])  # bfloat16 would round 1001 to 1000 and 1007 to 1008
    features = {name: level / 1024 for name, level in ramp_pyramid(64, 1024).items()}
    exact = PyramidRoIAlign(STRIDES)(features, [box], [(64, 1024)])
    half = PyramidRoIAlign(STRIDES)({k: v.bfloat16() for k, v in features.items()}, [box], [(64, 1024)])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=2**-7, atol=0)


def test_no_boxes_at_all() -> None:
    pooled = PyramidRoIAlign(STRIDES)(ramp_pyramid(64, 64), [torch.zeros(0, 4)], [(64, 64)])
    assert pooled.shape == (0, 2, 7, 7)
