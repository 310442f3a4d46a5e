"""Cascade RPN: the adaptive convolution, and what each stage learns."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from srtod.models.heads.cascade_rpn import AdaptiveConv2d, CascadeProposalNetwork

STRIDES = (4, 8, 16, 32, 64)
TARGETS = [
    {"boxes": torch.tensor([[10.0, 12, 22, 23], [62.0, 26, 92, 46]])},
    {"boxes": torch.zeros(0, 4)},
]


def example() -> tuple[ImageList, OrderedDict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    features = OrderedDict(
        (f"p{n}", torch.randn(2, 8, 64 // s, 128 // s, generator=generator)) for n, s in enumerate(STRIDES, 2)
    )
    return ImageList(torch.zeros(2, 3, 64, 128), [(64, 128), (60, 100)]), features


def network(**options: float) -> CascadeProposalNetwork:
    torch.manual_seed(0)
    return CascadeProposalNetwork(8, STRIDES, anchor_scale=2, **options)  # type: ignore[arg-type]


def anchors_at(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """Anchors `[1, h * w, 4]` with these centres, `[h, w]` each."""
    half = torch.tensor([width, height]) / 2
    centres = torch.stack((x, y), dim=-1).view(1, -1, 2)
    return torch.cat((centres - half, centres + half), dim=-1)


def test_the_kernel_is_stretched_over_the_anchor() -> None:
    torch.manual_seed(0)
    layer = AdaptiveConv2d(3)
    with torch.no_grad():
        layer.weight.normal_()
    features = torch.randn(1, 3, 9, 12)
    y, x = torch.meshgrid(torch.arange(9.0) * 8, torch.arange(12.0) * 8, indexing="ij")
    for width, height, dilation in ((16, 16, (1, 1)), (32, 16, (1, 2)), (16, 64, (4, 1))):
        expected = F.conv2d(features, layer.weight, padding=dilation, dilation=dilation)
        torch.testing.assert_close(layer(features, anchors_at(x, y, width, height), stride=8), expected)
    moved = layer(features, anchors_at(x + 16, y - 8, 16, 16), stride=8)
    expected = F.conv2d(features, layer.weight, padding=1)
    torch.testing.assert_close(moved[..., 2:-1, 1:-4], expected[..., 1:-2, 3:-2])


def test_the_kernel_reads_between_the_cells() -> None:
    layer = AdaptiveConv2d(1)
    with torch.no_grad():
        layer.weight.zero_()[..., 0, 2] = 1  # the upper right corner of the anchor
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    features = (100 * rows + columns)[None, None]
    y, x = rows * 4, columns * 4
    found = layer(features, anchors_at(x + 1, y - 1, 6, 10), stride=4)
    expected = 100 * (y - 1 - 5) / 4 + (x + 1 + 3) / 4
    torch.testing.assert_close(found[0, 0, 2:, :-1], expected[2:, :-1])


def test_losses_and_proposals() -> None:
    rpn = network(proposals=50).train()
    proposals, losses = rpn(*example(), TARGETS)
    assert set(losses) == {"loss_rpn_box_reg_1", "loss_objectness", "loss_rpn_box_reg_2"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in rpn.parameters())
    assert all(0 < len(image) <= 50 for image in proposals)
    assert proposals[1].min() >= 0
    assert (proposals[1].amax(dim=0)[2:] <= torch.tensor([100.0, 60.0])).all()


def test_the_first_loss_is_of_anchors_in_the_middle_of_objects() -> None:
    """Untrained stages leave the anchors where they are: 8 px on P2, 16 on P3, 32 on P4 and so on."""
    rpn = network()
    torch.nn.init.zeros_(rpn.head[0].regressor.weight)
    _, losses = rpn.train()(*example(), TARGETS)
    anchors = torch.tensor([[8.0, 8, 24, 24], [64, 16, 96, 48]])  # of P3 around (16, 16), of P4 around (80, 32)
    ious = box_iou(anchors, TARGETS[0]["boxes"]).diag()
    assert losses["loss_rpn_box_reg_1"].item() == pytest.approx(7 * (1 - ious).sum().item() / 512)


def test_the_second_stage_learns_from_refined_anchors() -> None:
    """The first stage moves the anchors of P2 by 10 px."""
    rpn = network().train()
    seen: list[Tensor] = []

    def assign(boxes: Tensor, anchors: Tensor) -> Tensor:
        seen.append(anchors)
        return torch.full((len(anchors),), -1)

    rpn.assigner = assign
    first = rpn.head[0].regressor
    with torch.no_grad():
        first.weight.zero_()
        first.bias.copy_(torch.tensor([12.5, 0, 0, 0]))  # 12.5 standard deviations of 0.1, of a side of 8 px
    rpn(*example(), TARGETS)
    assert seen[0][:2].tolist() == [[6.0, 0.0, 14.0, 4.0], [10.0, 0.0, 18.0, 4.0]]  # clipped to the image
    assert seen[1][:, 0::2].max() == 100


def test_how_many_proposals() -> None:
    assert (network().train().post_nms_top_n(), network().eval().post_nms_top_n()) == (300, 300)
    assert network(detections_per_image=3000).eval().post_nms_top_n() == 3000
    assert network(proposals=50, detections_per_image=3000).train().post_nms_top_n() == 50
    with pytest.raises(ValueError, match="proposals must be at least 1, got 0"):
        network(proposals=0)


def test_targets_are_needed_in_training() -> None:
    with pytest.raises(ValueError, match="targets are needed in training mode"):
        network().train()(*example())
