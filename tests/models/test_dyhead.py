"""DyHead: each attention against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srtod.models.heads.dyhead import DyHead, DyHeadBlock, DynamicReLU, ModulatedConv2d

CHANNELS = 8
SIZES = [(12, 17), (6, 9), (3, 5), (2, 3), (1, 2)]


def levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, CHANNELS, *size, generator=generator) for size in SIZES]


def block() -> DyHeadBlock:
    torch.manual_seed(0)
    return DyHeadBlock(CHANNELS)


def test_an_untrained_block_averages_a_level_and_its_neighbours() -> None:
    """Without offsets the convolutions are plain ones under a mask of 1/2, and the ReLU is nearly a plain one."""
    part = block()
    given = levels()
    with torch.no_grad():
        for layer in part.activation.layers:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
        part.scale.bias.fill_(1.5)  # a hard sigmoid of about 3/4
        found = part(given)

    def attended(conv: ModulatedConv2d, level: Tensor, size: tuple[int, int]) -> Tensor:
        y = conv.norm(F.conv2d(level, conv.weight / 2, stride=conv.stride, padding=1))
        y = F.interpolate(y, size, mode="bilinear")
        return y * (part.scale(y.mean((2, 3), keepdim=True)) + 3) / 6

    for index, size in enumerate(SIZES):
        terms = [attended(part.own, given[index], size)]
        if index > 0:
            terms.append(attended(part.finer, given[index - 1], size))
        if index < len(SIZES) - 1:
            terms.append(attended(part.coarser, given[index + 1], size))
        torch.testing.assert_close(found[index], torch.stack(terms).mean(dim=0).relu())


@pytest.mark.parametrize("stride", [1, 2])
def test_offsets_are_in_cells_and_the_mask_is_a_sigmoid(stride: int) -> None:
    torch.manual_seed(0)
    conv = ModulatedConv2d(CHANNELS, stride)
    x = torch.randn(2, CHANNELS, 8, 10)
    moves = torch.full((2, 27, 8 // stride, 10 // stride), 1.0986123)  # of a mask of 3/4
    moves[:, 0:18:2], moves[:, 1:18:2] = 0, 1  # one column to the right
    expected = F.conv2d(F.pad(x, (0, 2, 1, 1)), conv.weight * 0.75, stride=stride)
    torch.testing.assert_close(conv(x, moves), conv.norm(expected))


def test_the_coarser_neighbour_takes_the_offsets_of_its_own_places() -> None:
    part = block()
    torch.nn.init.normal_(part.offsets.weight)
    given = levels()
    seen: list[Tensor] = []
    part.coarser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    part(given)
    for moves, level in zip(seen, given[:-1], strict=True):
        torch.testing.assert_close(moves, part.offsets(level)[..., ::2, ::2])


def test_dynamic_relu() -> None:
    torch.manual_seed(0)
    activation = DynamicReLU(CHANNELS)
    x = torch.randn(2, CHANNELS, 5, 6)
    torch.testing.assert_close(activation(x), x.relu(), atol=0.02, rtol=0)  # at the start
    values = torch.tensor([0.2, -0.1, 0.4, 0.3])
    with torch.no_grad():
        activation.layers[2].bias.copy_((6 * values).repeat_interleave(CHANNELS))
        activation.layers[2].weight.zero_()
    torch.testing.assert_close(activation(x), torch.maximum(1.4 * x - 0.1, 0.8 * x + 0.3))


def test_blocks_compile_without_a_graph_break() -> None:
    part = block()
    given = levels()
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(given), part(given), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_blocks_take_the_place_of_the_towers() -> None:
    head = DyHead(CHANNELS, 2, blocks=2)
    assert len(head.blocks) == 2
    assert len(head.class_tower) == len(head.box_tower) == 0
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        DyHead(CHANNELS, 2, blocks=0)
