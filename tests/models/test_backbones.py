"""Backbones and neck: maps, freezing, weights."""

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from srtod.models import BACKBONES, FPN, build_backbone
from srtod.models.layers import ConvAWS2d, SAConv2d


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=7)
    model(torch.randn(2, 3, 64, 64))  # gives the batch norms statistics of their own
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_maps_have_their_strides_and_channels(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert list(maps) == ["c2", "c3", "c4", "c5"]
    for stride, channels, level in zip((4, 8, 16, 32), backbone.channels, maps.values(), strict=True):
        assert level.shape == (1, channels, 64 // stride, 96 // stride)


def test_maps_are_the_classifiers() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", norm="batch").eval()
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    model.avgpool, model.fc = nn.Identity(), nn.Identity()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(backbone(image)["c5"].flatten(1), model(image))


def test_pyramid() -> None:
    neck = FPN((24, 32, 96, 320), channels=16)
    maps = {f"c{i + 2}": torch.randn(1, c, 32 >> i, 48 >> i) for i, c in enumerate((24, 32, 96, 320))}
    levels = neck(maps)
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "p2": (16, 32, 48),
        "p3": (16, 16, 24),
        "p4": (16, 8, 12),
        "p5": (16, 4, 6),
        "p6": (16, 2, 3),
    }
    assert next(iter(levels)) == "p2"


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_without_weights_everything_learns() -> None:
    backbone = build_backbone("mobilenet_v2").train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(norm.training for norm in batch_norms(backbone))


def test_with_weights_stem_stage_one_and_statistics_are_frozen(mobilenet_file: Path) -> None:
    backbone = build_backbone("mobilenet_v2", weights=mobilenet_file).train()
    assert backbone.training
    assert not any(norm.training for norm in batch_norms(backbone))
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))["c5"].mean().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    frozen = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert {name.split(".")[1] for name in frozen} == {"0", "1"}
    learned = [name for name, parameter in backbone.named_parameters() if parameter.grad is not None]
    assert {name.split(".")[1] for name in learned} == {"2", "3", "4"}


def test_options_override_the_defaults(mobilenet_file: Path) -> None:
    backbone = build_backbone("mobilenet_v2", weights=str(mobilenet_file), trainable_layers=5, norm="batch").train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(norm.training for norm in batch_norms(backbone))
    frozen = build_backbone("mobilenet_v2", trainable_layers=0)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(norm.training for norm in batch_norms(frozen.train()))
    group = build_backbone("mobilenet_v2", norm="group")
    assert not batch_norms(group)
    assert group(torch.randn(1, 3, 32, 32))["c5"].shape == (1, 320, 1, 1)


def test_weights_from_a_file(mobilenet_file: Path) -> None:
    state = torch.load(mobilenet_file, weights_only=True)
    backbone = build_backbone("mobilenet_v2", weights=mobilenet_file)
    assert torch.equal(backbone.layers[0][0][0].weight, state["features.0.0.weight"])
    assert torch.equal(backbone.layers[4][3].conv[3].running_mean, state["features.17.conv.3.running_mean"])


def test_torchvision_file() -> None:
    data = os.environ.get("SRTOD_DATA")
    path = Path(data or ".").parent / "weights" / "mobilenet_v2-b0353104.pth"
    if not data or not path.is_file():
        pytest.skip("set SRTOD_DATA to a data folder with ../weights/mobilenet_v2-b0353104.pth beside it")
    backbone = build_backbone("mobilenet_v2", weights=path)
    assert backbone(torch.zeros(1, 3, 64, 64))["c2"].shape == (1, 24, 16, 16)


def test_misfit_weights(tmp_path: Path, mobilenet_file: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit resnet18: \d+ keys missing .*unexpected"):
        build_backbone("resnet18", weights=mobilenet_file)
    state = torch.load(mobilenet_file, weights_only=True)
    state["features.0.0.weight"] = state["features.0.0.weight"][:16]
    torch.save(state, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"do not fit mobilenet_v2: size mismatch for features\.0\.0\.weight"):
        build_backbone("mobilenet_v2", weights=tmp_path / "narrow.pth")


@pytest.fixture(scope="module", params=["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def resnet_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    model = torchvision.models.get_model(request.param, weights=None)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # a mean and a scale of its own for each channel, as trained ones have
                size = len(module.weight)
                module.weight.mul_(torch.rand(size, 1, 1, 1) + 0.5).add_(0.01 * torch.randn(size, 1, 1, 1))
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics become those of the images below
        for _ in range(4):
            model(torch.randn(2, 3, 64, 64))
        for norm in batch_norms(model):
            norm.running_var.clamp_(min=0.01)  # a channel that is dead on so few pixels would multiply rounding errors
    torch.save(model.state_dict(), path)
    return request.param, path


@pytest.mark.parametrize("options", [{"conv_aws": True}, {"sac": True}, {"sac": True, "deformable": False}])
def test_a_plain_checkpoint_keeps_its_function(resnet_file: tuple[str, Path], options: dict[str, bool]) -> None:
    name, path = resnet_file
    plain = build_backbone(name, weights=path).eval()
    backbone = build_backbone(name, weights=path, **options).eval()  # type: ignore[arg-type]
    other = build_backbone(name, norm="frozen_batch", **options).eval()  # type: ignore[arg-type]
    missing, unexpected = other.load_state_dict(plain.state_dict())
    assert not missing
    assert not unexpected
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = plain(x)
        for model in (backbone, other):
            for level, value in model(x).items():
                # Measured up to 3e-6 of the largest value, as much as from moving the input by 1e-7.
                atol = 1e-5 * maps[level].abs().max().item()
                torch.testing.assert_close(value, maps[level], atol=atol, rtol=0)


def test_a_torchvision_classifier_with_standardised_weights(resnet_file: tuple[str, Path]) -> None:
    name, path = resnet_file
    state = torch.load(path, weights_only=True)
    model = (
        torchvision.models.get_model(name, weights=None).eval().double()
    )  # float32's rounding grows through 50 layers
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, child_name, ConvAWS2d.from_conv(child))
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    model.load_state_dict(state)  # strict: nothing is missing, nothing is left over
    torch.testing.assert_close(model(x), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def kinds(module: nn.Module) -> set[type]:
    return {type(m) for m in module.modules() if isinstance(m, nn.Conv2d)}


def test_where_convolutions_are_replaced() -> None:
    aws = build_backbone("resnet50", conv_aws=True)
    assert [kinds(layer) for layer in aws.layers] == [{ConvAWS2d}] * 5
    sac = build_backbone("resnet50", sac=True)
    for layer in sac.layers[2:]:
        for block in layer.children():
            assert type(block.conv2) is SAConv2d
            assert type(block.conv1) is type(block.conv3) is ConvAWS2d
        assert type(next(layer.children()).downsample[0]) is ConvAWS2d
    assert kinds(sac.layers[0]) == kinds(sac.layers[1]) == {nn.Conv2d}
    both = build_backbone("resnet18", sac=True, conv_aws=True, norm="group")
    assert kinds(both.layers[1]) == {ConvAWS2d}
    assert not batch_norms(both)
    assert both(torch.randn(1, 3, 64, 64))["c5"].shape == (1, 512, 2, 2)
    for name in ("sac", "conv_aws"):
        with pytest.raises(ValueError, match="is made for ResNets, got the backbone 'mobilenet_v2'"):
            build_backbone("mobilenet_v2", **{name: True})  # type: ignore[arg-type]


def test_replaced_convolutions_can_be_frozen() -> None:
    backbone = build_backbone("resnet18", sac=True, conv_aws=True, norm="frozen_batch", trainable_layers=2).train()
    backbone(torch.randn(1, 3, 64, 64))["c5"].square().sum().backward()
    learned = {name.split(".")[1] for name, p in backbone.named_parameters() if p.grad is not None}
    assert learned == {"3", "4"}
    assert all(p.grad is not None for p in backbone.layers[3:].parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_feedback(name: str) -> None:
    backbone = build_backbone(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = backbone(x)
        zeros = {level: torch.zeros_like(plain[level]) for level in ("c3", "c4", "c5")}
        for level, value in backbone(x, zeros).items():
            assert torch.equal(value, plain[level])
        seen = backbone(x, {"c4": torch.ones_like(plain["c4"])})
    assert torch.equal(seen["c3"], plain["c3"])
    assert not torch.allclose(seen["c4"], plain["c4"])
    # It is added to the output of the stage's first block, before its ReLU.
    before = []
    block = next(backbone.layers[3].children())
    handle = block.relu.register_forward_pre_hook(lambda _, args: before.append(args[0].clone()))
    for feedback in (None, {"c4": torch.ones_like(plain["c4"])}):
        backbone(x, feedback)
    handle.remove()
    calls = len(before) // 2
    torch.testing.assert_close(before[-1], before[calls - 1] + 1)


def test_misplaced_feedback() -> None:
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"feedback goes to a ResNet's stages c3, c4 and c5 only, got \['c3'\]"):
        build_backbone("mobilenet_v2")(x, {"c3": torch.zeros(1, 32, 8, 8)})
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match=r"only, got \['c2'\]"):
        backbone(x, {"c2": torch.zeros(1, 64, 16, 16)})
    with pytest.raises(ValueError, match=r"must have the shape \[1, 128, 8, 8\] here, got \[1, 16, 8, 8\]"):
        backbone(x, {"c3": torch.zeros(1, 16, 8, 8)})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_output_of_the_image(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    maps = build_backbone(name, output_image=True)(x)
    assert list(maps) == ["c2", "c3", "c4", "c5", "image"]
    assert maps["image"] is x


def test_unreadable_weights(tmp_path: Path, mobilenet_file: Path) -> None:
    with pytest.raises(ValueError, match="neither a file nor one of torchvision's weights of resnet50: IMAGENET1K_V1"):
        build_backbone("resnet50", weights="no_such_weights.pth")
    broken = tmp_path / "broken.pth"
    cut = mobilenet_file.read_bytes()[:5000]  # of which torch says: invalid argument
    for content in (b"", b"not a checkpoint at all", b"x = 1\n", b"PK\x03\x04 truncated", cut):
        broken.write_bytes(content)
        message = r"broken\.pth is not a readable weights file; pass the state dict of .* saved by torch\.save$"
        with pytest.raises(ValueError, match=message):
            build_backbone("mobilenet_v2", weights=broken)
    torch.save({"epoch": 3}, broken)
    with pytest.raises(
        ValueError, match="plain tensor as the weight epoch; pass the state dict of torchvision's mobile"
    ):
        build_backbone("mobilenet_v2", weights=broken)


def test_weights_that_memory_does_not_hold(mobilenet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        build_backbone("mobilenet_v2", weights=mobilenet_file)


def test_failed_download_says_how_to_pass_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(ConnectionError, match=r"fetch https://\S+/resnet18-\S+\.pth .* pass the path of the file"):
        build_backbone("resnet18", weights="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg"}, f"unknown backbone 'vgg'; choose one of {', '.join(BACKBONES)}"),
        ({"name": "resnet18", "trainable_layers": 6}, "trainable_layers must lie in 0 to 5"),
        ({"name": "resnet18", "norm": "layer"}, "unknown norm 'layer'"),
        ({"name": "resnet18", "norm": "group", "weights": "DEFAULT"}, "made for batch norm"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(**options)  # type: ignore[arg-type]
