"""Backbones: torchvision classifiers that return C2-C5, the last maps of their stages at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from srtod._support.hub import on_disk
from srtod._support.tensor_files import check_weights, read_tensors

from .layers import ConvAWS2d, SAConv2d, TridentConv2d

__all__ = ["BACKBONES", "Backbone", "build_backbone"]

NORMS = ("frozen_batch", "batch", "group")
BRANCHED = 4
"""The layer, counted from 1, whose maps are C4: the last stage of TridentNet's backbone, which has the branches."""


class Backbone(nn.Module):
    """A stem and four stages, some of which may be frozen.

    Args:
        layers: the stem (stride 4 together with the first stage) and the four stages, each doubling the stride.
        channels: channels of C2 to C5.
        trainable_layers: how many of the five layers, from the last backwards, are trained; the others are frozen.
        freeze_statistics: whether batch norms keep their running statistics even in training mode.
        output_image: whether the output also carries the input, for necks that look at it again.
        branches: of the stage of C4, whose convolutions then are `TridentConv2d`. In training the batch must hold every
            image once a branch, all images of the first branch first (`DetectionTransform` has `copies`).
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        channels: Sequence[int],
        trainable_layers: int,
        freeze_statistics: bool,
        output_image: bool = False,
        branches: int = 1,
    ) -> None:
        super().__init__()
        self.branches = branches
        self.output_image = output_image
        self.layers = nn.ModuleList(layers)
        self.channels = tuple(channels)
        self.frozen_layers = len(layers) - trainable_layers
        self.freeze_statistics = freeze_statistics
        for layer in self.layers[: self.frozen_layers]:
            layer.requires_grad_(False)
        self.train(self.training)

    @property
    def accepts_feedback(self) -> bool:
        """Whether `forward` takes `feedback`: residual networks do."""
        return all(isinstance(next(layer.children(), None), (BasicBlock, Bottleneck)) for layer in self.layers[1:])

    def forward(self, x: Tensor, feedback: Mapping[str, Tensor] | None = None) -> OrderedDict[str, Tensor]:
        """Maps the normalised batch to the maps of the stages.

        Args:
            x: the batch, `[N, 3, H, W]`.
            feedback: maps "c3" to "c5", or some of them, with the shapes of the output; each is added in the first
                block of its stage to the sum of branch and shortcut, before the ReLU (DetectoRS, Fig. 3).

        Returns:
            C2-C5: "c2" `[N, channels[0], H/4, W/4]` to "c5" `[N, channels[3], H/32, W/32]`, and with `output_image` at
            last "image", the batch itself.

        Raises:
            ValueError: if feedback is given to a backbone without residual blocks, or under another name or shape.
        """
        feedback = {} if feedback is None else feedback
        if feedback and not (self.accepts_feedback and set(feedback) <= {"c3", "c4", "c5"}):
            raise ValueError(f"feedback goes to a ResNet's stages c3, c4 and c5 only, got {sorted(feedback)}")
        image = x
        copies = self.branches if self.training else 1
        if copies > 1:  # which are alike before they part
            x = x[: len(x) // copies]
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for index, layer in enumerate(self.layers, start=1):
            name = f"c{index}"
            if copies > 1 and index == BRANCHED:
                x = x.repeat(copies, 1, 1, 1)
                maps = OrderedDict((shared, value.repeat(copies, 1, 1, 1)) for shared, value in maps.items())
            if name in feedback:
                first, *others = layer.children()
                x = _add_in_block(first, x, feedback[name])
                for block in others:
                    x = block(x)
            else:
                x = layer(x)
            maps[name] = x
        del maps["c1"]
        if self.output_image:
            maps["image"] = image
        return maps

    def train(self, mode: bool = True) -> Backbone:
        """Sets the mode, but leaves frozen layers and frozen batch norms in evaluation mode."""
        super().train(mode)
        for layer in self.layers[: self.frozen_layers]:
            layer.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and self.freeze_statistics:
                module.eval()
            elif isinstance(module, TridentConv2d):  # frozen or not: the batch has its branches
                module.train(mode)
        return self


def build_backbone(
    name: str = "resnet50",
    *,
    weights: str | Path | None = None,
    trainable_layers: int | None = None,
    norm: str | None = None,
    sac: bool = False,
    conv_aws: bool = False,
    deformable: bool = True,
    output_image: bool = False,
    dilations: Sequence[int] = (1,),
) -> Backbone:
    """Builds a backbone by name.

    Args:
        name: one of `BACKBONES`.
        weights: name of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), which are downloaded; or a file with the
            state dict of the torchvision classifier, or its address `hf://OWNER/NAME[@REVISION]/FILE`; None starts
            from random weights.
        trainable_layers: how many of the layers (stem, stage 1 to 4), from the last backwards, are trained. Default: 3
            with weights, as the paper (stem and first stage frozen), and all 5 without.
        norm: "frozen_batch": batch norm with fixed statistics and trained scale and shift, as the paper; "batch";
            "group": group norm with 8 channels a group. Default: "frozen_batch" with weights, "batch" without.
        sac: whether a ResNet's 3x3 convolutions of the stages 2 to 4 (C3-C5) become switchable atrous convolutions
            (`SAConv2d`) and their 1x1 convolutions `ConvAWS2d`, as in DetectoRS. Either keeps the function of the
            weights it starts from.
        conv_aws: whether all convolutions of a ResNet, the stem's too, are `ConvAWS2d` where they are not `SAConv2d`,
            as in the authors' code.
        deformable: whether the switchable atrous convolutions are deformable, as in DetectoRS.
        output_image: whether the output also carries the input as "image", as `RecursiveFeaturePyramid` needs it.
        dilations: one for each branch of the stage of C4, whose 3x3 convolutions become `TridentConv2d` where there are
            several (TridentNet).

    Raises:
        ValueError: if an option is out of its range, or the weights or `sac` and `conv_aws` do not fit the backbone.
        ConnectionError: if the weights cannot be downloaded.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    if trainable_layers is None:
        trainable_layers = default_trainable_layers(weights)
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must lie in 0 to 5 (stem and four stages), got {trainable_layers}")
    if norm is None:
        norm = "batch" if weights is None else "frozen_batch"
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
    if norm == "group" and weights is not None:
        raise ValueError("torchvision's weights are made for batch norm; use norm='frozen_batch' or norm='batch'")
    if (sac or conv_aws) and not name.startswith("resnet"):
        raise ValueError(
            f"DetectoRS (sac and conv_aws) is made for ResNets, got the backbone {name!r}; choose a ResNet"
        )
    norm_layer = _group_norm if norm == "group" else nn.BatchNorm2d
    model = torchvision.models.get_model(name, weights=None, norm_layer=norm_layer)
    if weights is not None:
        _load_classifier(model, name, _state_dict(name, weights))
    layers, channels = BACKBONES[name](model)
    for stage, layer in enumerate(layers):  # the stem is stage 0
        if conv_aws or (sac and stage >= 2):
            _standardize(layer, sac=sac and stage >= 2, deformable=deformable)
    if len(dilations) > 1:
        _replace_convs(
            layers[BRANCHED - 1], lambda conv: TridentConv2d(conv, dilations) if conv.kernel_size == (3, 3) else conv
        )
    return Backbone(
        layers,
        channels,
        trainable_layers,
        freeze_statistics=norm == "frozen_batch",
        output_image=output_image,
        branches=len(dilations),
    )


def default_trainable_layers(weights: str | Path | None) -> int:
    """How many of the five layers are trained unless told otherwise: 3 with weights, as the paper; all 5 without."""
    return 5 if weights is None else 3


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


def _resnet(model: torchvision.models.ResNet) -> tuple[list[nn.Module], list[int]]:
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    channels = [model.fc.in_features // 2**halvings for halvings in (3, 2, 1, 0)]
    return [stem, model.layer1, model.layer2, model.layer3, model.layer4], channels


def _standardize(stage: nn.Module, *, sac: bool, deformable: bool) -> None:
    """Replaces a stage's convolutions by `ConvAWS2d`, or the 3x3 ones by `SAConv2d`, keeping their function."""

    def standardized(conv: nn.Conv2d) -> nn.Conv2d:
        if sac and conv.kernel_size == (3, 3):
            return SAConv2d.from_conv(conv, deformable=deformable)
        return ConvAWS2d.from_conv(conv)

    _replace_convs(stage, standardized)


def _replace_convs(stage: nn.Module, replacement: Callable[[nn.Conv2d], nn.Conv2d]) -> None:
    """Puts another convolution in the place of each of a stage."""
    for name, conv in list(stage.named_modules()):
        if isinstance(conv, nn.Conv2d):
            parent, _, attribute = name.rpartition(".")
            setattr(stage.get_submodule(parent), attribute, replacement(conv))


def _add_in_block(block: BasicBlock | Bottleneck, x: Tensor, feedback: Tensor) -> Tensor:
    """torchvision's residual block with one more summand, `[N, channels, h, w]` as its output."""
    branch = block.relu(block.bn1(block.conv1(x)))
    branch = block.bn2(block.conv2(branch))
    if isinstance(block, Bottleneck):
        branch = block.bn3(block.conv3(block.relu(branch)))
    if feedback.shape != branch.shape:
        raise ValueError(f"feedback must have the shape {list(branch.shape)} here, got {list(feedback.shape)}")
    shortcut = x if block.downsample is None else block.downsample(x)
    return block.relu(branch + shortcut + feedback)


def _mobilenet_v2(model: torchvision.models.MobileNetV2) -> tuple[list[nn.Module], list[int]]:
    bounds = [0, 2, 4, 7, 14, 18]  # the blocks of stride 2 open the stages; the 1280-channel convolution is left out
    layers = [model.features[start:end] for start, end in pairwise(bounds)]
    return layers, [layer[-1].out_channels for layer in layers[1:]]


BACKBONES: dict[str, Callable[[nn.Module], tuple[list[nn.Module], list[int]]]] = {
    "resnet18": _resnet,
    "resnet34": _resnet,
    "resnet50": _resnet,
    "resnet101": _resnet,
    "resnet152": _resnet,
    "mobilenet_v2": _mobilenet_v2,
}


def _state_dict(name: str, weights: str | Path) -> dict[str, Tensor]:
    """The classifier's state dict from torchvision's weights of that name, or from a file."""
    known = torchvision.models.get_model_weights(name)
    if str(weights) in known.__members__:
        chosen = known[str(weights)]
        try:
            return chosen.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the weights {weights} of {name} could not be downloaded ({error}); fetch {chosen.url} on a "
                f"machine that can, and pass the path of the file as weights"
            ) from error
    path = on_disk(weights).expanduser()
    if not path.is_file():
        raise ValueError(
            f"weights={str(weights)!r} is neither a file nor one of torchvision's weights of {name}: "
            f"{', '.join(known.__members__)}"
        )
    cure = f"pass the state dict of torchvision's {name}, saved by torch.save"
    state = read_tensors(path, f"is not a readable weights file; {cure}")
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no dictionary of weights; {cure}")
    check_weights(state, path, cure)
    return state


def _load_classifier(model: nn.Module, name: str, state: dict[str, Tensor]) -> None:
    """Loads everything but the classification layer, whose number of classes is of no matter here."""
    classifier = ("fc.", "classifier.")
    state = {key: value for key, value in state.items() if not key.startswith(classifier)}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name}: {str(error).strip().splitlines()[-1].strip()}") from error
    missing = [key for key in missing if not key.startswith(classifier)]
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit {name}: {len(missing)} keys missing {missing[:3]}, {len(unexpected)} unexpected "
            f"{unexpected[:3]}; pass the state dict of torchvision's {name}"
        )
