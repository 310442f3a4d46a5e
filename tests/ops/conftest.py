"""What every op test shares: where the ops run, with which inputs, and how a result is judged.

A new device is one line in `DEVICES`. The tests get all of this as fixtures, because under pytest's importlib mode test
modules cannot import each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from srtod import ops
from srtod.ops import reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]  # test_cuda.py says so where there is no GPU
OPS = [
    name
    for name in ops.__all__
    if callable(getattr(reference, name, None)) and name != "high_frequency_difference_map"  # is PyTorch, fused nowhere
]
"""The ops that have compiled kernels and a specification."""
REGISTERED = sorted(
    name.removeprefix("srtod::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("srtod::") and name != "srtod::conv3x3"  # runs on some CPUs alone: test_conv3x3.py
)
"""The names in `torch.ops.srtod`, backward ops included."""
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced", "expanded"]


class Sizes(NamedTuple):
    """Of features [batch, channels, h, w], maps and images [batch, ., H, W], and an MLP of `hidden` values."""

    batch: int
    channels: int
    h: int
    w: int
    H: int
    W: int
    hidden: int


SIZES = {
    "even": Sizes(2, 16, 8, 12, 32, 48, 4),
    "odd": Sizes(3, 5, 7, 13, 29, 50, 3),
    "one": Sizes(1, 1, 1, 1, 1, 1, 1),
    "upsampled": Sizes(1, 3, 9, 10, 4, 3, 2),
    "long_rows": Sizes(1, 3, 49, 85, 9, 1100, 1),  # longer than the tiles of planes (2048, 4096) and image rows (512)
    "many_channels": Sizes(1, 640, 11, 10, 44, 40, 8),  # two blocks of 65536 elements in channels_last
    "empty": Sizes(0, 4, 6, 5, 12, 10, 2),
}


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where the compiled ops run."""
    if not ops.is_fused(request.param):
        pytest.skip(f"no compiled ops for {request.param} here; `python -m srtod.info` tells why")
    return str(request.param)


@pytest.fixture(params=OPS, scope="session")
def op(request: pytest.FixtureRequest) -> str:
    """Every compiled op."""
    return str(request.param)


@pytest.fixture(params=[name for name in ops.__all__ if name.rstrip("_") in OPS], scope="session")
def public_op(request: pytest.FixtureRequest) -> str:
    """Every compiled op and every one that works in place."""
    return str(request.param)


@pytest.fixture(params=REGISTERED, scope="session")
def registered_op(request: pytest.FixtureRequest) -> str:
    """Every op of `torch.ops.srtod`."""
    return str(request.param)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."), scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of features, difference maps and images."""
    result: torch.dtype = request.param
    return result


@pytest.fixture(params=LAYOUTS, scope="session")
def layout(request: pytest.FixtureRequest) -> str:
    """How 4-d inputs lie in memory, see `lay_out`."""
    return str(request.param)


@pytest.fixture(params=["contiguous", "channels_last"], scope="session")
def native_layout(request: pytest.FixtureRequest) -> str:
    """The layouts that the ops must not copy."""
    return str(request.param)


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys(), scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    """Even, odd, tiny, large and empty sizes."""
    result: Sizes = request.param
    return result


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The 4-d tensor with other strides and the same values ("expanded": the first sample's, in every sample)."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":  # NaN all around: reading a neighbour shows
        around = x.new_full((x.shape[0], x.shape[1] + 1, 2 * x.shape[2], 3 * x.shape[3] + 1), float("nan"))
        return around[:, 1:, ::2, 1::3].copy_(x)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x.contiguous()


@dataclass
class Case:
    """One call of the op of this name in `srtod.ops`, and of its specification in `srtod.ops.reference`."""

    op: str
    tensors: dict[str, Tensor]  # may get gradients
    options: dict[str, Any] = field(default_factory=dict)  # also tensors that get none

    def run(self) -> tuple[Tensor, ...]:
        """What the compiled op returns, but for results that are None."""
        return _as_tuple(getattr(ops, self.op)(**self.tensors, **self.options))

    def gradients(self, outputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Of `sum(output * cotangent)`, by all `tensors`."""
        gradients = torch.autograd.grad(outputs, list(self.tensors.values()), cotangents)
        return dict(zip(self.tensors, gradients, strict=True))

    def require_grad(self) -> Case:
        """Makes all `tensors` leaves that get gradients."""
        self.tensors = {name: x.detach().requires_grad_() for name, x in self.tensors.items()}
        return self

    def specified(self) -> tuple[Tensor, ...]:
        """What the reference returns in the same dtypes."""
        return _as_tuple(getattr(reference, self.op)(**self.tensors, **self.options))

    def in_float64(self) -> Case:
        """The same case, exactly, in float64: its `specified` results and gradients are those before rounding."""
        return Case(self.op, {name: x.detach().double() for name, x in self.tensors.items()}, self.options)


def _as_tuple(outputs: Tensor | tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(x for x in outputs if x is not None) if isinstance(outputs, tuple) else (outputs,)


THRESHOLD = 1 / 64
"""About 4/255, and a value that every dtype holds, so that differences can equal it."""


def make_difference(sizes: Sizes) -> Tensor:
    """[N, 1, H, W] of multiples of 1/1024 up to 1/16: exact in every dtype, with repeated values and ties."""
    return torch.randint(0, 64, (sizes.batch, 1, sizes.H, sizes.W)) / 1024


def make_valid_size(sizes: Sizes, device: str) -> Tensor:
    """A part of each image, smaller from one to the next."""
    valid = [(max(sizes.H - 3 * n, 0), max(sizes.W - 5 * n - 1, 1)) for n in range(sizes.batch)]
    return torch.tensor(valid, dtype=torch.int64, device=device).reshape(-1, 2)


def make_case(
    op: str,
    sizes: Sizes = SIZES["even"],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
    *,
    mlp_dtype: torch.dtype | None = None,
    **options: Any,
) -> Case:
    """Random inputs for the op, of which all get gradients; `valid_size=True` makes one.

    The names of the op's parameters tell what is made: a new op needs a line only where it has a name of its own.
    """
    if options.get("valid_size"):
        options["valid_size"] = make_valid_size(sizes, device)
    parameters = inspect.signature(getattr(ops, op)).parameters
    if "difference_gradient" in parameters:
        options.setdefault("difference_gradient", True)
    if "size" in parameters:
        options["size"] = (sizes.h, sizes.w)
    images = (sizes.batch, sizes.channels if sizes.channels <= 5 else 3, sizes.H, sizes.W)
    features = (sizes.batch, sizes.channels, sizes.h, sizes.w)

    def of_mlp(*shape: int) -> Tensor:
        return (torch.randn(shape) * 0.3).to(device, mlp_dtype or dtype)

    make: dict[str, Callable[[], Tensor]] = {
        "reconstruction": lambda: (torch.randn if options.get("from_logits") else torch.rand)(images),
        "image": lambda: torch.rand(images),
        "features": lambda: torch.randn(features),
        "difference": lambda: make_difference(sizes),
        "threshold": lambda: torch.tensor(THRESHOLD, device=device),
        "weight1": lambda: of_mlp(sizes.hidden, sizes.channels),
        "bias1": lambda: of_mlp(sizes.hidden),
        "weight2": lambda: of_mlp(sizes.channels, sizes.hidden),
        "bias2": lambda: of_mlp(sizes.channels),
    }
    tensors = {name: make[name]() for name in parameters if name in make}
    tensors = {name: lay_out(x.to(device, dtype), layout) if x.dim() == 4 else x for name, x in tensors.items()}
    return Case(op, tensors, options)


def make_calls(
    sizes: Sizes, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous"
) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op that srtod registers, `torch.ops.srtod.*`; test_torch_features.py names what is missing."""
    dgfe = make_case("dgfe", sizes, dtype, device, layout).tensors
    features, difference, threshold, *mlp = dgfe.values()
    reconstruction, image = make_case("difference_map", sizes, dtype, device, layout).tensors.values()
    valid_size = make_valid_size(sizes, device)
    _, *kept = torch.ops.srtod.dgfe(*dgfe.values(), 2, 4, 32.0)
    pooled = kept[1:]
    weights_grad, filter_grad = torch.randn_like(pooled[0]), torch.randn_like(features[:, :1]).contiguous()
    map_grad, mse_grad = torch.randn_like(image[:, :1]), torch.tensor(0.5, device=device)
    maps_grad = torch.randn_like(features)
    return {
        "difference_map": (reconstruction, image, True),
        "reconstruction_difference": (reconstruction, image, False, valid_size),
        "_reconstruction_difference_backward": (map_grad, mse_grad, reconstruction, image, False, valid_size),
        "filtration": (difference, threshold, sizes.h, sizes.w, 3, 2, 40.0),
        "_filtration_backward": (filter_grad, difference, threshold, 1, 3, 40.0, True),
        "channel_reweighting": (features, *mlp),
        "_channel_reweighting_backward": (weights_grad, features, *pooled, *mlp[0:3:2]),
        "dgfe": (features, difference, threshold, *mlp, 0, 2, 112.0),
        "dgfe_": (features.clone(), difference, threshold, *mlp, 2),
        "_dgfe_backward": (maps_grad, features, difference, threshold, *kept, *mlp[0:3:2], 2, 4, 32.0, True),
    }


ARITHMETIC = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative errors of the arithmetic itself. Measured worst cases (CPU, torch 2.14, AVX-512): 5.5e-6 and 1.3e-13."""


def assert_rounded_once(
    actual: Tensor, exact: Tensor, arithmetic: float, what: str, pytorch: Tensor | None = None, cancelled: float = 0.0
) -> None:
    """`actual` is `exact` (float64), computed with a relative error of `arithmetic` and rounded once to its own dtype.

    So `|actual - exact|` is at most half a unit in the last place of actual's dtype, plus `arithmetic` times the
    greatest value (sums cancel, so their error is not in proportion to each element). Where `pytorch` is given, the
    same from PyTorch in actual's dtype, twice its error is allowed too; `cancelled` is one more error that is.
    """
    if exact.isnan().all():  # also without elements
        assert actual.isnan().all(), what
        return
    kind = torch.finfo(actual.dtype)
    rounding = kind.eps / 2 * exact.abs() + kind.smallest_normal * kind.eps / 2
    tolerance = rounding + arithmetic * exact.abs().max() + cancelled
    if pytorch is not None:
        tolerance += 2 * (pytorch.double() - exact).abs().max()
    excess = (actual.double() - exact).abs() - tolerance
    worst = excess.flatten().argmax()
    assert excess.max() <= 0, (  # written so that NaN fails
        f"{what} {list(actual.shape)} {actual.dtype}: got {actual.flatten()[worst].item()}, "
        f"expected {exact.flatten()[worst].item()} (greatest {exact.abs().max().item()}) at flat index {worst.item()}"
    )


def assert_agrees(case: Case, cancelling: float = 1.0) -> None:
    """Forward and backward of the compiled op agree with the specification, in value, shape, dtype and layout.

    The errors of the parameters' gradients may be `cancelling` times as large: in thousands of random cases there is
    one in which so many digits of a sum cancel.
    """
    case.require_grad()
    exact_case = case.in_float64().require_grad()
    outputs, specified, exact = case.run(), case.specified(), exact_case.specified()
    main = next(iter(case.tensors.values()))
    arithmetic = ARITHMETIC[reference.compute_dtype(main.dtype)]
    rough_weights = case.options.get("resize") == "bilinear" and main.dtype != torch.float64
    if rough_weights:
        arithmetic = 1e-4  # positions up to 1100 in float32, as PyTorch's own: weights are off by up to 6e-5
    assert len(outputs) == len(exact)
    for k, output in enumerate(outputs):
        assert (output.shape, output.dtype) == (specified[k].shape, specified[k].dtype)
        assert_rounded_once(output, exact[k], arithmetic, f"{case.op} output {k}")
    # Drawn on the CPU, so that they are the same on every device.
    cotangents = tuple(torch.randn_like(output, device="cpu").to(output.device) for output in outputs)
    gradients = case.gradients(outputs, cotangents)
    exact_gradients = exact_case.gradients(exact, tuple(c.double() for c in cotangents))
    pytorch = case.gradients(specified, cotangents)
    for name, gradient in gradients.items():
        tensor = case.tensors[name]
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype), name
        # The parameters' gradients are sums over all pixels: where these cancel, few digits are left to any float32.
        may_cancel = tensor.dim() < 4 or rough_weights
        cancelled = 0.0
        if name == "threshold" and "difference" in exact_gradients:  # which are its terms
            eps = torch.finfo(reference.compute_dtype(main.dtype)).eps
            cancelled = eps * exact_gradients["difference"].nan_to_num().abs().sum().item()
        what = f"{case.op} gradient of {name}"
        torchs = pytorch[name] if may_cancel else None
        error = arithmetic * (cancelling if may_cancel else 1)
        assert_rounded_once(gradient, exact_gradients[name], error, what, torchs, cancelled)
    assert follows_layout(gradients[next(iter(case.tensors))], main)


def follows_layout(result: Tensor, source: Tensor) -> bool:
    """Whether `result` is channels_last where `source` is so only, else contiguous."""
    if not source.is_contiguous() and source.is_contiguous(memory_format=torch.channels_last):
        return result.is_contiguous(memory_format=torch.channels_last)
    return result.is_contiguous()


class Kit(NamedTuple):
    """The functions above, as the tests call them."""

    case: Callable[..., Case] = make_case
    calls: Callable[..., dict[str, tuple[Any, ...]]] = make_calls
    lay_out: Callable[[Tensor, str], Tensor] = lay_out
    assert_agrees: Callable[..., None] = assert_agrees
    follows_layout: Callable[[Tensor, Tensor], bool] = follows_layout
    sizes: dict[str, Sizes] = SIZES
    new_sizes: type[Sizes] = Sizes
    ops: list[str] = OPS
    registered: list[str] = REGISTERED


@pytest.fixture(scope="session")
def kit() -> Kit:
    """Makes cases and judges results."""
    return Kit()
