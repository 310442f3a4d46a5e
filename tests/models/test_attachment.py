"""`srtod.attach`: self-reconstruction behind a module of any detector, by hooks."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import srtod
from srtod.models import AttachedSelfReconstruction, ModelInput
from srtod.models.model_inputs import read_call

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIXED = {"enhancement": "dgfe", "threshold": 4 / 255, "learn_threshold": False}


class Levels(NamedTuple):
    p2: Tensor
    p3: Tensor


PYRAMIDS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tensor": (lambda fine, coarse: fine, None),
    "tuple": (lambda fine, coarse: (fine, coarse), None),
    "named tuple": (Levels, 0),
    "list": (lambda fine, coarse: [coarse, fine], 1),
    "dictionary": (lambda fine, coarse: OrderedDict(p2=fine, p3=coarse), None),
    "nested": (lambda fine, coarse: {"mask": None, "maps": [fine, coarse]}, ("maps", 0)),
}
"""How a neck returns its levels, and the key of the finest; None where it is the first."""


class Neck(nn.Module):
    """Two levels with 16 channels at the strides 4 and 8."""

    out_channels = 16

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.make = make

    def forward(self, image: Tensor) -> Any:
        fine = self.conv(image)
        return self.make(fine, F.max_pool2d(fine, 2))


class Detector(nn.Module):
    """A stranger's detector, which returns its pyramid in evaluation."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any] = PYRAMIDS["tuple"][0]) -> None:
        super().__init__()
        self.neck = Neck(make)
        self.head = nn.Conv2d(16, 2, kernel_size=1)

    def forward(self, image: Tensor, targets: Any = None) -> Any:
        levels = self.neck(image)
        if not self.training:
            return levels
        return {"loss_classes": sum(self.head(level).square().mean() for level in tensors(levels))}


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output."""
    if isinstance(output, Tensor):
        return [output]
    entries = output.values() if isinstance(output, dict) else output or ()
    return [tensor for entry in entries for tensor in tensors(entry)]


def make_detector(make: Callable[[Tensor, Tensor], Any] = PYRAMIDS["tuple"][0]) -> Detector:
    torch.manual_seed(0)
    return Detector(make)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_the_level_alone_is_replaced_by_the_enhanced_one(kind: str, image: Tensor) -> None:
    make, key = PYRAMIDS[kind]
    detector = make_detector(make).eval()
    plain = detector(image)
    reconstruction = srtod.attach(detector, "neck", key=key, **FIXED)
    enhanced = detector(image)
    assert type(enhanced) is type(plain)
    fine = detector.neck.conv(image)
    expected = reconstruction.enhance(fine, image)
    assert not torch.equal(expected, fine)
    for mine, before in zip(tensors(enhanced), tensors(plain), strict=True):
        assert torch.equal(mine, expected if torch.equal(before, fine) else before)


def test_the_loss_joins_the_losses_and_trains_head_and_neck(image: Tensor) -> None:
    detector = make_detector()
    reconstruction = srtod.attach(detector, "neck", loss_name="loss_image")
    losses = detector(image)
    assert list(losses) == ["loss_classes", "loss_image"]
    assert losses["loss_image"] is reconstruction.loss
    torch.testing.assert_close(losses["loss_image"], reconstruction(detector.neck.conv(image), image)[1].loss)
    losses["loss_image"].backward()
    assert detector.neck.conv.weight.grad.any()
    assert all(p.grad is not None for p in reconstruction.reconstruction_head.parameters())
    detector.eval()(image)
    assert reconstruction.loss is None


class Output(OrderedDict):  # type: ignore[type-arg]
    """As the `ModelOutput` of `transformers`."""


@pytest.mark.parametrize(
    ("output", "added"),
    [
        (Output(loss=torch.tensor(2.0), loss_dict={"loss_ce": torch.tensor(2.0)}, logits=torch.zeros(1, 3)), True),
        (Output(logits=torch.zeros(1, 3)), False),
        ({"losses": [torch.tensor(1.0), torch.tensor(2.0)]}, True),
        ((torch.tensor(1.0), {}), False),
        ({}, False),
    ],
)
def test_outputs_of_other_libraries(image: Tensor, output: Any, added: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck = make_detector().neck

        def forward(self, image: Tensor) -> Any:
            self.neck(image)
            return output

    model = Model()
    reconstruction = srtod.attach(model, "neck")
    before = dict(output) if isinstance(output, dict) else output
    result = model(image)
    loss = reconstruction.loss
    assert loss is not None
    if not added:
        assert result == before
    elif "loss_dict" in result:
        assert torch.equal(result["loss"], 2.0 + loss)
        assert result["loss_dict"]["loss_reconstruction"] is loss
    else:
        assert result["loss_reconstruction"] is loss


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_the_target_is_the_image_before_normalisation(image: Tensor, white: float) -> None:
    mean, std = ([white * value for value in values] for values in (MEAN, STD))
    normalised = (white * image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    mask = torch.ones(2, 64, 96)
    mask[1, 50:] = mask[1, :, 80:] = 0
    detector = make_detector()
    reconstruction = srtod.attach(
        detector,
        "neck",
        mean=mean,
        std=std,
        white=white,
        read=lambda args, kwargs: read_call(args, {"pixel_mask": mask}),
    )
    seen: list[Any] = []
    reconstruction.register_forward_pre_hook(lambda module, args: seen.extend(args))
    detector(normalised)
    _, pixels, sizes, boxes = seen
    torch.testing.assert_close(pixels, image * mask[:, None], atol=1e-6, rtol=0)  # rounding of two operations
    assert sizes == [(64, 96), (50, 80)]
    assert boxes is None


CORNERS = [torch.tensor([[8.0, 16.0, 24.0, 20.0]]), torch.zeros(0, 4)]
RELATIVE = [torch.tensor([[16 / 96, 18 / 64, 16 / 96, 4 / 64]]), torch.zeros(0, 4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda image: ((image, [{"boxes": boxes, "labels": None} for boxes in CORNERS]), {}),
        lambda image: ((), {"pixel_values": image, "labels": [{"boxes": b, "class_labels": None} for b in RELATIVE]}),
        lambda image: (({"img": image, "bboxes": RELATIVE[0], "batch_idx": torch.zeros(1)},), {}),
    ],
    ids=["torchvision", "transformers", "ultralytics"],
)
def test_boxes_are_found_as_libraries_give_them(image: Tensor, call: Any) -> None:
    found = read_call(*call(image))
    assert found.image is image
    assert found.boxes is not None
    for mine, expected in zip(found.boxes, CORNERS, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("target", ["weighted_image", "boxes"])
def test_boxes_shape_the_target(image: Tensor, target: str) -> None:
    detector = make_detector()
    reconstruction = srtod.attach(detector, "neck", reconstruction_target=target)
    losses = detector(image, [{"boxes": boxes} for boxes in CORNERS])
    expected = reconstruction(detector.neck.conv(image), image, None, CORNERS)[1].loss
    torch.testing.assert_close(losses["loss_reconstruction"], expected)
    with pytest.raises(ValueError, match=f"reconstruction_target='{target}' needs boxes, .* give attach a `read`"):
        detector(image)
    detector.eval()(image)  # which has no targets


def test_detach_leaves_the_model_as_it_was(image: Tensor) -> None:
    detector = make_detector()
    state, before = copy.deepcopy(detector.state_dict()), detector.eval()(image)
    random = torch.random.get_rng_state()
    reconstruction = srtod.attach(detector, "neck", **FIXED)
    assert torch.equal(torch.random.get_rng_state(), random)
    detector(image)
    reconstruction.detach()
    reconstruction.detach()  # once more does nothing
    assert all(torch.equal(mine, own) for mine, own in zip(detector(image), before, strict=True))
    assert detector.state_dict().keys() == state.keys()
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in state.items())
    for module in detector.modules():
        assert not any([module._forward_hooks, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs])
    srtod.attach(detector, "neck")  # again


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_is_whole_and_independent(image: Tensor, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    detector = make_detector(Levels)
    reconstruction = srtod.attach(detector, "neck", **FIXED)
    sum(detector(image).values()).backward()  # a copy is taken between steps, when a loss with its graph is around
    copied = duplicate(detector)
    assert copied.state_dict().keys() == detector.state_dict().keys()
    assert "self_reconstruction.dgfe.threshold" in copied.state_dict()
    assert torch.equal(copied.eval()(image)[0], detector.eval()(image)[0])
    copied.get_submodule("self_reconstruction").detach()
    assert torch.equal(copied(image)[0], detector.neck.conv(image))
    assert torch.equal(detector(image)[0], reconstruction.enhance(detector.neck.conv(image), image))


def test_modes_weights_and_progress_follow_the_model(image: Tensor) -> None:
    detector = make_detector().eval()
    reconstruction = srtod.attach(detector, "neck", reconstruction_start=0.5)
    assert not reconstruction.training
    assert detector.train().self_reconstruction.training
    other = make_detector()
    srtod.attach(other, "neck", reconstruction_start=0.5)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.eval()(image)[0], detector.eval()(image)[0])
    detector.train()
    reconstruction.set_progress(0.2)
    assert detector(image)["loss_reconstruction"] == 0
    reconstruction.set_progress(0.5)
    assert detector(image)["loss_reconstruction"] > 0
    assert detector.double()(image.double())["loss_reconstruction"].dtype == torch.float64


def test_one_compiled_graph_computes_the_same(image: Tensor) -> None:
    detector = make_detector(PYRAMIDS["dictionary"][0])
    srtod.attach(detector, "neck", **FIXED)
    compiled = torch.compile(detector, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        losses, expected = compiled(image), detector(image)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name])
    sum(compiled(image).values()).backward()
    assert detector.neck.conv.weight.grad.any()
    detector.eval()
    for mine, expected in zip(tensors(compiled(image)), tensors(detector(image)), strict=True):
        torch.testing.assert_close(mine, expected)


def test_autocast_keeps_the_image_and_the_loss_in_float32(image: Tensor) -> None:
    detector = make_detector()
    reconstruction = srtod.attach(detector, "neck", **FIXED)
    seen: list[Any] = []
    reconstruction.register_forward_pre_hook(lambda module, args: seen.extend(args[:2]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(image)
        level = detector.eval()(image)[0]
    assert (seen[0].dtype, seen[1].dtype) == (torch.bfloat16, torch.float32)
    assert losses["loss_reconstruction"].dtype == torch.float32
    assert level.dtype == torch.bfloat16
    sum(losses.values()).backward()


@pytest.mark.parametrize("find_unused", [False, True])
def test_data_parallel_training(image: Tensor, tmp_path: Path, find_unused: bool) -> None:
    detector = make_detector()
    srtod.attach(detector, "neck")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(detector, find_unused_parameters=find_unused)
        for _ in range(2):  # the second fails where a parameter had no gradient in the first
            sum(parallel(image).values()).backward()
    finally:
        dist.destroy_process_group()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    with pytest.raises(TypeError, match="not a DistributedDataParallel of it; attach before wrapping"):
        srtod.attach(parallel, "module.neck")


def test_a_source_inside_the_model(image: Tensor) -> None:
    """As in detectron2, whose models take a list of dictionaries."""

    class Lists(Detector):
        def forward(self, inputs: Any, targets: Any = None) -> Any:
            return super().forward(torch.stack([each["image"] for each in inputs]))

    torch.manual_seed(0)
    detector = Lists().eval()
    reconstruction = srtod.attach(detector, "neck", source="neck", **FIXED)
    expected = reconstruction.enhance(detector.neck.conv(image), image)
    assert torch.equal(detector([{"image": each} for each in image])[0], expected)


class Skipping(Detector):
    def forward(self, image: Tensor, targets: Any = None) -> Any:
        return self.head(torch.zeros(1, 16, 4, 4))


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"level": "nek"}, None, "the Detector has no module 'nek'; near is neck"),
        ({"level": "pyramid"}, None, "no module 'pyramid'; it has neck, neck.conv, head"),
        ({"level": ""}, None, "no module ''; it has neck, neck.conv, head"),
        ({"source": "bone"}, None, "no module 'bone'"),
        ({"level": "neck.conv", "channels": None, "treshold": 0.1}, None, "did you mean threshold"),
        ({"key": "p2"}, "image", "the output of 'neck' has no entry 'p2'; it has 0, 1"),
        ({"key": (0, 1)}, "image", "'neck' has no entry 1; it has a Tensor and no entries"),
        ({"scale": 8}, "image", r"at stride 8 .* got \[2, 16, 16, 24\]; .* of key=0, scale=4 .*; key=1, scale=8"),
        ({"channels": 32}, "image", r"must be \[N, 32, h, w\] .* attach with channels=16"),
        ({"mean": MEAN, "std": STD}, "bright", r"must lie in \[0, 1\], got values from .* give attach the `mean`"),
        ({}, "list", "no argument of the call is an image, .* it got args.0.: list of 2; give attach a `read`"),
        ({}, "grey", r"it got args.0.: float32 \[2, 1, 64, 96\]"),
        ({}, "bytes", r"it got args.0.: uint8 \[2, 3, 64, 96\]"),
    ],
)
def test_what_does_not_fit_is_one_sentence(image: Tensor, options: dict[str, Any], call: str, message: str) -> None:
    detector = make_detector()
    calls = {"image": image, "bright": image + 9, "list": list(image), "grey": image[:, :1], "bytes": image.byte()}

    def attach_and_run() -> None:
        srtod.attach(detector, **({"level": "neck"} | options))
        detector(calls[call])

    with pytest.raises((ValueError, TypeError), match=message) as error:
        attach_and_run()
    assert "\n" not in str(error.value)


def test_calls_that_pass_the_level_by(image: Tensor) -> None:
    torch.manual_seed(0)
    skipping, detector = Skipping(), make_detector()
    srtod.attach(skipping, "neck")
    with pytest.raises(RuntimeError, match="the model's call did not run 'neck'; attach to a module that it runs"):
        skipping(image)
    srtod.attach(detector, "neck")
    with pytest.raises(RuntimeError, match="'neck' ran before the image was known; call the model, not its parts"):
        detector.neck(image)
    with pytest.raises(ValueError, match=r"has a 'self_reconstruction' already; detach\(\) that first"):
        srtod.attach(detector, "neck")
    with pytest.raises(ValueError, match="'head', a Identity, does not say its out_channels; set channels"):
        srtod.attach(nn.ModuleDict({"head": nn.Identity()}), "head")
    with pytest.raises(TypeError, match="which a Sequential would run as a layer; call it from a module"):
        srtod.attach(nn.Sequential(nn.Conv2d(3, 16, 4, 4)), "0")
    with pytest.raises(TypeError, match="not a OptimizedModule of it"):
        srtod.attach(torch.compile(make_detector()), "neck")


def torchvision_detector(kind: type[nn.Module]) -> tuple[Any, int]:
    """A torchvision detector with a small backbone, and the stride of its finest level."""
    torch.manual_seed(0)
    size = {"num_classes": 2, "min_size": 64, "max_size": 128}
    if kind is FasterRCNN:
        return FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), **size), 4
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4])
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((1.0,),) * 4)
    return RetinaNet(backbone, anchor_generator=anchors, **size), 8


@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet])
def test_torchvision_images_are_those_of_its_transform(kind: type[nn.Module]) -> None:
    detector, scale = torchvision_detector(kind)
    images = [torch.rand(3, 128, 160), torch.rand(3, 64, 96)]  # 64x80 after resizing, and as it is
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 24.0]]), "labels": torch.tensor([1])} for _ in images]
    with torch.no_grad():
        before = detector.eval()(images)
    reconstruction = srtod.attach(detector, "backbone", key="0", scale=scale, reconstruction_target="weighted_image")
    seen: list[Any] = []
    reconstruction.register_forward_pre_hook(lambda module, args: seen.extend(args))
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    assert losses["loss_reconstruction"] is reconstruction.loss
    level, pixels, sizes, boxes = seen
    assert level.shape == (2, 256, 64 // scale, 96 // scale)
    assert sizes == [(64, 80), (64, 96)]
    expected = F.interpolate(images[0][None], size=(64, 80), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(pixels[0, :, :, :80], expected, atol=1e-6, rtol=0)
    assert not pixels[0, :, :, 80:].any()
    torch.testing.assert_close(pixels[1], images[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(boxes), torch.tensor([[4.0, 4.0, 20.0, 12.0], [8.0, 8.0, 40.0, 24.0]]))
    reconstruction.detach()
    with torch.no_grad():
        for mine, theirs in zip(detector.eval()(images), before, strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_the_names_are_reached_from_the_package() -> None:
    detector = make_detector()
    reconstruction = srtod.attach(detector, "neck", read=lambda args, kwargs: ModelInput(args[0] / 255, [(60, 90)] * 2))
    assert isinstance(reconstruction, AttachedSelfReconstruction)
    assert detector(255 * torch.rand(2, 3, 64, 96))["loss_reconstruction"] > 0
