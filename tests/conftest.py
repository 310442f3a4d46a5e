"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """float32 is float32 on CUDA too: by default cuDNN's convolutions round their factors to TF32's 10 bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before  # not by monkeypatch, which cannot restore `matmul`


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as at a terminal: where a shell started pytest in the background, its processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def srtod_data() -> Path:
    """The folder of real data sets; tests that need one are skipped without it."""
    folder = os.environ.get("SRTOD_DATA")
    if not folder:
        pytest.skip("SRTOD_DATA does not name a folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"SRTOD_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small untrained detector of two classes that finds something everywhere."""
    from srtod.models import build_detector
    from srtod.models.checkpoint import describe, write_checkpoint

    torch.manual_seed(0)
    model = {
        "name": "faster_rcnn",
        "num_classes": 3,
        "backbone": "mobilenet_v2",
        "channels": 16,
        "reconstruction": "subpixel",
        "enhancement": "dgfe",
        "threshold": 4 / 255,
        "min_size": None,
        "score_threshold": 0.0,
        "detections_per_image": 20,
    }
    weights = {f"detector.{name}": value for name, value in build_detector(**model).state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "a.ckpt"
    write_checkpoint({"state_dict": weights, "srtod": describe(model, ["drone", "bird"], [3, 7])}, path)
    return path
