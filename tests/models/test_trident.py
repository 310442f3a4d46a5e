"""TridentNet: one weight at three dilations, and who learns which objects."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from srtod.models import DetectionTransform, TridentHead, build_backbone
from srtod.models.layers import TridentConv2d


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"groups": 2}])
def test_branches_share_a_weight_at_their_dilations(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, **options)
    layer = TridentConv2d(conv, (1, 2, 3))
    images = torch.randn(2, 4, 9, 11)
    stride, groups = options.get("stride", 1), options.get("groups", 1)
    expected = [F.conv2d(images, conv.weight, conv.bias, stride, d, d, groups) for d in (1, 2, 3)]
    torch.testing.assert_close(layer.train()(images.repeat(3, 1, 1, 1)), torch.cat(expected))
    torch.testing.assert_close(layer.eval()(images), expected[1])


def test_only_a_plain_3x3_convolution_has_branches() -> None:
    with pytest.raises(ValueError, match=r"needs a 3x3 convolution .*, got kernel_size=\(1, 1\)"):
        TridentConv2d(nn.Conv2d(4, 4, 1), (1, 2, 3))


@pytest.mark.parametrize(("name", "trainable_layers"), [("resnet18", 5), ("mobilenet_v2", 1)])
def test_the_backbone_parts_at_c4(name: str, trainable_layers: int) -> None:
    """Also where the branches' stage is frozen."""
    options = {"trainable_layers": trainable_layers, "norm": "frozen_batch"}
    torch.manual_seed(0)
    plain = build_backbone(name, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    branched = build_backbone(name, **options, dilations=(1, 2, 3))  # type: ignore[arg-type]
    branched.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    copies = branched.train()(images.repeat(3, 1, 1, 1))
    middle = branched.eval()(images)
    for level, expected in plain(images).items():
        first, second, third = copies[level].chunk(3)
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, middle[level])
        assert torch.equal(first, third) == (level in ("c2", "c3"))


def test_the_batch_holds_every_image_once_a_branch() -> None:
    transform = DetectionTransform(None, None, copies=3)
    images = [torch.rand(3, 32, 40), torch.rand(3, 20, 32)]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.tensor([], dtype=torch.int64)} for _ in images]
    batch, pixels, copied = transform.train()(images, targets)
    assert batch.image_sizes == [(32, 40), (20, 32)] * 3
    assert copied is not None
    assert len(copied) == 6
    for index in range(6):
        height, width = batch.image_sizes[index]
        assert torch.equal(pixels[index, :, :height, :width], images[index % 2])
        assert torch.equal(batch.tensors[index], batch.tensors[index % 2])
    assert len(transform.eval()(images)[0].image_sizes) == 2


def learned(head: TridentHead, sides: list[float], ignore: Tensor | None = None) -> list[dict[str, Tensor]]:
    """What each branch is told of an image with squares of these sides."""
    boxes = torch.tensor([[10.0, 10.0, 10 + side, 10 + side] for side in sides])
    target = {"boxes": boxes, "labels": torch.arange(len(sides)) + 1}
    told: list[dict[str, Tensor]] = []

    def keep(_: nn.Module, arguments: tuple[object, ...]) -> None:
        told.extend(arguments[2])  # type: ignore[arg-type]

    head.rpn.register_forward_pre_hook(keep)
    features = OrderedDict((f"p{n}", torch.zeros(3, 8, 256 >> n, 256 >> n)) for n in range(2, 7))
    target = target if ignore is None else target | {"ignore": ignore}
    head.train()(ImageList(torch.zeros(3, 3, 256, 256), [(256, 256)] * 3), features, [target] * 3)
    return told


def test_outer_branches_learn_their_sizes_and_the_middle_all() -> None:
    sides = [8.0, 90.0, 91.0, 200.0]
    region = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    branches = learned(TridentHead(8, 5), sides, region)
    assert [branch["labels"].tolist() for branch in branches] == [[1, 2], [1, 2, 3, 4], [2, 3, 4]]
    for branch in branches:
        assert torch.equal(branch["ignore"][:1], region)
        ignored = (branch["ignore"][1:, 2] - 10).tolist()
        assert sorted([*(branch["boxes"][:, 2] - 10).tolist(), *ignored]) == sides


def test_every_branch_learns_all_where_scales_do_not_matter() -> None:
    branches = learned(TridentHead(8, 5, scale_aware=False), [8.0, 200.0])
    assert [branch["labels"].tolist() for branch in branches] == [[1, 2]] * 3
    assert all(len(branch["ignore"]) == 0 for branch in branches)


def test_images_without_their_copies_are_refused() -> None:
    head = TridentHead(8, 2).train()
    features = OrderedDict((f"p{n}", torch.zeros(2, 8, 64 >> n, 64 >> n)) for n in range(2, 7))
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ValueError, match="every image 3 times, once a branch, got 2 targets; build the transform with"):
        head(ImageList(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2), features, [target] * 2)
