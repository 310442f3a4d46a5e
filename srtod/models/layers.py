"""Layers that torchvision lacks: those of DetectoRS (Qiao et al., "DetectoRS: Detecting Objects with Recursive Feature
Pyramid and Switchable Atrous Convolution", CVPR 2021), and the branches of TridentNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

__all__ = ["ASPP", "ConvAWS2d", "SAConv2d", "TridentConv2d", "deformable_conv2d"]


def deformable_conv2d(
    x: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2 * kernel height * kernel width, H', W'], y before x for each place of the kernel, in cells
    weight: Tensor,  # [C', C, kernel height, kernel width]
    bias: Tensor | None = None,  # [C']
    *,
    mask: Tensor | None = None,  # [N, kernel height * kernel width, H', W']
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """torchvision's `deform_conv2d` for features in any type: `[N, C', H', W']` in the features' type.

    Its kernels want one type: under autocast that of the weight, which is float32.
    """
    type_ = weight.dtype
    mask = None if mask is None else mask.to(type_)
    return deform_conv2d(x.to(type_), offset.to(type_), weight, bias, stride, padding, dilation, mask).to(x.dtype)


class ConvAWS2d(nn.Conv2d):
    """Convolution with adaptive weight standardisation, which starts as the plain convolution it is made from.

    The weight is standardised over each output channel to mean 0 and variance 1 (Qiao et al., "Micro-Batch Training
    with Batch-Channel Normalization and Weight Standardization", 2019), then scaled by `gamma` and shifted by `beta`:

        w' = gamma * (w - mean(w)) / sqrt(var(w) + eps) + beta

    The variance is the unbiased one, as in the authors' code; that of a single weight counts as 0.

    `gamma` and `beta` are buffers, not trained: the standard deviation and the mean that the weight started with, so
    that w' = w at the start, and mean and scale of w' stay there while the weight is trained. A state dict without
    them, such as a plain convolution's, sets them from its weight and thus keeps its function.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as `torch.nn.Conv2d`.
        eps: added to the variance.
    """

    padding: tuple[int, int]
    gamma: Tensor  # [out_channels, 1, 1, 1]
    beta: Tensor  # [out_channels, 1, 1, 1]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.eps = eps
        std, mean = self._statistics(self.weight.detach())
        self.register_buffer("gamma", std)
        self.register_buffer("beta", mean)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> ConvAWS2d:
        """Makes the layer from a plain convolution, whose function it keeps.

        Args:
            conv: the convolution; weight and bias are copied.
            options: further options of the layer.

        Raises:
            ValueError: if the convolution pads with anything but zeros or a fixed number of them.
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"{cls.__name__} needs a convolution with a number as padding and padding_mode='zeros', "
                f"got padding={conv.padding!r} and padding_mode={conv.padding_mode!r}"
            )
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            **options,
        ).to(conv.weight)
        layer.load_state_dict(conv.state_dict())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, out_channels, H', W']`, H' and W' as of `torch.nn.Conv2d`."""
        return self._conv_forward(x, self.standardized_weight(), self.bias)

    def standardized_weight(self) -> Tensor:
        """The weight that the convolution uses, `[out_channels, in_channels / groups, kernel height, kernel width]`."""
        std, mean = self._statistics(self.weight)
        return self.gamma * ((self.weight - mean) / std) + self.beta

    def _statistics(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviation and mean of every output channel, `[out_channels, 1, 1, 1]` each."""
        unbiased = min(1, weight[0].numel() - 1)  # a single weight has no unbiased variance
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=unbiased, keepdim=True)
        return torch.sqrt(variance + self.eps), mean

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        is_plain = f"{prefix}gamma" not in state_dict and f"{prefix}beta" not in state_dict
        if is_plain and weight is not None and weight.shape == self.weight.shape:
            std, mean = self._statistics(weight.detach().to(self.weight.dtype))
            state_dict[f"{prefix}gamma"], state_dict[f"{prefix}beta"] = std, mean
        super()._load_from_state_dict(state_dict, prefix, *args)


class SAConv2d(ConvAWS2d):
    """Switchable atrous convolution (DetectoRS, Sec. 4): one weight at two dilations, mixed by a switch at every place.

        x = x + pre_context(mean(x))
        y = S(x) * conv(x, w', dilation) + (1 - S(x)) * conv(x, w' + weight_difference, 3 * dilation)       (Eq. 4)
        y = y + post_context(mean(y))

    w' is the weight of `ConvAWS2d`, the means are taken over the map, and the switch S is a 1x1 convolution of the 5x5
    average around each place.

    It starts as the plain convolution: contexts, `weight_difference` and offsets are 0, and the switch is 1 everywhere
    (weight 0, bias 1). To reach 1 exactly the switch has no sigmoid, as in the authors' code, and so is not bounded to
    0 to 1. A state dict without these parts, such as a plain convolution's, puts them back to this start and thus keeps
    its function.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, eps: as `ConvAWS2d`; the
            padding must be that which keeps the size at stride 1.
        deformable: whether both convolutions are deformable, each with offsets of its own (a 3x3 convolution of the 5x5
            averages), as the authors'.

    Raises:
        ValueError: if the padding is another one.
    """

    RATE = 3  # dilation of the second convolution in units of the first's
    REACH = 2  # of the switch's 5x5 average

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        eps: float = 1e-5,
        deformable: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, eps=eps)
        # Only then do both convolutions and the switch yield maps of the same size.
        if any(2 * p != d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.kernel_size, strict=True)):
            raise ValueError(
                f"SAConv2d needs an odd kernel_size and padding = dilation * (kernel_size - 1) / 2, got "
                f"kernel_size={self.kernel_size}, dilation={self.dilation} and padding={self.padding}"
            )
        self.deformable = deformable
        self.weight_difference = nn.Parameter(torch.zeros_like(self.weight))
        self.pre_context = nn.Conv2d(in_channels, in_channels, 1)
        self.post_context = nn.Conv2d(out_channels, out_channels, 1)
        self.switch = nn.Conv2d(in_channels, 1, 1, stride)
        parts = [self.pre_context, self.post_context, self.switch]
        if deformable:
            coordinates = 2 * self.kernel_size[0] * self.kernel_size[1]
            self.offset = nn.Conv2d(in_channels, coordinates, 3, stride, padding=1)
            self.atrous_offset = nn.Conv2d(in_channels, coordinates, 3, stride, padding=1)
            parts += [self.offset, self.atrous_offset]
        for part in parts:
            nn.init.zeros_(part.weight)
            nn.init.constant_(part.bias, float(part is self.switch))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, out_channels, ceil(H / stride), ceil(W / stride)]`."""
        x = x + self.pre_context(x.mean((2, 3), keepdim=True))
        surroundings = self._average(x)
        switch = self.switch(surroundings)
        weight = self.standardized_weight()
        near = self._convolve(x, weight, 1, self.offset(surroundings) if self.deformable else None)
        offset = self.atrous_offset(surroundings) if self.deformable else None
        far = self._convolve(x, weight + self.weight_difference, self.RATE, offset)
        y = switch * near + (1 - switch) * far
        return y + self.post_context(y.mean((2, 3), keepdim=True))

    def _average(self, x: Tensor) -> Tensor:
        """The 5x5 average around each pixel, `[N, C, H, W]`; the map is reflected at its borders."""
        # A map of one or two pixels has nothing to reflect at that distance, there the border is repeated.
        mode = "reflect" if min(x.shape[-2:]) > self.REACH else "replicate"
        return F.avg_pool2d(F.pad(x, [self.REACH] * 4, mode), 2 * self.REACH + 1, stride=1)

    def _convolve(self, x: Tensor, weight: Tensor, rate: int, offset: Tensor | None) -> Tensor:
        padding = (rate * self.padding[0], rate * self.padding[1])
        dilation = (rate * self.dilation[0], rate * self.dilation[1])
        if offset is None:
            return F.conv2d(x, weight, self.bias, self.stride, padding, dilation, self.groups)
        stride: tuple[int, int] = self.stride  # type: ignore[assignment]
        return deformable_conv2d(x, offset, weight, self.bias, stride=stride, padding=padding, dilation=dilation)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        own = {name: p for name, p in self.named_parameters() if name not in ("weight", "bias")}
        if weight is not None and not any(f"{prefix}{name}" in state_dict for name in own):
            for name, parameter in own.items():
                state_dict[f"{prefix}{name}"] = weight.new_full(parameter.shape, float(name == "switch.bias"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling as DetectoRS connects its steps by (Sec. 3.2): parallel branches, concatenated.

    Every branch but the last is a convolution and a ReLU: 1x1 where the dilation is 1, 3x3 otherwise. The last takes
    the mean over the map first. No convolution follows the concatenation, unlike in DeepLab.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, of which every branch gives the same share.
        dilations: one for each branch.

    Raises:
        ValueError: if the output's channels cannot be shared evenly.
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int] = (1, 3, 6, 1)) -> None:
        super().__init__()
        if len(dilations) < 1 or out_channels % len(dilations):
            raise ValueError(
                f"out_channels must be divisible by the number of branches, got {out_channels} channels and dilations "
                f"{tuple(dilations)}"
            )
        share = out_channels // len(dilations)
        self.branches = nn.ModuleList()
        for dilation in dilations:
            size, padding = (1, 0) if dilation == 1 else (3, dilation)
            conv = nn.Conv2d(in_channels, share, size, padding=padding, dilation=dilation)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.branches.append(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, out_channels, H, W]`."""
        *convolutions, pooled = self.branches
        maps = [conv(x).relu() for conv in convolutions]
        context = pooled(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[-2:])
        return torch.cat([*maps, context], dim=1)


class TridentConv2d(nn.Conv2d):
    """A 3x3 convolution with one weight at several dilations, a branch each (Li et al., "Scale-Aware Trident Networks
    for Object Detection", ICCV 2019).

    In training the batch holds every image once a branch, all images of the first branch first. In evaluation there is
    the middle branch alone, the paper's fast approximation.

    Args:
        conv: the convolution whose weight the branches share; copied.
        dilations: of the branches.

    Raises:
        ValueError: if the convolution is not 3x3 with dilation and padding 1.
    """

    def __init__(self, conv: nn.Conv2d, dilations: Sequence[int]) -> None:
        if (conv.kernel_size, conv.dilation, conv.padding) != ((3, 3), (1, 1), (1, 1)):
            raise ValueError(
                f"TridentConv2d needs a 3x3 convolution with dilation and padding 1, got kernel_size="
                f"{conv.kernel_size}, dilation={conv.dilation} and padding={conv.padding}"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            3,
            conv.stride,  # type: ignore[arg-type]
            padding=1,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.load_state_dict(conv.state_dict())
        self.dilations = tuple(dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, in_channels, H, W]` to `[N, out_channels, H', W']`; the size is that of dilation 1."""
        if not self.training:
            return self._branch(x, self.dilations[len(self.dilations) // 2])
        images = x.chunk(len(self.dilations))
        return torch.cat([self._branch(*branch) for branch in zip(images, self.dilations, strict=True)])

    def _branch(self, x: Tensor, dilation: int) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, dilation, dilation, self.groups)
