"""The public names, how the ops are chosen, and what importing them costs."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import warnings

import pytest
import torch

import srtod
import srtod.ops
from srtod import ops
from srtod.ops.channel_reweighting import channel_reweighting
from srtod.ops.dgfe import DGFE, dgfe, dgfe_, dgfe_from_reconstruction
from srtod.ops.difference_map import difference_map, reconstruction_difference
from srtod.ops.filtration import filtration
from srtod.ops.reconstruction_tail import reconstruction_tail
from srtod.ops.sampled_difference_map import sampled_difference_map

NAMES = {
    "DGFE",
    "channel_reweighting",
    "dgfe",
    "dgfe_",
    "dgfe_from_reconstruction",
    "difference_map",
    "filtration",
    "high_frequency_difference_map",
    "is_fused",
    "reconstruction_difference",
    "reconstruction_tail",
    "reference",
    "sampled_difference_map",
    "use_reference",
}


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


def test_public_names() -> None:
    assert set(ops.__all__) >= NAMES
    for name in ops.__all__:
        assert getattr(srtod.ops, name) is getattr(ops, name)
    # module and function share a name, as torchvision's roi_align
    of_dgfe = (DGFE, dgfe, dgfe_, dgfe_from_reconstruction)
    of_images = (difference_map, reconstruction_difference, reconstruction_tail, sampled_difference_map)
    for function in (channel_reweighting, *of_dgfe, *of_images, filtration):
        assert getattr(srtod.ops, function.__name__) is function
        assert function.__doc__
    with_a_function = ("dgfe", "filtration", "difference_map", "channel_reweighting")
    of_reconstruction = ("reconstruction_tail", "sampled_difference_map")
    for module in (*with_a_function, *of_reconstruction, "reference", "surrogate"):
        assert importlib.import_module(f"srtod.ops.{module}").__name__ == f"srtod.ops.{module}"


def test_the_reference_has_every_op() -> None:
    for name in NAMES - {"DGFE", "dgfe_", "is_fused", "reference", "use_reference"}:
        assert name in ops.reference.__all__
        assert callable(getattr(ops.reference, name))
    assert all(hasattr(ops.reference, name) for name in ops.reference.__all__)


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
