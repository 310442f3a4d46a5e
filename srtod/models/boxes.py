"""Box arithmetic of the heads: regression deltas, boxes as Gaussians, and theoretical receptive fields.

Boxes are (x1, y1, x2, y2) in pixels. Half-precision inputs are computed, and returned, in float32: bfloat16 rounds a
coordinate of 1000 to a multiple of 4 pixels, as large as the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as det_utils

__all__ = [
    "BoxCoder",
    "gaussian_kl",
    "receptive_field_distance",
    "receptive_fields",
    "scale_boxes",
]


class BoxCoder:
    """Boxes as deltas from prior boxes (Girshick et al., "Rich Feature Hierarchies", 2014, Appendix C).

    With the prior's centre (x_p, y_p) and sides (w_p, h_p), and the box's (x, y) and (w, h):

        dx = (x - x_p) / w_p / stds[0]        dw = ln(w / w_p) / stds[2]
        dy = (y - y_p) / h_p / stds[1]        dh = ln(h / h_p) / stds[3]

    The arithmetic is torchvision's `det_utils.BoxCoder` with the weights 1 / stds. Decoding clamps the logarithms of
    the scales, `dw * stds[2]` and `dh * stds[3]`, to at most ln(1000 / 16), so that no box explodes.

    Args:
        stds: standard deviations that the deltas are divided by, so that targets have a variance near 1. Cascade R-CNN
            has (0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1) and (0.033, 0.033, 0.067, 0.067) in its stages.

    Raises:
        ValueError: if `stds` are not four positive numbers.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        if len(stds) != 4 or not all(std > 0 for std in stds):
            raise ValueError(f"stds must be four positive numbers (x, y, width, height), got {tuple(stds)}")
        self.stds = tuple(stds)
        self._coder = det_utils.BoxCoder(weights=tuple(1 / std for std in stds))

    def encode(
        self,
        boxes: Tensor,  # [..., 4], in pixels
        priors: Tensor,  # [..., 4], in pixels; the leading sizes broadcast
    ) -> Tensor:
        """The deltas (dx, dy, dw, dh) `[..., 4]` that take the priors to the boxes.

        Raises:
            ValueError: if a shape does not end in 4.
        """
        boxes, priors = _broadcast(boxes=boxes, priors=priors)
        return self._coder.encode_single(boxes.reshape(-1, 4), priors.reshape(-1, 4)).reshape(boxes.shape)

    def decode(
        self,
        deltas: Tensor,  # [..., 4]
        priors: Tensor,  # [..., 4], in pixels; the leading sizes broadcast
    ) -> Tensor:
        """The boxes `[..., 4]`, in pixels, that the deltas make of the priors; they are not clipped to the image.

        Raises:
            ValueError: if a shape does not end in 4.
        """
        deltas, priors = _broadcast(deltas=deltas, priors=priors)
        return self._coder.decode_single(deltas.reshape(-1, 4), priors.reshape(-1, 4)).reshape(deltas.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stds={self.stds})"


def scale_boxes(
    boxes: Tensor,  # [..., 4], in pixels
    ratio: float,
) -> Tensor:
    """Boxes `[..., 4]` with the same centres and sides `ratio` times as long; the input is left as it is."""
    boxes = at_least_float32(boxes)
    middles = centres(boxes)
    half_sides = (boxes[..., 2:] - boxes[..., :2]) * (ratio / 2)
    return torch.cat((middles - half_sides, middles + half_sides), dim=-1)


def gaussian_kl(
    objects: Tensor,  # [M, 4], in pixels
    priors: Tensor,  # [P, 4], in pixels
) -> Tensor:
    """Kullback-Leibler divergence of each prior from each object, `[M, P]`, both taken as 2-d Gaussians (RFLA).

    A box becomes the Gaussian whose mean is its centre and whose standard deviations are half its sides:

        KL(prior || object) = ((s_xp^2 + (x_p - x_o)^2) / s_xo^2 + (s_yp^2 + (y_p - y_o)^2) / s_yo^2) / 2
                              + ln(s_xo s_yo) - ln(s_xp s_yp) - 1

    It is 0 for equal boxes, changes smoothly where boxes do not even touch, and does not depend on their common scale.
    Every operation is rounded on its own, so the value of a pair does not depend on what else is in the call.

    Raises:
        ValueError: if the boxes are not `[M, 4]` and `[P, 4]`, finite and with x1 < x2 and y1 < y2.
    """
    objects, priors = check_boxes(objects, "objects"), check_boxes(priors, "priors")
    dtype = torch.promote_types(objects.dtype, priors.dtype)
    return kl_of_gaussians(as_gaussians(objects.to(dtype))[:, :, None], as_gaussians(priors.to(dtype))[:, None])


def receptive_field_distance(
    objects: Tensor,  # [M, 4], in pixels
    priors: Tensor,  # [P, 4], in pixels
) -> Tensor:
    """RFLA's receptive-field distance by KL, `1 / (1 + KL(prior || object))`, `[M, P]`, in (0, 1]; 1 for equal boxes.

    Despite its name it is larger the closer prior and object are (Xu et al., "RFLA: Gaussian Receptive Field based
    Label Assignment for Tiny Object Detection", 2022, section 3.2).

    Raises:
        ValueError: as `gaussian_kl`.
    """
    return 1 / (1 + gaussian_kl(objects, priors))


def as_gaussians(boxes: Tensor) -> Tensor:
    """Boxes `[N, 4]` as Gaussians, `[5, N]`: means x and y, variances x and y, ln of the product of both deviations."""
    x1, y1, x2, y2 = at_least_float32(boxes).unbind(dim=1)
    x_std, y_std = (x2 - x1) / 2, (y2 - y1) / 2
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x_std.square(), y_std.square(), x_std.log() + y_std.log()))


def kl_of_gaussians(
    objects: Tensor,  # [5, ...], from `as_gaussians`
    priors: Tensor,  # [5, ...], broadcasting
) -> Tensor:
    """KL(prior || object) `[...]`, see `gaussian_kl`."""
    x, y, x_variance, y_variance, log_scale = objects
    # Single operations, in place: a fused multiply-add would round differently at the edge of a vector.
    kl = (priors[0] - x).square_().add_(priors[2]).mul_(0.5 / x_variance)
    kl.add_((priors[1] - y).square_().add_(priors[3]).mul_(0.5 / y_variance))
    # KL is never negative; rounding could make it so, and 1 / (1 + KL) more than 1.
    return kl.sub_(priors[4]).add_(log_scale - 1).clamp_(min=0)


def receptive_fields(layers: Iterable[nn.Module], levels: int = 5) -> tuple[int, ...]:
    """Theoretical receptive fields of a pyramid's levels, from P2 on, in pixels along one axis.

    A layer with kernel k and dilation d on a map of stride j widens the field by (k - 1) d j. Counted is the longest
    way through the backbone: every `nn.Conv2d`, `nn.MaxPool2d` and `nn.AvgPool2d`, in the order in which the modules
    are registered, without the shortcuts that ResNets call "downsample". Not counted are the pyramid's own
    convolutions. P2 to P5 are so the fields of C2 to C5. Each further level adds one 3x3 convolution at its own stride:
    that is how RFLA comes to 555 for P6 (427 + 2 * 64), although P6, every second pixel of P5, sees no more than P5.

    ResNet-50: 35, 91, 267, 427, 555, and 811 for P7, the values that RFLA uses.

    Args:
        layers: the stem and the stages, in order, as `Backbone.layers`; the first level is the one after the stem.
        levels: how many levels to give.

    Raises:
        ValueError: if `levels` is not positive or there is nothing but a stem.
    """
    layers = list(layers)
    if len(layers) < 2:
        raise ValueError(f"layers must be a stem and at least one stage, got {len(layers)} layers")
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    field, stride = 1, 1
    fields = []
    for layer in layers:
        for window in _windows(layer):
            kernel, step, dilation = (_first(size) for size in (window.kernel_size, window.stride, window.dilation))
            field += (kernel - 1) * dilation * stride
            stride *= step
        fields.append(field)
    del fields[0]
    while len(fields) < levels:
        stride *= 2
        fields.append(fields[-1] + 2 * stride)
    return tuple(fields[:levels])


class _Window(NamedTuple):
    """What a convolution or a pooling looks at."""

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    dilation: int | tuple[int, ...]


def _windows(module: nn.Module) -> Iterator[_Window]:
    """The windows along the longest way through a module, in order."""
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
        yield _Window(module.kernel_size, module.stride, module.dilation)
    elif isinstance(module, nn.AvgPool2d):
        yield _Window(module.kernel_size, module.stride, 1)
    else:
        for name, child in module.named_children():
            if name != "downsample":  # a ResNet's shortcut, parallel to the convolutions
                yield from _windows(child)


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def centres(boxes: Tensor) -> Tensor:
    """The centres (x, y) of boxes `[..., 4]`: `[..., 2]`."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def areas(boxes: Tensor) -> Tensor:
    """The areas `[...]` of boxes `[..., 4]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes `[..., 4]` with others `[..., 4]`, element by element; torchvision has it for all pairs only."""
    lower, upper = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (upper - lower).clamp(min=0)
    intersection = shared[..., 0] * shared[..., 1]
    return intersection / (areas(boxes) + areas(others) - intersection)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and integers as float32, the rest as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_boxes(boxes: Tensor, name: str, *, allow_empty_sides: bool = False) -> Tensor:
    """Checks boxes `[N, 4]` and returns them in at least float32.

    Args:
        boxes: (x1, y1, x2, y2).
        name: of the argument, for the message.
        allow_empty_sides: whether x1 = x2 and y1 = y2 are allowed, as in proposals clipped to the image.

    Raises:
        ValueError: if the shape is another, or a box is not finite or its sides are not positive.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must have shape [N, 4], got {list(boxes.shape)}")
    boxes = at_least_float32(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    # A side of two finite coordinates is finite unless it overflows, and NaN or infinity makes it NaN or infinite.
    good = sides.isfinite() & ((sides >= 0) if allow_empty_sides else (sides > 0))
    if not bool(good.all()):
        first = int((~good.all(dim=1)).nonzero()[0])
        order = "x1 <= x2 and y1 <= y2" if allow_empty_sides else "x1 < x2 and y1 < y2"
        raise ValueError(f"{name}[{first}] must be finite with {order}, got {boxes[first].tolist()}")
    return boxes


def _broadcast(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Both tensors at one shape and in one type, at least float32."""
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or tensor.shape[-1] != 4:
            raise ValueError(f"{name} must have shape [..., 4], got {list(tensor.shape)}")
    first, second = tensors.values()
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return torch.broadcast_tensors(first.to(dtype), second.to(dtype))
