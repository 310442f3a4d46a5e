"""The threshold as a module's state: fixed, learned, automatic."""

import warnings

import pytest
import torch

from srtod.models.reconstruction.enhancement import SoftDGFE
from srtod.ops import DGFE
from srtod.ops.threshold import MIN_STEPS, Threshold


def differences(scale: float = 0.1, seed: int = 0) -> torch.Tensor:
    return scale * torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def passed(module: Threshold, difference: torch.Tensor) -> float:
    return float((module.filter(difference, (16, 16)) > 1).float().mean())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_auto_lets_nothing_pass_until_the_reconstruction_has_settled(share: float) -> None:
    module = Threshold(threshold="auto", pass_share=share)
    falling = [0.99**step for step in range(200)]  # an error that halves in 70 steps
    for step, scale in enumerate(falling):
        module.observe(differences(scale, step), (16, 16))
        assert passed(module, differences(scale)) == 0
    for step in range(150):
        module.observe(differences(falling[-1], step), (16, 16))
    assert passed(module, differences(falling[-1])) == pytest.approx(share, rel=0.1, abs=0.02)


def test_auto_is_set_once_and_then_learns() -> None:
    module = Threshold(threshold="auto", learn_threshold=True)
    for step in range(2 * MIN_STEPS):
        module.observe(differences(seed=step), (16, 16))
    assert isinstance(module.threshold, torch.nn.Parameter)
    with torch.no_grad():
        module.threshold.fill_(0.5)  # as an optimizer might
    module.observe(differences(), (16, 16))
    assert module.threshold == 0.5


def test_auto_follows_the_share() -> None:
    module = Threshold(threshold="auto")
    assert not list(module.parameters())
    for step in range(2 * MIN_STEPS):
        module.observe(differences(0.2, step), (16, 16))
    for step in range(MIN_STEPS):
        module.observe(differences(0.1, step), (16, 16))
    assert passed(module, differences(0.1)) == pytest.approx(0.1, abs=0.02)
    before = module.threshold.clone()  # type: ignore[union-attr]
    module.eval().observe(differences(0.9), (16, 16))
    assert module.threshold == before


def test_auto_leaves_padding_out() -> None:
    module = Threshold(threshold="auto")
    difference = differences()
    difference[:, :, 32:] = 1  # padding, which no head reconstructs
    valid = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    valid[:, :, :8] = True
    for _ in range(2 * MIN_STEPS):
        module.observe(difference, (16, 16), valid)
    assert float(module.threshold) == pytest.approx(0.09, abs=0.005)  # type: ignore[arg-type]
    steps = int(module.steps)
    module.observe(difference, (16, 16), torch.zeros_like(valid))  # nothing to see
    assert int(module.steps) == steps


def test_auto_in_a_training_too_short_uses_what_it_has_and_says_so() -> None:
    module = Threshold(threshold="auto")
    for step in range(5):
        module.observe(differences(seed=step), (16, 16))
    with pytest.warns(
        UserWarning, match="set at training step 5, too early for the reconstruction to settle; train longer"
    ):
        module.settle()
    assert passed(module, differences()) == pytest.approx(0.1, abs=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.settle()  # once


def test_auto_survives_a_checkpoint() -> None:
    modules = [Threshold(threshold="auto") for _ in range(2)]
    for step in range(20):
        modules[0].observe(differences(seed=step), (16, 16))
    modules[1].load_state_dict(modules[0].state_dict())
    for module in modules:
        for step in range(20, 2 * MIN_STEPS):
            module.observe(differences(seed=step), (16, 16))
    assert modules[0].threshold == modules[1].threshold
    assert modules[0].threshold != 1


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("kind", [DGFE, SoftDGFE])
def test_auto_that_is_set_between_forward_and_backward(kind: type[DGFE], learns: bool) -> None:
    """As where a model sees two batches before it learns from both; each pass learns by the threshold that it had."""
    module = kind(16, 4, threshold="auto", learn_threshold=learns)
    features = torch.randn(2, 16, 16, 16)
    total = sum(module(features, differences(seed=step)).sum() for step in range(MIN_STEPS + 20))
    assert module.settled
    total.backward()
    assert module.threshold is not None
    assert (module.threshold.grad is not None) == learns
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


def test_auto_in_a_compiled_module() -> None:
    torch.compiler.reset()
    plain, compiled = (DGFE(16, 4, threshold="auto") for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    features = torch.randn(2, 16, 16, 16)
    for step in range(MIN_STEPS + 20):
        expected = plain(features, differences(seed=step))
        torch.testing.assert_close(run(features, differences(seed=step)), expected)
    assert plain.threshold == compiled.threshold
    assert plain.threshold != 1


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_identity_start_makes_up_for_the_mean_of_the_filter(share: float) -> None:
    torch.manual_seed(0)
    module = DGFE(32, pass_share=share, threshold=1 - share)
    features, difference = torch.randn(2, 32, 100, 100), torch.rand(2, 1, 400, 400)
    ratio = (module(features, difference) / features).detach()
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    paper = DGFE(32, threshold=1.0, identity_start=False)
    assert 0.3 < (paper(features, difference) / features).detach().mean() < 0.7


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="threshold must be a number or one of auto or none, got 'automatic'"):
        DGFE(16, threshold="automatic")
    with pytest.raises(TypeError, match="unexpected keyword argument 'tresh'"):
        DGFE(16, tresh=0.1)
