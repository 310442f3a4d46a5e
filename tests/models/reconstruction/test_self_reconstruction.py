"""The plug between neck and head: loss, padding, sizes, threshold, in-place form, the paper's ablations."""

import copy
import itertools
import math
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srtod.models import ReconstructionHead, SelfReconstruction
from srtod.models.reconstruction import strips
from srtod.ops import reference
from srtod.ops.reference import nearest

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "none": {"enhancement": "none"},
    "multiplication": {"enhancement": "multiplication"},
    "concatenation": {"enhancement": "concatenation"},
    "attention": {"enhancement": "attention"},
    "fixed": {"learn_threshold": False},
    "without_threshold": {"threshold": None},
    "multiplication_without_threshold": {"enhancement": "multiplication", "threshold": None},
    "concatenation_without_threshold": {"enhancement": "concatenation", "threshold": None},
    "multiplication_fixed": {"enhancement": "multiplication", "learn_threshold": False},
    "subpixel": {"reconstruction": "subpixel"},
    "resampled": {"reconstruction": "resampled"},
    "auto": {"reconstruction": "subpixel", "threshold": "auto"},
    "soft": {"enhancement": "soft"},
    "high_frequency": {"difference": "high_frequency"},
    "high_frequency_multiplication": {"difference": "high_frequency", "enhancement": "multiplication", "cutoff": 0.1},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(**options: object) -> SelfReconstruction:
    """The paper's head and a threshold, unless the options say otherwise."""
    torch.manual_seed(0)
    paper = {"reconstruction": "paper", "enhancement": "dgfe", "resize": "nearest", "threshold": 4 / 255}
    return SelfReconstruction(16, **paper | options)


def example(height: int = 24, width: int = 32, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, 16, -(-height // 4), -(-width // 4), generator=generator)
    return features, torch.rand(batch, 3, height, width, generator=generator)


def test_options_of_a_filter_without_a_filter_are_told() -> None:
    with pytest.warns(UserWarning, match="^threshold, resize: no effect with enhancement='none'"):
        SelfReconstruction(16, threshold=4 / 255, resize="nearest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SelfReconstruction(16)
        make()


def test_output_is_the_reference_formula() -> None:
    module = make(surrogate="none", threshold=0.25)
    features, image = example()
    enhanced, output = module(features, image)
    logits = module.reconstruction_head.logits(features)
    difference, loss = reference.reconstruction_difference(logits, image, from_logits=True)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.difference, difference)
    torch.testing.assert_close(output.reconstruction, module.reconstruction_head(features))
    threshold, *mlp = module.dgfe.parameters()
    expected = reference.dgfe(features, difference, threshold, *mlp, surrogate="none")
    assert torch.equal(enhanced, expected) or torch.allclose(enhanced, expected, rtol=1e-6, atol=1e-6)
    filter_ = module.filter(output.difference, (6, 8))
    assert filter_.shape == (2, 1, 6, 8)
    assert set(filter_.unique().tolist()) == {1.0, 2.0}


def test_loss_leaves_padding_out_unless_asked() -> None:
    features, image = example()
    sizes = [(24, 32), (13, 17)]
    image[1, :, 13:] = 0
    image[1, :, :, 17:] = 0
    masked, paper = make(), make(padding_in_loss=True)
    squared = (masked.reconstruction_head(features) - image).square()
    valid = torch.cat([squared[0].flatten(), squared[1, :, :13, :17].flatten()])
    torch.testing.assert_close(masked(features, image, sizes)[1].loss, valid.mean())
    torch.testing.assert_close(paper(features, image, sizes)[1].loss, squared.mean())
    changed = image.clone()
    changed[1, :, 20:] = 1
    assert torch.equal(masked(features, changed, sizes)[1].loss, masked(features, image, sizes)[1].loss)
    assert paper(features, changed, sizes)[1].loss != paper(features, image, sizes)[1].loss


@pytest.mark.parametrize("size", [(24, 32), (21, 30), (1, 1), (23, 4)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    features, image = example(*size)
    enhanced, output = make()(features, image)
    assert enhanced.shape == features.shape
    assert output.difference.shape == (2, 1, *size)
    assert output.reconstruction.shape == image.shape


def test_stride_eight() -> None:
    enhanced, output = make(scale=8)(torch.randn(1, 16, 3, 4), torch.rand(1, 3, 24, 32))
    assert enhanced.shape == (1, 16, 3, 4)
    assert output.prediction.shape == (1, 3, 24, 32)


@pytest.mark.parametrize("difference_gradient", [False, True])
@pytest.mark.parametrize("surrogate", ["none", "ste", "sigmoid", "atan", "triangle", "rect"])
def test_gradients(surrogate: str, difference_gradient: bool) -> None:
    module = make(surrogate=surrogate, threshold=0.25, difference_gradient=difference_gradient)
    features, image = example()
    features.requires_grad_()
    enhanced, _ = module(features, image)
    (enhanced * torch.linspace(-1, 2, enhanced.numel()).view_as(enhanced)).sum().backward()
    learns = surrogate != "none"  # the authors' zero gradient reaches neither the threshold nor the head
    assert bool(module.dgfe.threshold.grad) == learns
    head = module.reconstruction_head.out.weight.grad
    assert (head is not None and bool(head.any())) == (learns and difference_gradient)
    assert features.grad is not None
    assert features.grad.any()


def test_loss_reaches_the_features() -> None:
    module = make()
    features, image = example()
    features.requires_grad_()
    module(features, image)[1].loss.backward()
    assert features.grad is not None
    assert features.grad.any()


def test_threshold_name_and_value() -> None:
    name = [name for name, parameter in make(threshold=3 / 255).named_parameters() if parameter.dim() == 0]
    assert name == ["dgfe.threshold"]
    assert make(threshold=3 / 255).dgfe.threshold.item() == pytest.approx(3 / 255)
    fixed = make(learn_threshold=False)
    assert not any(n.endswith("threshold") for n, p in fixed.named_parameters() if p.requires_grad)


def test_inplace_gives_the_same_and_spares_training() -> None:
    features, image = example()
    with torch.no_grad():
        expected, _ = make()(features.clone(), image)
        overwritten = features.clone()
        enhanced, _ = make(inplace=True)(overwritten, image)
    assert torch.equal(enhanced, expected)
    assert enhanced.data_ptr() == overwritten.data_ptr()
    before = features.clone()
    make(inplace=True)(features, image)
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("features", "image", "sizes", "message"),
    [
        ((2, 16, 6, 8), (2, 3, 25, 32), None, r"must have the size \[7, 8\], got \[6, 8\]"),
        ((2, 16, 7, 8), (2, 3, 24, 32), None, r"must have the size \[6, 8\], got \[7, 8\]"),
        ((2, 16, 3, 4), (2, 3, 24, 32), None, "set scale to the stride"),
        ((1, 16, 6, 8), (2, 3, 24, 32), None, "with the same N"),
        ((2, 16, 6, 8), (2, 1, 24, 32), None, r"image \[N, 3, H, W\]"),
        ((2, 8, 6, 8), (2, 3, 24, 32), None, r"expects features \[N, 16, h, w\]"),
        ((2, 16, 6, 8), (2, 3, 24, 32), [(24, 32)], "one .height, width. per image, got 1 for 2"),
    ],
)
def test_shapes_must_fit(
    features: tuple[int, ...], image: tuple[int, ...], sizes: list[tuple[int, int]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(features), torch.zeros(image), sizes)


@pytest.mark.parametrize(
    "image", [torch.full((2, 3, 24, 32), 200.0), torch.randn(2, 3, 24, 32), torch.tensor(torch.nan)]
)
def test_image_must_not_be_normalised(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image must be un-normalised"):
        make()(torch.zeros(2, 16, 6, 8), image.expand(2, 3, 24, 32))


# --- the paper's ablations --------------------------------------------------------------------------------------------


@every_variant
def test_every_variant_trains_and_makes_pictures(variant: str) -> None:
    module = make(**VARIANTS[variant])
    features, image = example()
    features.requires_grad_()
    enhanced, output = module(features, image, [(24, 32), (13, 17)])
    assert (enhanced.shape, enhanced.dtype) == (features.shape, features.dtype)
    assert output.difference.shape == (2, 1, 24, 32)
    assert output.difference.min() >= 0
    (enhanced.square().sum() + output.loss).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    for resize in ("nearest", "max", "area", "bilinear"):
        other = make(**VARIANTS[variant], resize=resize)
        filter_ = other.filter(output.difference.detach(), (6, 8))
        assert filter_.shape == (2, 1, 6, 8)
        assert 1 <= filter_.min() <= filter_.max() <= 2
        assert other(*example())[0].isfinite().all()


@every_variant
def test_every_variant_under_autocast(variant: str) -> None:
    module = make(**VARIANTS[variant])
    features, image = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enhanced, output = module(features.bfloat16(), image)
    assert enhanced.dtype == torch.bfloat16
    assert output.loss.dtype == output.difference.dtype == torch.float32
    (enhanced.float().square().sum() + output.loss).backward()


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"attention"}))  # the default by the paper's other name
def test_every_variant_compiles_without_graph_break(variant: str) -> None:
    torch.compiler.reset()
    cheapest = {} if variant == "default" else {"reconstruction": "subpixel"}  # the head is the same in all variants
    module = make(**cheapest | VARIANTS[variant])
    other = copy.deepcopy(module)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    features, image = example()
    sizes = [(24, 32), (13, 17)]
    results = []
    for run in (module, compiled):
        enhanced, output = run(features, image, sizes)
        (enhanced.square().sum() + output.loss).backward()
        results.append((enhanced.detach(), output.loss.detach(), output.difference.detach()))
    torch.testing.assert_close(results[1], results[0])
    for mine, expected in zip(other.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)


@every_variant
def test_every_variants_state_dict(variant: str) -> None:
    module, other = make(**VARIANTS[variant]), make(**VARIANTS[variant])
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(*example())[0], module(*example())[0], rtol=0, atol=0)
    names = {name for name in module.state_dict() if not name.startswith("reconstruction_head.")}
    mlp = {"dgfe.fc1.weight", "dgfe.fc1.bias", "dgfe.fc2.weight", "dgfe.fc2.bias"}
    assert names == {
        "none": set(),
        "multiplication": {"multiplication.threshold"},
        "multiplication_fixed": {"multiplication.threshold"},
        "multiplication_without_threshold": set(),
        "concatenation": {"concatenation.threshold", "concatenation.conv.weight", "concatenation.conv.bias"},
        "concatenation_without_threshold": {"concatenation.conv.weight", "concatenation.conv.bias"},
        "without_threshold": mlp,
        "auto": mlp | {f"dgfe.{name}" for name in ("threshold", "quantiles", "steps", "settled")},
        "high_frequency_multiplication": {"multiplication.threshold"},
    }.get(variant, mlp | {"dgfe.threshold"})


def binary(module: SelfReconstruction, difference: Tensor) -> Tensor:
    """The paper's D_b at the level's size, 24x32 to 6x8 by every fourth pixel."""
    assert module.threshold is not None
    return (((difference - module.threshold).sign() + 1) * 0.5)[:, :, ::4, ::4]


@pytest.mark.parametrize("threshold", [0.3, None])
@pytest.mark.parametrize("enhancement", ["none", "multiplication", "concatenation", "dgfe", "attention"])
def test_formulas(enhancement: str, threshold: float | None) -> None:
    module = make(enhancement=enhancement, threshold=threshold)
    features, image = example()
    if enhancement == "concatenation":
        torch.testing.assert_close(module(features, image)[0], features)  # it starts as the plain detector
        torch.nn.init.normal_(module.concatenation.conv.weight)
        torch.nn.init.normal_(module.concatenation.conv.bias)
    enhanced, output = module(features, image)
    if enhancement == "none":
        assert enhanced is features
        assert bool((module.filter(output.difference, (6, 8)) == 1).all())
        return
    guide = output.difference[:, :, ::4, ::4] if threshold is None else binary(module, output.difference)
    assert 0 < guide.mean() < 1
    torch.testing.assert_close(module.filter(output.difference, (6, 8)), guide + 1)
    if enhancement == "multiplication":
        expected = guide * features
    elif enhancement == "concatenation":
        conv = module.concatenation.conv
        expected = F.conv2d(torch.cat([features, guide], dim=1), conv.weight, conv.bias)
    else:
        mlp = (module.dgfe.fc1.weight, module.dgfe.fc1.bias, module.dgfe.fc2.weight, module.dgfe.fc2.bias)
        expected = reference.channel_reweighting(features, *mlp) * (guide + 1) * features
    torch.testing.assert_close(enhanced, expected)


@pytest.mark.parametrize("resize", ["nearest", "max", "area", "bilinear"])
def test_without_a_threshold_the_map_itself_is_resized(resize: str) -> None:
    module = make(threshold=None, resize=resize)
    difference = torch.rand(2, 1, 29, 37)
    resizes: dict[str, Callable[[Tensor], Tensor]] = {
        "nearest": lambda x: F.interpolate(x, (8, 10), mode="nearest"),
        "max": lambda x: F.adaptive_max_pool2d(x, (8, 10)),
        "area": lambda x: F.adaptive_avg_pool2d(x, (8, 10)),
        "bilinear": lambda x: F.interpolate(x, (8, 10), mode="bilinear", align_corners=False),
    }
    torch.testing.assert_close(module.filter(difference, (8, 10)), resizes[resize](difference) + 1)


def test_attention_is_dgfe() -> None:
    assert make(enhancement="attention").state_dict().keys() == make().state_dict().keys()
    features, image = example()
    assert torch.equal(make(enhancement="attention")(features, image)[0], make()(features, image)[0])


@pytest.mark.parametrize("enhancement", ["dgfe", "attention", "multiplication", "concatenation"])
def test_threshold_of_every_enhancement(enhancement: str) -> None:
    module = make(enhancement=enhancement, threshold=0.3)
    (name,) = [name for name, parameter in module.named_parameters() if parameter.dim() == 0]
    assert name.endswith(".threshold")
    assert module.threshold is dict(module.named_parameters())[name]
    if enhancement == "concatenation":
        torch.nn.init.normal_(module.concatenation.conv.weight)
    module(*example())[0].square().sum().backward()
    assert module.threshold.grad != 0  # type: ignore[union-attr]
    with torch.no_grad():
        module.threshold.fill_(-0.5)  # type: ignore[union-attr]
    module.clamp_threshold_()
    assert module.threshold == 0
    fixed = make(enhancement=enhancement, learn_threshold=False)
    assert fixed.threshold is not None
    assert not fixed.threshold.requires_grad
    assert "threshold" in " ".join(fixed.state_dict())
    without = make(enhancement=enhancement, threshold=None)
    assert without.threshold is None
    without.clamp_threshold_()


@pytest.mark.parametrize("padding_in_loss", [False, True])
def test_high_frequency_map_guides_and_the_loss_stays_of_pixels(padding_in_loss: bool) -> None:
    features, image = example()
    sizes = [(24, 32), (13, 17)]
    module = make(difference="high_frequency", cutoff=0.1, padding_in_loss=padding_in_loss)
    enhanced, output = module(features, image, sizes)
    expected = reference.high_frequency_difference_map(
        output.prediction, image, cutoff=0.1, from_logits=True, valid_size=torch.tensor(sizes)
    )
    torch.testing.assert_close(output.difference, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(enhanced, module.dgfe(features, output.difference))
    assert torch.equal(output.loss, make(padding_in_loss=padding_in_loss)(features, image, sizes)[1].loss)


def test_none_leaves_the_loss_alone() -> None:
    features, image = example()
    torch.testing.assert_close(make(enhancement="none")(features, image)[1].loss, make()(features, image)[1].loss)
    assert sum(p.numel() for p in make(enhancement="none").parameters()) == sum(
        p.numel() for p in make().reconstruction_head.parameters()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"enhancement": "sum"},
            "enhancement must be one of dgfe, soft, none, multiplication, concatenation, attention, got 'sum'",
        ),
        ({"difference": "low"}, "difference must be one of pixel, high_frequency, got 'low'"),
        ({"cutoff": 0.6}, r"cutoff must be in \[0, 0.5\] cycles per pixel, such as 1 / 32, got 0.6"),
        ({"cutoff": math.nan}, "cutoff must be a number, got nan"),
        ({"threshold": 4.0}, "threshold must be from 0 to 1, got 4.0"),
        ({"enhancement": "multiplication", "threshold": 4.0}, "threshold must be from 0 to 1, got 4.0"),
        ({"threshold": "4/255"}, "threshold must be a number or one of auto or none, got '4/255'"),
        ({"pass_share": 0.0}, "pass_share must be between 0 and 1, got 0.0"),
        ({"pass_share": 1.0}, "pass_share must be between 0 and 1, got 1.0"),
        ({"reconstruction": "unet"}, "reconstruction must be one of paper, subpixel, resampled, got 'unet'"),
        ({"reconstruction_target": "edges"}, "reconstruction_target must be one of image, weighted_image, boxes"),
        (
            {"reconstruction_target": "boxes", "reconstruction": "paper"},
            "reconstruction_target='boxes' predicts a mask and no image",
        ),
        ({"reconstruction": "resampled", "enhancement": "none"}, "reconstruction='resampled' learns nothing"),
        ({"reconstruction_start": 0.3}, "reconstruction_start needs a filter that lets nothing pass until then"),
        ({"reconstruction_weight": 0.0}, "reconstruction_weight must be positive, got 0.0"),
        ({"enhancement": "concatenation", "resize": "cubic"}, "resize must be one of nearest, max, area, bilinear"),
        ({"enhancement": "multiplication", "surrogate": "tanh"}, "surrogate must be one of none, ste"),
        ({"enhancement": "multiplication", "alpha": 0.0}, "alpha must be positive, got 0.0"),
        ({"threshold": None, "reduction": 5}, "channels must be a positive multiple of reduction, got 16 and 5"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(("saved", "built"), itertools.permutations(["paper", "subpixel", "resampled"], 2))
def test_weights_of_another_head_are_refused(saved: str, built: str) -> None:
    detector = nn.ModuleDict({"self_reconstruction": make(reconstruction=built)})
    state = {f"self_reconstruction.{name}": value for name, value in make(reconstruction=saved).state_dict().items()}
    if saved == "resampled":  # which has none
        detector.load_state_dict(state, strict=False)
        return
    message = f"the weights are of reconstruction='{saved}', but this is reconstruction='{built}'"
    with pytest.raises(ValueError, match=message):
        detector.load_state_dict(state, strict=False)


@every_variant
@pytest.mark.parametrize("resize", ["nearest", "max", "area", "bilinear"])
@pytest.mark.parametrize("size", [(24, 32), (21, 30), (1, 1), (23, 4)])
def test_enhance_is_forward_without_the_rest(variant: str, resize: str, size: tuple[int, int]) -> None:
    module = make(**{"resize": resize, "threshold": 0.4, **VARIANTS[variant]})  # near an untrained head's differences
    features, image = example(*size)
    sizes = [size, (max(size[0] - 5, 1), max(size[1] - 2, 1))]
    with torch.no_grad():
        torch.testing.assert_close(module.enhance(features, image, sizes), module(features, image, sizes)[0])


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_filter_of_sampled_pixels_is_that_of_the_whole_map(
    scale: int, dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> None:
    torch.manual_seed(0)
    module = make(scale=scale, threshold=0.3)
    module = module.to(device, memory_format=layout)
    features = torch.randn(2, 16, 20, 24).contiguous(memory_format=layout).to(device)
    flips = 0
    for height, width in ((20 * scale, 24 * scale), (20 * scale - 1, 24 * scale - 1)):
        image = torch.rand(2, 3, height, width).to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            whole = module(features, image)[1].difference
            logits = module.reconstruction_head.predict_samples(features, image)
            sampled = reference.difference_map(logits, nearest(image, (20, 24)), from_logits=True)
        ours, theirs = module.filter(sampled, (20, 24)), module.filter(whole, (20, 24))
        assert 0.1 < (theirs == 2).float().mean() < 0.9
        flips += int((ours != theirs).sum())
    assert flips == 0


@pytest.fixture(params=["one strip", "strips"])
def _strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of two rows of features, of which some hold padding alone."""
    if request.param == "strips":
        monkeypatch.setattr(strips, "MIN_ROWS", 2)
        monkeypatch.setattr(strips, "STRIP_PIXELS", {"cpu": 1, "cuda": 1})


@pytest.mark.usefixtures("_strips")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_in_loss": True},
        {"reconstruction_target": "weighted_image", "reconstruction_weight": 3.0},
        {"detach_reconstruction": True},
        {"enhancement": "none"},
        {"difference": "high_frequency"},
        {"difference_gradient": True},  # where the head is recomputed in the backward pass
        {"scale": 2},
        {"scale": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_recomputing_changes_nothing(options: dict[str, object], dtype: torch.dtype) -> None:
    scale = int(str(options.get("scale", 4)))
    generator = torch.Generator().manual_seed(1)
    features, image = torch.randn(3, 16, 9, 8, generator=generator), torch.rand(3, 3, 9 * scale - 1, 8 * scale)
    sizes = [(8 * scale, 8 * scale), (13, 3 * scale), (1, 6)]
    boxes = [torch.tensor([[1.0, 2.0, 9.0, 7.0]]), torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 3.0, 1.0]])]
    results = []
    for recompute in (True, False):
        module = make(threshold=0.3, recompute=recompute, **options)
        x = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            if dtype == torch.float64:
                module, x, image = module.double(), x.detach().double().requires_grad_(), image.double()
            enhanced, output = module(x, image, sizes, boxes)
        (enhanced.double().square().sum() + 7 * output.loss).backward()
        parameters = {name: parameter.grad for name, parameter in module.named_parameters()}
        results.append((enhanced, *output[:3], x.grad, parameters))
    if dtype == torch.float64:
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
        return
    for mine, expected in zip(*(torch.utils._pytree.tree_leaves(result) for result in results), strict=True):
        assert mine.dtype == expected.dtype
        # A convolution's kernel depends on the shape, and half precision rounds what each of them sums up.
        assert (mine - expected).norm() <= 0.1 * expected.norm()


def test_frozen_parts_get_no_gradient() -> None:
    features, image = example()
    for frozen in ("up1.", ""):
        module = make()
        for name, parameter in module.reconstruction_head.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        x = features.clone().requires_grad_()
        module(x, image)[1].loss.backward()
        assert x.grad is not None
        assert x.grad.any()
        for name, parameter in module.reconstruction_head.named_parameters():
            assert (parameter.grad is None) == name.startswith(frozen)


def test_float16_waits_for_the_loss_scale() -> None:
    """The gradient of a mean over an image vanishes in float16 unless the backward pass scales it first."""
    features, image = example(64, 64)
    module, x = make(), features.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = module(x, image)[1].loss
    assert type(loss.grad_fn).__name__ != "_LossInStripsBackward"
    (2.0**16 * loss).backward()
    scaled = x.grad.clone()
    x.grad = None
    module(x, image)[1].loss.backward()
    # Processors round float16 at different places, so that a few small values differ by much.
    assert (scaled / 2**16 - x.grad).norm() <= 0.1 * x.grad.norm()


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.usefixtures("_strips")
def test_recomputing_by_strips_predicts_the_same(scale: int, device: torch.device) -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(16, scale).double().to(device)
    # The last image is far smaller than what its features cover.
    for rows, cut in ((1, 0), (4, 1), (5, 0), (9, 0), (17, 1), (18, 0), (18, 13 * scale)):
        features = torch.randn(2, 16, rows, 3).double().to(device).requires_grad_()
        size = (scale * rows - cut, scale * 3 - min(cut, 1))
        image = torch.rand(2, 3, *size).double().to(device)
        results = []
        for recompute in (True, False):
            logits = head.predict(features, image, recompute=recompute)
            assert logits.shape == image.shape
            loss = (logits * image).sum()
            results.append((logits, torch.autograd.grad(loss, [features, *head.parameters()])))
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


class Saved:
    """What autograd keeps of a tensor; gone with the graph that it is kept for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@pytest.mark.parametrize("difference_gradient", [False, True])
def test_recomputing_keeps_no_map_of_the_head(difference_gradient: bool) -> None:
    kept = {}
    features, image = example(64, 64)
    for recompute in (True, False):
        module = make(recompute=recompute, difference_gradient=difference_gradient)
        saved: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(x: Tensor, saved: weakref.WeakSet[Saved] = saved) -> Saved:
            saved.add(holder := Saved(x))
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.x):
            output = module(features.requires_grad_(), image)
        storages = [holder.x.untyped_storage() for holder in saved]
        kept[recompute] = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        del output
    last_map = 4 * len(image) * 64 * 64 * features.shape[1] // 4
    assert kept[False] - kept[True] > 3 * last_map


def test_enhance_checks_its_input() -> None:
    features, image = example()
    for enhancement in ("dgfe", "none"):
        with pytest.raises(ValueError, match="features of a"):
            make(enhancement=enhancement).enhance(features, image[..., :10])
