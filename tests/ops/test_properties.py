"""Properties for any shapes, strides, dtypes and values; hypothesis chooses them, the same ones in every run."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from srtod import ops
from srtod.ops.surrogate import RESIZES, SURROGATES

few = settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
half_or_more = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
layouts = st.sampled_from(["contiguous", "channels_last", "transposed", "sliced", "expanded"])
seeds = st.integers(0, 2**31)


def size_strategy(kit: Any) -> st.SearchStrategy[Any]:
    small, large = st.integers(1, 9), st.integers(1, 40)
    return st.builds(kit.new_sizes, st.integers(0, 3), small, small, small, large, large, st.integers(1, 4))


def test_agrees_with_the_reference(op: str, kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        options: dict[str, Any] = {}
        parameters = inspect.signature(getattr(ops, op)).parameters
        if "resize" in parameters:
            options["resize"] = data.draw(st.sampled_from(RESIZES))
            options["surrogate"] = data.draw(st.sampled_from(SURROGATES))
            options["alpha"] = data.draw(st.none() | st.floats(0.5, 200))
        if "from_logits" in parameters:
            options["from_logits"] = data.draw(st.booleans())
        if "valid_size" in parameters:
            options["valid_size"] = data.draw(st.sampled_from([None, True]))
        sizes, dtype, layout = data.draw(size_strategy(kit)), data.draw(half_or_more), data.draw(layouts)
        kit.assert_agrees(kit.case(op, sizes, dtype, device, layout, **options))

    check()


def test_filter_values(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        resize = data.draw(st.sampled_from(RESIZES))
        case = kit.case(
            "filtration", data.draw(size_strategy(kit)), torch.float32, device, data.draw(layouts), resize=resize
        )
        case.tensors["threshold"] = torch.tensor(data.draw(st.floats(-0.125, 0.125, width=32)), device=device)
        (values,) = case.run()
        if resize in ("nearest", "max"):
            assert torch.isin(values, values.new_tensor([1, 1.5, 2])).all()
        assert ((values >= 1) & (values <= 2 * (1 + 1e-6))).all()

    check()


def test_filter_is_monotonic_in_the_difference_and_the_threshold(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        case = kit.case(
            "filtration", data.draw(size_strategy(kit)), resize=data.draw(st.sampled_from(RESIZES)), device=device
        )
        (before,) = case.run()
        difference, threshold = case.tensors["difference"], case.tensors["threshold"]
        case.tensors["difference"] = difference + torch.rand_like(difference) * data.draw(
            st.sampled_from([0.001, 0.05])
        )
        assert (case.run()[0] >= before).all()
        case.tensors["difference"] = difference
        case.tensors["threshold"] = threshold + data.draw(st.floats(0, 0.125, width=32))
        assert (case.run()[0] <= before).all()

    check()


def test_dgfe_is_the_product_of_its_parts(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        resize, layout = data.draw(st.sampled_from(RESIZES)), data.draw(layouts)
        case = kit.case("dgfe", data.draw(size_strategy(kit)), torch.float32, device, layout, resize=resize)
        features, difference, threshold, *mlp = case.tensors.values()
        weights = ops.channel_reweighting(features, *mlp)
        filter_ = ops.filtration(difference, threshold, (features.shape[2], features.shape[3]), resize=resize)
        torch.testing.assert_close(case.run()[0], features * (weights * filter_), rtol=1e-6, atol=0)

    check()


def test_permuting_the_batch_permutes_the_results(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        op = data.draw(st.sampled_from(["difference_map", "filtration", "channel_reweighting", "dgfe"]))
        dtype, layout = data.draw(half_or_more), data.draw(layouts)
        case = kit.case(op, data.draw(size_strategy(kit))._replace(batch=4), dtype, device, layout)
        (output,) = case.run()
        order = torch.randperm(4, device=device)
        case.tensors = {name: x[order] if x.dim() == 4 else x for name, x in case.tensors.items()}
        torch.testing.assert_close(case.run()[0], output[order], rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-6)

    check()


def test_difference_map_is_a_distance(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        case = kit.case("difference_map", data.draw(size_strategy(kit)), torch.float32, device, data.draw(layouts))
        a, b = case.tensors.values()
        c = torch.rand_like(a)
        assert torch.equal(ops.difference_map(a, b), ops.difference_map(b, a))
        assert not ops.difference_map(a, a).any()
        assert ((ops.difference_map(a, b) >= 0) & (ops.difference_map(a, b) <= 1)).all()
        assert (ops.difference_map(a, c) <= ops.difference_map(a, b) + ops.difference_map(b, c) + 1e-6).all()

    check()


def test_full_valid_size_changes_nothing_and_padding_does_not_count(kit: Any, device: str) -> None:
    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        sizes = data.draw(size_strategy(kit))._replace(batch=2)
        case = kit.case("reconstruction_difference", sizes, torch.float32, device, data.draw(layouts))
        full = torch.tensor([[sizes.H, sizes.W]] * 2, device=device)
        without, with_size = case.run(), ops.reconstruction_difference(**case.tensors, valid_size=full)
        assert torch.equal(without[0], with_size[0])
        torch.testing.assert_close(without[1], with_size[1], rtol=1e-6, atol=0)

        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 5, 0, 3), value=float(torch.rand(())))

        enlarged = {name: padded(x) for name, x in case.tensors.items()}
        difference, mse = ops.reconstruction_difference(**enlarged, valid_size=full)
        torch.testing.assert_close(mse, without[1])
        assert torch.equal(difference[:, :, : sizes.H, : sizes.W], without[0])

    check()


def test_mse_and_logits(kit: Any, device: str) -> None:
    """The loss is PyTorch's mse_loss; from logits is the same as from their sigmoid."""

    @few
    @given(st.data())
    def check(data: st.DataObject) -> None:
        torch.manual_seed(data.draw(seeds))
        sizes = data.draw(size_strategy(kit))._replace(batch=2)
        case = kit.case("reconstruction_difference", sizes, torch.float32, device, data.draw(layouts), from_logits=True)
        logits, image = case.tensors["reconstruction"] * data.draw(st.sampled_from([1, 10, 200])), case.tensors["image"]
        difference, mse = ops.reconstruction_difference(logits, image, from_logits=True)
        torch.testing.assert_close(mse, torch.nn.functional.mse_loss(logits.sigmoid(), image))
        torch.testing.assert_close(difference, ops.difference_map(logits.sigmoid(), image))
        assert math.isfinite(mse.item())

    check()
