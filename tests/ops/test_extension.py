"""What decides whether compiled ops run on a GPU, with GPUs that this machine does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from srtod import ops
from srtod.ops import _extension

DEFAULT = "8.0;9.0+PTX"  # what setup.py compiles where it sees no GPU


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[int, int], str], None]]:
    """Makes the machine look as if it had a GPU, and ops compiled for some architectures."""

    def there_is(capability: tuple[int, int], architectures: str) -> None:
        monkeypatch.setitem(_extension._problems, "cuda", None)
        monkeypatch.setattr(_extension, "build_info", lambda: {"architectures": architectures})
        monkeypatch.setattr(_extension, "_reference_requests", 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
        _extension._why_gpu_lacks_code.cache_clear()

    yield there_is
    _extension._why_gpu_lacks_code.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_the_default_architectures_serve_all_gpus_from_8_0_on(
    pretend: Callable[[tuple[int, int], str], None], capability: tuple[int, int]
) -> None:
    pretend(capability, DEFAULT)
    assert ops.is_fused("cuda:0")


def test_a_gpu_without_code_is_explained(pretend: Callable[[tuple[int, int], str], None]) -> None:
    pretend((7, 5), DEFAULT)
    assert not ops.is_fused("cuda:0")
    problem = _extension.why_not_fused(torch.device("cuda:0"))
    assert problem is not None
    assert problem.startswith(f"it was compiled for the GPU architectures {DEFAULT}, and Some GPU is 7.5; ")
    assert "with TORCH_CUDA_ARCH_LIST=7.5, `pip install " in problem
    assert _extension.status()["cuda"] == f"plain PyTorch: {problem}"


def test_a_gpu_newer_than_the_code_needs_ptx(pretend: Callable[[tuple[int, int], str], None]) -> None:
    pretend((10, 0), "8.0;9.0")
    problem = _extension.why_not_fused(torch.device("cuda:0"))
    assert problem is not None
    assert "Some GPU is 10.0" in problem
