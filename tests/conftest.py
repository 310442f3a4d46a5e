"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
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
