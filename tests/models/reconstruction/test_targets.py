"""What a reconstruction learns, where its gradient goes and when it begins."""

import pytest
import torch
import torch.nn.functional as F

from srtod.models import SelfReconstruction
from srtod.models.reconstruction import object_mask

BOXES = [torch.tensor([[1.0, 2.0, 9.0, 7.0], [20.0, 3.0, 21.5, 4.0]]), torch.zeros(0, 4)]
SIZE = (24, 32)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 16, 6, 8, generator=generator), torch.rand(2, 3, *SIZE, generator=generator)


def make(**options: object) -> SelfReconstruction:
    torch.manual_seed(0)
    paper = {"reconstruction": "paper", "enhancement": "dgfe", "resize": "nearest", "threshold": 4 / 255}
    return SelfReconstruction(16, **paper | options)


@pytest.mark.parametrize("stride", [1, 4])
def test_object_mask_marks_every_pixel_that_a_box_touches(stride: int) -> None:
    boxes = [torch.tensor([[1.0, 2.0, 9.0, 7.0], [8.0, 6.0, 12.0, 30.0], [-5.0, -5.0, 0.5, 0.5]]), torch.zeros(0, 4)]
    h, w = SIZE[0] // stride, SIZE[1] // stride
    expected = torch.zeros(2, 1, h, w, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes[0].tolist():
        for y in range(h):
            for x in range(w):
                overlaps = x * stride < x2 and (x + 1) * stride > x1 and y * stride < y2 and (y + 1) * stride > y1
                expected[0, 0, y, x] |= overlaps
    assert torch.equal(object_mask(boxes, (h, w), stride), expected)


def test_weighted_image_counts_errors_inside_boxes_once_more() -> None:
    features, image = example()
    module = make(reconstruction="subpixel", reconstruction_target="weighted_image", reconstruction_weight=3.0)
    output = module(features, image, None, BOXES)[1]
    error = (module.reconstruction_head(features) - image).square()
    inside = error[object_mask(BOXES, SIZE).expand_as(error)]
    torch.testing.assert_close(output.loss, 3 * (error.mean() + inside.mean()))
    nothing = module(features, image, None, [torch.zeros(0, 4)] * 2)[1]
    torch.testing.assert_close(nothing.loss, 3 * error.mean())


def test_boxes_are_learned_as_a_mask_at_the_levels_resolution() -> None:
    features, image = example()
    module = make(reconstruction="subpixel", reconstruction_target="boxes", enhancement="none", reconstruction_weight=2)
    enhanced, output = module(features, image, None, BOXES)
    assert enhanced is features
    logits = module.reconstruction_head.logits(features)
    assert logits.shape == (2, 1, 6, 8)
    expected = F.binary_cross_entropy_with_logits(logits, object_mask(BOXES, (6, 8), 4).float())
    torch.testing.assert_close(output.loss, 2 * expected)
    torch.testing.assert_close(output.difference[..., ::4, ::4], logits.sigmoid())
    assert output.reconstruction.shape == image.shape
    sizes = [SIZE, (9, 13)]
    padded = module(features, image, sizes, BOXES)[1].loss
    each = F.binary_cross_entropy_with_logits(logits, object_mask(BOXES, (6, 8), 4).float(), reduction="none")
    valid = torch.cat([each[0].flatten(), each[1, 0, :3, :4].flatten()])
    torch.testing.assert_close(padded, 2 * valid.mean())


@pytest.mark.parametrize("size", [(24, 32), (21, 30)])
def test_the_mask_of_the_boxes_makes_the_filter(size: tuple[int, int]) -> None:
    features, image = example()
    image = image[:, :, : size[0], : size[1]]
    module = make(reconstruction="subpixel", reconstruction_target="boxes", threshold=0.5)
    mask = module.reconstruction_head(features)
    seen = []
    module.observer = lambda filters, _: seen.append(filters)
    enhanced = module(features, image, None, BOXES)[0]
    torch.testing.assert_close(seen[0], 1.0 + (mask > 0.5))
    assert 1 < seen[0].mean() < 2
    torch.testing.assert_close(enhanced, module.enhancer(features, mask))
    torch.testing.assert_close(module.eval().enhance(features, image), enhanced)


@pytest.mark.parametrize("target", ["weighted_image", "boxes"])
def test_targets_of_boxes_need_them_in_training(target: str) -> None:
    module = make(reconstruction="subpixel", reconstruction_target=target, enhancement="none")
    with pytest.raises(ValueError, match=f"reconstruction_target='{target}' needs boxes in training"):
        module(*example())
    module.eval()(*example())


@pytest.mark.parametrize("reconstruction", ["paper", "subpixel"])
def test_detached_gradient_stays_in_the_head(reconstruction: str) -> None:
    for detach in (False, True):
        features, image = example()
        features.requires_grad_()
        module = make(reconstruction=reconstruction, detach_reconstruction=detach)
        module(features, image)[1].loss.backward()
        assert (features.grad is None) == detach
        assert all(parameter.grad is not None for parameter in module.reconstruction_head.parameters())


def test_resampled_image_has_no_loss_but_a_filter() -> None:
    features, image = example()
    module = make(reconstruction="resampled", threshold=0.2)
    enhanced, output = module(features, image)
    assert output.loss == 0
    assert 0 < (module.filter(output.difference, (6, 8)) > 1).float().mean() < 1
    assert not torch.equal(enhanced, features)


@pytest.mark.parametrize("enhancement", ["none", "dgfe", "multiplication"])
def test_a_reconstruction_that_starts_later(enhancement: str) -> None:
    module = make(enhancement=enhancement, threshold="auto", reconstruction_start=0.5)
    features, image = example()
    module.set_progress(0.49)
    enhanced, output = module(features, image)
    assert output.loss == 0
    output.loss.backward()  # reaches every parameter of the head, as several processes need
    assert all(parameter.grad is not None for parameter in module.reconstruction_head.parameters())
    if enhancement == "none":
        assert enhanced is features
    elif enhancement == "dgfe":  # as inference then: a filter of 1, and channel weights near 1
        with torch.no_grad():
            torch.testing.assert_close(enhanced, module.eval().enhance(features.clone(), image))
        torch.testing.assert_close(enhanced, features / 1.1)
        module.train()
    module.set_progress(0.5)
    assert module(features, image)[1].loss > 0
