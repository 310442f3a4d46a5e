"""The public names, how the ops are chosen, and what importing them costs."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch

import srtod
import srtod.ops
from srtod import ops


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_compiled_ops_are_there() -> None:
    """Without them most tests of this folder skip, which must not go unnoticed."""
    if os.environ.get("SRTOD_REFERENCE", "0") != "0":
        pytest.skip("SRTOD_REFERENCE asks for the reference")
    assert ops.is_fused("cpu"), "run `pip install .` or `python -m srtod.info`"
    assert ops.is_fused(torch.device("cpu", 0))


PUBLIC_FUNCTIONS = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_public_functions(name: str) -> None:
    function = getattr(srtod.ops, name)
    assert function.__name__ == name
    assert function.__module__.startswith("srtod.ops.")
    assert function.__doc__


def test_modules_and_functions_may_share_a_name() -> None:
    """As torchvision's roi_align."""
    for module in ("dgfe", "filtration", "difference_map", "channel_reweighting", "reference", "surrogate"):
        assert importlib.import_module(f"srtod.ops.{module}").__name__ == f"srtod.ops.{module}"
    assert isinstance(ops.DGFE, type)
    assert {"dgfe", "filtration", "difference_map", "channel_reweighting"} <= set(PUBLIC_FUNCTIONS)


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_the_reference_has_every_op(name: str) -> None:
    """With the parameters that have the same names and defaults."""
    if name in ("is_fused", "use_reference"):
        return
    function, specified = (inspect.signature(getattr(of, name.rstrip("_"))) for of in (ops, ops.reference))
    assert specified == function


def test_use_reference_nests_and_ends_with_an_exception() -> None:
    before = ops.is_fused("cpu")
    with contextlib.suppress(KeyError), ops.use_reference():
        with ops.use_reference():
            assert not ops.is_fused("cpu")
        assert not ops.is_fused("cpu")
        raise KeyError
    assert ops.is_fused("cpu") == before


def test_other_devices_run_the_reference_with_one_warning() -> None:
    assert not ops.is_fused("meta")
    images = torch.rand(1, 3, 4, 4, device="meta"), torch.rand(1, 3, 4, 4, device="meta")
    srtod.ops._extension._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="srtod runs as plain PyTorch, .* no compiled ops for meta tensors"):
        assert ops.difference_map(*images).shape == (1, 1, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.difference_map(*images)
        with ops.use_reference():
            ops.difference_map(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))


def test_import_needs_torch_alone() -> None:
    """Other people's models use the ops: nothing else that srtod depends on may come with them."""
    code = """
import sys, torch
before = set(sys.modules)
import srtod.ops
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(loaded & {"torchvision", "lightning", "jsonargparse", "pycocotools", "tensorboard", "PIL", "matplotlib", "yaml"})
"""
    assert run_python(code) == "set()"


def test_environment_variable_asks_for_the_reference() -> None:
    code = (
        "import torch, srtod.ops as ops; print(ops.is_fused('cpu'), "
        "ops.filtration(torch.ones(1, 1, 4, 4), torch.tensor(0.5), (2, 2)).mean().item())"
    )
    assert run_python(code, SRTOD_REFERENCE="1", PYTHONWARNINGS="error") == "False 2.0"
