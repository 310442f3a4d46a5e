"""Necks: from the backbone's maps C2-C5 to the feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .backbones import Backbone
from .layers import ASPP

__all__ = ["FPN", "RecursiveFeaturePyramid", "RetinaFPN"]


class FPN(FeaturePyramidNetwork):
    """Feature pyramid P2-P6, strides 4 to 64 (Lin et al., "Feature Pyramid Networks for Object Detection", 2017).

    torchvision's pyramid with its levels named "p2" to "p6"; P6 is every second pixel of P5.

    Args:
        in_channels: channels of C2 to C5.
        channels: channels of every level.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(list(in_channels), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, features: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps C2-C5, each `[N, in_channels, h, w]`, to P2-P6, each `[N, channels, h, w]`, finest level first."""
        levels = super().forward(features)
        return OrderedDict((f"p{index}", level) for index, level in enumerate(levels.values(), start=2))


class RetinaFPN(FeaturePyramidNetwork):
    """Feature pyramid P3-P7 of one-stage detectors, strides 8 to 128 (Lin et al., "Focal Loss for Dense Object
    Detection", 2017, Sec. 4).

    torchvision's pyramid with its levels named "p3" to "p7"; P6 and P7 are made by 3x3 convolutions of stride 2.

    Args:
        in_channels: channels of C2 to C5, as of the other necks, though C2 is not used; those of C3 to C5 are enough.
        channels: channels of every level.
        p6_from: what P6 is made from: "c5" (RetinaNet) or "p5" (FCOS, ATSS).

    Raises:
        ValueError: if `in_channels` has another length, or `p6_from` is unknown.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, *, p6_from: str = "c5") -> None:
        if len(in_channels) not in (3, 4):
            raise ValueError(f"in_channels must be those of C2 to C5, or of C3 to C5, got {list(in_channels)}")
        if p6_from not in ("c5", "p5"):
            raise ValueError(f"unknown p6_from {p6_from!r}; choose c5 or p5")
        last = LastLevelP6P7(in_channels[-1] if p6_from == "c5" else channels, channels)
        last.use_P5 = p6_from == "p5"  # torchvision guesses it from the channels
        super().__init__(list(in_channels[-3:]), channels, extra_blocks=last)

    def forward(self, features: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps C3-C5 of the backbone's output, each `[N, in_channels, h, w]`, to P3-P7, each `[N, channels, h, w]`."""
        levels = super().forward({name: features[name] for name in ("c3", "c4", "c5")})
        return OrderedDict((f"p{index}", level) for index, level in enumerate(levels.values(), start=3))


class RecursiveFeaturePyramid(nn.Module):
    """Recursive feature pyramid of DetectoRS (Sec. 3): the image is looked at again, with the pyramid as feedback.

    The first step is an `FPN` of the first backbone's maps. Each further step

    1. maps the levels P3-P5 of the last step by `ASPP` and a 1x1 convolution to feedback,
    2. runs a backbone of its own on the image with that feedback (`Backbone.forward`),
    3. makes a pyramid of its maps, and
    4. fuses it with the last step's: gate * new + (1 - gate) * old, the gate in (0, 1) at every place being the sigmoid
       of a 1x1 convolution of the new level.

    As in the paper, the steps share FPN and ASPP (one for all levels, as in the authors' code, and so is the gate), but
    each has a bottom-up backbone of its own. The 1x1 convolutions of the feedback start at 0, and the gate at 1/2: two
    steps start as the mean of both pyramids, which is that of `FPN` where both backbones have the same weights.

        backbone = build_backbone(weights="DEFAULT", sac=True, output_image=True)
        again = build_backbone(weights="DEFAULT", sac=True)
        neck = RecursiveFeaturePyramid(again, backbone.channels)
        features = neck(backbone(images))

    Args:
        backbone: a ResNet for the second step, which becomes part of the neck; copies of it serve further steps.
        in_channels: channels of C2 to C5 of the first backbone, which must be `backbone`'s too.
        channels: channels of every level, divisible by 4.
        steps: number of steps, the first one included; at least 2.

    Raises:
        ValueError: if an option is out of its range, or the backbone is no ResNet or has other channels.
    """

    def __init__(self, backbone: Backbone, in_channels: Sequence[int], channels: int = 256, steps: int = 2) -> None:
        super().__init__()
        if steps < 2:
            raise ValueError(f"steps counts the first step and must be at least 2, got {steps}; one step is FPN")
        if not backbone.accepts_feedback:
            raise ValueError("a recursive feature pyramid needs a ResNet, whose first blocks take the feedback")
        if tuple(in_channels) != backbone.channels:
            raise ValueError(
                f"both backbones must have the same channels, got {tuple(in_channels)} and {backbone.channels}"
            )
        self.fpn = FPN(in_channels, channels)
        self.aspp = ASPP(channels, channels)
        self.backbones = nn.ModuleList([backbone, *(deepcopy(backbone) for _ in range(steps - 2))])
        self.connections = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, outputs, 1) for outputs in backbone.channels[1:]) for _ in self.backbones
        )
        self.gate = nn.Conv2d(channels, 1, 1)
        for parameter in [*self.connections.parameters(), *self.gate.parameters()]:
            nn.init.zeros_(parameter)

    def forward(self, features: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Maps the first backbone's output to P2-P6, each `[N, channels, h, w]`, finest level first.

        Args:
            features: "c2" to "c5", each `[N, in_channels, h, w]`, and "image", the backbone's input `[N, 3, H, W]`.

        Raises:
            ValueError: if the image is missing.
        """
        if "image" not in features:
            raise ValueError("a recursive feature pyramid needs the image; build the backbone with output_image=True")
        levels = self.fpn(_maps(features))
        for backbone, connections in zip(self.backbones, self.connections, strict=True):
            feedback = {}
            for level, connection in enumerate(connections.children(), start=3):
                feedback[f"c{level}"] = connection(self.aspp(levels[f"p{level}"]))
            again = self.fpn(_maps(backbone(features["image"], feedback)))
            levels = OrderedDict((name, self._fuse(levels[name], again[name])) for name in levels)
        return levels

    def _fuse(self, old: Tensor, new: Tensor) -> Tensor:
        gate = self.gate(new).sigmoid()
        return gate * new + (1 - gate) * old


def _maps(features: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((name, value) for name, value in features.items() if name != "image")
