"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DEVICES = [
    pytest.param("cpu"),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn, skipped where this machine has none."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def srtod_data() -> Path:
    """The folder of real data sets; tests that need one are skipped without it."""
    folder = os.environ.get("SRTOD_DATA")
    if not folder:
        pytest.skip("SRTOD_DATA does not name a folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"SRTOD_DATA={folder} is not a folder")
    return Path(folder)
