"""The one-stage heads: who owns which object, encoding, losses and post-processing."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import retinanet as torchvision_retinanet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from srtod.models.assigners import FCOSAssigner
from srtod.models.assigners import owners as assigner_parts
from srtod.models.heads.atss import ATSSHead
from srtod.models.heads.dense import DenseHead, LevelPredictions, centerness_targets
from srtod.models.heads.fcos import FCOSHead
from srtod.models.heads.retinanet import RetinaNetHead

STRIDES = (8, 16, 32, 64, 128)
HEADS: list[Callable[..., DenseHead]] = [RetinaNetHead, FCOSHead, ATSSHead]
every_head = pytest.mark.parametrize("build", HEADS)


def make(build: Callable[..., DenseHead], channels: int = 8, num_classes: int = 4, **options: Any) -> DenseHead:
    torch.manual_seed(0)
    return build(channels, num_classes, **options)


def pyramid(
    height: int = 128, width: int = 160, images: int = 2, channels: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[ImageList, OrderedDict[str, Tensor]]:
    """A batch and random features of it; the sizes of the levels are rounded up, as the convolutions do."""
    generator = torch.Generator().manual_seed(1)
    features = OrderedDict(
        (f"p{level}", torch.randn(images, channels, -(-height // s), -(-width // s), generator=generator).to(dtype))
        for level, s in enumerate(STRIDES, start=3)
    )
    return ImageList(torch.zeros(images, 3, height, width), [(height, width)] * images), features


def objects(count: int = 3, height: int = 128, width: int = 160, seed: int = 0, smallest: int = 9) -> dict[str, Tensor]:
    """Random objects of 9 to 40 pixels, inside the image."""
    generator = torch.Generator().manual_seed(seed)
    sides = smallest + torch.rand(count, 2, generator=generator) * (40 - smallest)
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    labels = torch.randint(1, 4, (count,), generator=generator)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": labels}


def encode(head: DenseHead, boxes: Tensor, priors: Tensor) -> Tensor:
    """The inverse of `head.decode`."""
    coder: Any = head.box_coder
    if isinstance(head, FCOSHead):
        encoded: Tensor = coder.encode(priors, boxes).log()
        return encoded
    deltas: Tensor = coder.encode(boxes, priors)
    return deltas


def owned(owners: Tensor, priors: Tensor, index: int) -> set[tuple[float, float]]:
    """The centres of the priors that an object owns."""
    mine = priors[owners == index]
    return {(x, y) for x, y in ((mine[:, :2] + mine[:, 2:]) / 2).tolist()}


def fcos_owners(boxes: list[list[float]], size: int = 64, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The owners and priors of each level of a square image."""
    head = make(FCOSHead, **options)
    priors = head.priors(list(pyramid(size, size)[1].values()))
    owners = head.assign(torch.tensor(boxes).view(-1, 4), priors)
    return list(owners.split([len(level) for level in priors])), priors


# Priors


def test_locations_are_the_centres_of_their_cells() -> None:
    """Also where the batch is no multiple of the coarsest stride."""
    priors = make(FCOSHead).priors(list(pyramid(96, 160)[1].values()))
    assert [len(level) for level in priors] == [12 * 20, 6 * 10, 3 * 5, 2 * 3, 1 * 2]
    assert priors[0][[0, 1, 20]].tolist() == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16]]
    assert priors[4].tolist() == [[0, 0, 128, 128], [128, 0, 256, 128]]


def test_atss_has_one_square_anchor_of_eight_strides() -> None:
    priors = make(ATSSHead).priors(list(pyramid(64, 64)[1].values()))
    assert priors[0][9].tolist() == [12 - 32, 12 - 32, 12 + 32, 12 + 32]
    assert priors[1][0].tolist() == [8 - 64, 8 - 64, 8 + 64, 8 + 64]


def test_retinanet_has_nine_anchors() -> None:
    priors = make(RetinaNetHead, anchor_scale=4).priors(list(pyramid(64, 64, dtype=torch.bfloat16)[1].values()))
    assert all(level.dtype == torch.float32 for level in priors)
    assert len(priors[0]) == 9 * 8 * 8
    first = priors[0][9:18]  # of the second location
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.tensor([[8.0, 0.0]] * 9))
    sides = (first[:, 2:] - first[:, :2]).prod(dim=1).sqrt()
    expected = 32 * torch.tensor([1, 2 ** (1 / 3), 2 ** (2 / 3)]).repeat(3)
    torch.testing.assert_close(sides, expected, rtol=0.05, atol=0)  # torchvision rounds the corners


# Who owns which object


def test_fcos_small_object() -> None:
    (finest, *coarser), priors = fcos_owners([[8, 8, 24, 24]])
    assert owned(finest, priors[0], 0) == {(12, 12), (20, 12), (12, 20), (20, 20)}
    assert all((level == -1).all() for level in coarser)


def test_fcos_centre_sampling() -> None:
    (finest, *_), priors = fcos_owners([[0, 0, 64, 64]])  # 20 and 44 are exactly 1.5 strides from the centre: outside
    assert owned(finest, priors[0], 0) == {(x, y) for x in (28, 36) for y in (28, 36)}
    (finest, second, *_), _ = fcos_owners([[0, 0, 64, 64]], radius=None)
    assert (finest == 0).all()
    assert (second == -1).all()


def test_fcos_ranges_of_the_levels() -> None:
    (finest, second, *_), priors = fcos_owners([[0, 0, 100, 100]], size=128)
    assert owned(finest, priors[0], 0) == {(x, y) for x in (44, 52, 60) for y in (44, 52, 60)}
    assert owned(second, priors[1], 0) == {(72, 40), (72, 56), (72, 72), (40, 72), (56, 72)}  # 64 pixels or more away
    (finest, second, *_), priors = fcos_owners([[0, 0, 100, 100]], size=128, limits=(32, 128, 256, 512))
    assert (finest == -1).all()
    assert len(owned(second, priors[1], 0)) == 9


def test_fcos_ambiguous_locations_belong_to_the_smaller_object() -> None:
    boxes = [[0.0, 0.0, 40.0, 40.0], [9.0, 9.0, 25.0, 25.0], [9.0, 9.0, 25.0, 25.0]]
    (finest, *_), priors = fcos_owners(boxes)
    small = {(x, y) for x in (12, 20) for y in (12, 20)}
    assert owned(finest, priors[0], 1) == small
    assert owned(finest, priors[0], 0) == {(x, y) for x in (12, 20, 28) for y in (12, 20, 28)} - small
    assert not owned(finest, priors[0], 2)  # the first among equals has all


def test_fcos_object_between_locations() -> None:
    levels, _ = fcos_owners([[5, 5, 11, 11]])
    assert all((level == -1).all() for level in levels)


@pytest.mark.parametrize("radius", [None, 1.5])
def test_fcos_assignment_is_the_definition_and_does_not_depend_on_chunks(
    radius: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = objects(30, smallest=1)["boxes"] * torch.tensor([1.0, 1.0, 1.2, 1.2])
    priors = make(FCOSHead).priors(list(pyramid()[1].values()))
    sizes = [len(level) for level in priors]
    assigner = FCOSAssigner(STRIDES, radius=radius, limits=(16, 24, 32, 40))
    whole = assigner(boxes, torch.cat(priors), sizes)
    monkeypatch.setattr(assigner_parts, "PAIRS_AT_ONCE", 100)
    assert torch.equal(assigner(boxes, torch.cat(priors), sizes), whole)

    expected = []
    for level, stride, low, high in zip(priors, STRIDES, (0, 16, 24, 32, 40), (16, 24, 32, 40, 1e9), strict=True):
        for x, y in ((level[:, :2] + level[:, 2:]) / 2).tolist():
            best, owner = float("inf"), -1
            for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                off_centre = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                inside = min(sides) > 0 and low <= max(sides) <= high
                if inside and (radius is None or off_centre < radius * stride) and (x2 - x1) * (y2 - y1) < best:
                    best, owner = (x2 - x1) * (y2 - y1), index
            expected.append(owner)
    assert whole.tolist() == expected
    assert len(set(expected)) > 10


@pytest.mark.parametrize("limits", [(64, 128), (128, 64, 256, 512), (64, 64, 128, 256)])
def test_fcos_bad_limits(limits: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"5 levels need 4 ascending limits, got {list(limits)}")):
        make(FCOSHead, limits=limits)


def test_atss_ambiguity() -> None:
    """Positives have their centres in their object; of two objects the one with the higher IoU has the anchor."""
    head = make(ATSSHead, anchor_scale=2)
    priors = head.priors(list(pyramid()[1].values()))
    anchors = torch.cat(priors)
    assert anchors[8 * 20 + 8].tolist() == [60, 60, 76, 76]
    boxes = torch.tensor([[60.0, 60.0, 76.0, 76.0], [52.0, 52.0, 84.0, 84.0], [101.0, 21.0, 117.0, 37.0]])
    owners = head.assign(boxes, priors)
    assert owners.shape == (len(anchors),)
    assert owners[8 * 20 + 8] == 0
    assert set(owners.unique().tolist()) == {-1, 0, 1, 2}
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    ious = box_iou(anchors, boxes)
    for index, box in enumerate(boxes):
        mine = owners == index
        assert ((centres[mine] > box[:2]) & (centres[mine] < box[2:])).all()
    contested = (owners == 0) | (owners == 1)
    both = ((centres > boxes[0, :2]) & (centres < boxes[0, 2:])).all(dim=1) & contested
    won = owners[both]
    assert (ious[both, won] > 0).all()
    assert (won[ious[both, 0] > 0.9] == 0).all()


def test_retinanet_thresholds_and_low_quality_matches() -> None:
    head = make(RetinaNetHead, anchor_scale=2)
    priors = head.priors(list(pyramid()[1].values()))
    anchors = torch.cat(priors)
    boxes = torch.stack([anchors[9 * (5 * 20 + 6) + 3], torch.tensor([101.0, 91.0, 105.0, 95.0])])  # the second is tiny
    owners = head.assign(boxes, priors)
    ious = box_iou(boxes, anchors)
    best, index = ious.max(dim=0)
    assert owners[9 * (5 * 20 + 6) + 3] == 0
    assert torch.equal(owners[best >= 0.5], index[best >= 0.5])
    tiny = owners == 1
    assert ious[1].max() < 0.4
    assert tiny.any()
    assert (ious[1][tiny] == ious[1].max()).all()
    rest = ~tiny
    assert (owners[rest & (best >= 0.4) & (best < 0.5)] == -2).all()
    assert (rest & (best >= 0.4) & (best < 0.5)).any()
    assert (owners[rest & (best < 0.4)] == -1).all()


# Encoding


@every_head
def test_decode_inverts_encode(build: Callable[..., DenseHead]) -> None:
    head = make(build)
    boxes = objects(20, 1000, 2000)["boxes"]
    generator = torch.Generator().manual_seed(2)
    centres = boxes[:, :2] + (0.1 + 0.8 * torch.rand(20, 2, generator=generator)) * (boxes[:, 2:] - boxes[:, :2])
    priors = torch.cat([centres - 4, centres + 4], dim=1)
    torch.testing.assert_close(head.decode(encode(head, boxes, priors), priors), boxes, rtol=0, atol=1e-3)


def test_centerness() -> None:
    box = torch.tensor([[0.0, 0.0, 40.0, 20.0]])
    centres = torch.tensor([[20.0, 10.0], [10.0, 10.0], [10.0, 5.0], [0.0, 10.0], [50.0, 10.0]])
    values = centerness_targets(box.expand(5, 4), torch.cat([centres - 4, centres + 4], dim=1))
    torch.testing.assert_close(values, torch.tensor([1.0, (1 / 3) ** 0.5, 1 / 3, 0.0, 0.0]))


# Losses


def perfect_predictions(
    head: DenseHead, priors: list[Tensor], targets: list[dict[str, Tensor]], confidence: float = 20.0
) -> list[LevelPredictions]:
    """Predictions that say exactly what the targets are; of ignored priors they say nonsense."""
    levels = []
    anchors = torch.cat(priors)
    owners = torch.stack([head.assign(target["boxes"], priors) for target in targets])
    logits = torch.full((*owners.shape, head.num_logits), -confidence)
    logits[owners == -2] = confidence
    regression = torch.zeros(*owners.shape, 4)
    centerness = torch.zeros(owners.shape)
    for image, target in enumerate(targets):
        mine = (owners[image] >= 0).nonzero()[:, 0]
        boxes = target["boxes"][owners[image, mine]]
        logits[image, mine, target["labels"][owners[image, mine]] - 1] = confidence
        regression[image, mine] = encode(head, boxes, anchors[mine])
        centerness[image, mine] = torch.logit(centerness_targets(boxes, anchors[mine]), eps=1e-6)
    start = 0
    for level in priors:
        part = slice(start, start + len(level))
        start += len(level)
        quality = None if head.centerness is None else centerness[:, part]
        levels.append(LevelPredictions(logits[:, part], regression[:, part], quality))
    return levels


@every_head
def test_perfect_predictions_have_no_loss(build: Callable[..., DenseHead]) -> None:
    head = make(build, anchor_scale=2) if build is not FCOSHead else make(build)
    priors = head.priors(list(pyramid()[1].values()))
    targets = [objects(4), objects(0), objects(2, seed=1)]
    perfect = perfect_predictions(head, priors, targets)
    losses = head.losses(perfect, priors, targets)
    assert losses["loss_classifier"] < 1e-6
    assert losses["loss_box_reg"] < 1e-4
    shifted = [level._replace(regression=level.regression + 0.5) for level in perfect]
    assert head.losses(shifted, priors, targets)["loss_box_reg"] > 0.1
    wrong = [level._replace(logits=-level.logits) for level in perfect]
    assert head.losses(wrong, priors, targets)["loss_classifier"] > 1
    if "loss_centerness" in losses:  # the cross entropy's least value is not 0, but it is where the prediction is right
        assert head.centerness is not None
        for shift in (-1.0, 1.0):
            other = [
                level._replace(centerness=level.centerness + shift) for level in perfect if level.centerness is not None
            ]
            assert head.losses(other, priors, targets)["loss_centerness"] > losses["loss_centerness"]


@every_head
def test_perfect_predictions_are_the_detections(build: Callable[..., DenseHead]) -> None:
    head = make(build, anchor_scale=2) if build is not FCOSHead else make(build)
    batch, features = pyramid(images=1)
    priors = head.priors(list(features.values()))
    boxes = torch.tensor([[20.0, 24.0, 36.0, 41.0], [90.0, 70.0, 118.0, 92.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([3, 1])}]
    perfect = perfect_predictions(head, priors, targets)
    owners = head.assign(boxes, priors).split([len(level) for level in priors])
    quiet = [
        level._replace(logits=torch.where((owner < 0)[None, :, None], -20.0, level.logits))
        for level, owner in zip(perfect, owners, strict=True)
    ]
    (detection,) = head.detections(quiet, priors, batch.image_sizes)
    order = detection["labels"].argsort(descending=True)
    assert detection["labels"][order].tolist() == [3, 1]
    torch.testing.assert_close(detection["boxes"][order], boxes, rtol=0, atol=1e-3)


@every_head
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 500)])
def test_any_number_of_objects(build: Callable[..., DenseHead], counts: tuple[int, int]) -> None:
    head = make(build).train()
    batch, features = pyramid()
    detections, losses = head(batch, features, [objects(count) for count in counts])
    assert detections == []
    names = {"loss_classifier", "loss_box_reg"}
    assert set(losses) == names if build is RetinaNetHead else names | {"loss_centerness"}
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert sum(counts) == 0 or parameter.grad.any(), name


@every_head
def test_training_reduces_the_loss(build: Callable[..., DenseHead]) -> None:
    head = make(build, channels=32).train()
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    batch, features = pyramid(64, 64, channels=32)
    targets = [objects(2, 64, 64), objects(1, 64, 64, seed=1)]
    totals = []
    for _ in range(25):
        _, losses = head(batch, features, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_retinanet_has_torchvisions_losses() -> None:
    """Of one image; of several, torchvision averages what we divide by the positives of the batch."""
    head = make(RetinaNetHead, anchor_scale=2)
    priors = head.priors(list(pyramid()[1].values()))
    target = objects(5)
    owners = head.assign(target["boxes"], priors)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, len(owners), 3, generator=generator)
    regression = torch.randn(1, len(owners), 4, generator=generator)
    sizes = [len(level) for level in priors]
    predictions = [
        LevelPredictions(a, b, None)
        for a, b in zip(logits.split(sizes, dim=1), regression.split(sizes, dim=1), strict=True)
    ]
    losses = head.losses(predictions, priors, [target])
    reference = torchvision_retinanet.RetinaNetHead(8, 9, 3).compute_loss(
        [{"boxes": target["boxes"], "labels": target["labels"] - 1}],  # torchvision has a logit for the background too
        {"cls_logits": logits, "bbox_regression": regression},
        [torch.cat(priors)],
        [owners],
    )
    torch.testing.assert_close(losses["loss_classifier"], reference["classification"])
    torch.testing.assert_close(losses["loss_box_reg"], reference["bbox_regression"])


@every_head
def test_start_is_the_prior_probability(build: Callable[..., DenseHead]) -> None:
    head = make(build)
    with torch.no_grad():
        logits = head.predict(pyramid()[1]["p3"], 0).logits
    torch.testing.assert_close(logits.sigmoid().mean(), torch.tensor(0.01), rtol=0.2, atol=0)


def test_targets_are_needed_and_levels_must_fit() -> None:
    head = make(FCOSHead).train()
    batch, features = pyramid()
    with pytest.raises(ValueError, match="targets are needed in training mode"):
        head(batch, features, None)
    del features["p7"]
    with pytest.raises(ValueError, match="the head has 5 strides, got features with 4 levels"):
        head(batch, features, [objects(), objects()])


# bfloat16


@every_head
def test_boxes_stay_exact_under_autocast(build: Callable[..., DenseHead]) -> None:
    """With a regression of 0 the boxes are the priors (FCOS: of twice the size); bfloat16 would round to 4 pixels."""
    head = make(build, score_threshold=0.0, detections_per_image=3000, nms_threshold=1.0).eval()
    torch.nn.init.zeros_(head.regressor.weight)
    batch, features = pyramid(64, 1056, images=1)
    batch = ImageList(batch.tensors, [(10000, 10000)])
    with torch.autocast("cpu", torch.bfloat16):
        (detection,), _ = head(batch, features, None)
    assert detection["boxes"].dtype == detection["scores"].dtype == torch.float32
    priors = torch.cat(head.priors(list(features.values())))
    if build is FCOSHead:
        priors += torch.cat([priors[:, :2] - priors[:, 2:], priors[:, 2:] - priors[:, :2]], dim=1) / 2
    priors = priors.clamp(min=0)
    assert detection["boxes"].max() > 1000
    distances = torch.cdist(detection["boxes"], priors, p=float("inf"), compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() < 0.01


@every_head
def test_losses_under_autocast(build: Callable[..., DenseHead]) -> None:
    head = make(build).train()
    batch, features = pyramid()
    targets = [objects(), objects(0)]
    _, expected = head(batch, features, targets)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = head(batch, OrderedDict((k, v.bfloat16()) for k, v in features.items()), targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.02, atol=0)  # five convolutions in bfloat16
    sum(losses.values()).backward()


# Evaluation


@every_head
@pytest.mark.parametrize("limit", [7, 100])
def test_detections_are_sorted_clipped_and_capped(build: Callable[..., DenseHead], limit: int) -> None:
    head = make(build, score_threshold=0.0, detections_per_image=limit).eval()
    torch.nn.init.normal_(head.classifier.weight, std=0.5)
    batch, features = pyramid()
    batch = ImageList(batch.tensors, [(128, 160), (70, 90)])  # the second is padded
    with torch.no_grad():
        detections, losses = head(batch, features, None)
    assert losses == {}
    assert len(detections) == 2
    for (height, width), detection in zip(batch.image_sizes, detections, strict=True):
        assert set(detection) == {"boxes", "labels", "scores"}
        assert len(detection["boxes"]) == len(detection["labels"]) == len(detection["scores"]) <= limit
        assert len(detection["boxes"]) == limit or limit == 100
        assert detection["boxes"].min() >= 0
        assert (detection["boxes"][:, 2:] <= torch.tensor([width, height])).all()
        assert (detection["boxes"][:, 2:] > detection["boxes"][:, :2]).all()
        assert (detection["scores"].diff() <= 0).all()
        assert set(detection["labels"].unique().tolist()) <= {1, 2, 3}
        same = detection["labels"][:, None] == detection["labels"]
        overlaps = box_iou(detection["boxes"], detection["boxes"]).fill_diagonal_(0)
        assert overlaps[same].max() <= 0.5


@every_head
def test_score_threshold(build: Callable[..., DenseHead]) -> None:
    head = make(build, score_threshold=0.99).eval()
    with torch.no_grad():
        detections, _ = head(*pyramid(), None)
    assert [len(detection["boxes"]) for detection in detections] == [0, 0]
    assert detections[0]["boxes"].shape == (0, 4)


def test_cap_above_a_thousand() -> None:
    assert make(FCOSHead, detections_per_image=3000).candidates_per_level == 3000
    assert make(FCOSHead).candidates_per_level == 1000


def test_centerness_lowers_the_score() -> None:
    head = make(FCOSHead)
    priors = [torch.tensor([[0.0, 0, 8, 8], [80.0, 0, 88, 8]])]
    logits = torch.tensor([0.64, 0.64]).logit().view(1, 2, 1).expand(1, 2, 3)
    level = LevelPredictions(logits, torch.zeros(1, 2, 4), torch.tensor([[0.25, 1.0]]).logit(eps=1e-6))
    (detection,) = head.detections([level], priors, [(64, 128)])
    torch.testing.assert_close(detection["scores"], torch.tensor([0.8] * 3 + [0.4] * 3))


@every_head
def test_on_each_device(build: Callable[..., DenseHead], device: torch.device) -> None:
    head = make(build, score_threshold=0.0).to(device)
    batch, features = pyramid()
    batch = ImageList(batch.tensors.to(device), batch.image_sizes)
    features = OrderedDict((name, level.to(device)) for name, level in features.items())
    targets = [{name: value.to(device) for name, value in objects(count).items()} for count in (0, 3)]
    _, losses = head.train()(batch, features, targets)
    assert all(loss.device.type == device.type and loss.isfinite() for loss in losses.values())
    detections, _ = head.eval()(batch, features, None)
    assert all(value.device.type == device.type for detection in detections for value in detection.values())
