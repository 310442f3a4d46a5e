"""How many operations self-reconstruction enqueues: on a GPU each of them is one launch or more."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from srtod.models import SelfReconstruction

NO_LAUNCH = {"alias", "detach", "select", "slice", "unsqueeze", "expand", "view", "lift_fresh"}
ON_THE_CPU_ALONE = {"aminmax", "_local_scalar_dense"}  # whether the image is in [0, 1]


class Operations(TorchDispatchMode):
    """Counts the operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_LAUNCH | ON_THE_CPU_ALONE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("resize", ["nearest", "max"])
@pytest.mark.parametrize(("reconstruction", "training", "inference"), [("paper", 80, 15), ("subpixel", 30, 10)])
def test_few_operations(reconstruction: str, training: int, inference: int, resize: str) -> None:
    """Of a batch of two; in one strip, as 800x800 is on a GPU, and with so few channels that no CPU's kernel runs."""
    module = SelfReconstruction(16, reconstruction=reconstruction, threshold=0.25, resize=resize, inplace=True)
    features, image = torch.randn(2, 16, 16, 16), torch.rand(2, 3, 64, 64)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    with Operations() as operations:
        enhanced, output = module(features, image)
        torch.autograd.backward((output.loss, enhanced), (None, torch.ones_like(enhanced)))
    assert operations.count["convolution_backward"] >= 2
    assert operations.count.total() <= training, operations.count
    module.eval()
    with torch.no_grad(), Operations() as operations:
        module.enhance(features.detach(), image)
    assert operations.count["dgfe_"] == 1
    assert operations.count.total() <= inference, operations.count
