"""How many operations self-reconstruction enqueues: on a GPU each of them is one launch or more."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from srtod.models import SelfReconstruction

NO_LAUNCH = {"alias", "detach", "select", "slice", "unsqueeze", "expand", "view", "lift_fresh"}
ON_THE_CPU_ALONE = {"aminmax", "_local_scalar_dense"}  # whether the image is in [0, 1]

OPTIONS = (
    {"reconstruction": "paper", "enhancement": "dgfe", "threshold": 0.25, "resize": "nearest", "recompute": False},
    {"reconstruction": "subpixel", "enhancement": "dgfe", "threshold": "auto"},
    {"reconstruction_target": "boxes", "enhancement": "dgfe", "threshold": None},
    {"reconstruction": "resampled", "enhancement": "soft"},
)


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
    module = SelfReconstruction(
        16, reconstruction=reconstruction, enhancement="dgfe", threshold=0.25, resize=resize, inplace=True
    )
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


@pytest.mark.filterwarnings("ignore:srtod runs as plain PyTorch")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_processor_never_waits_for_the_gpu(options: dict[str, Any]) -> None:
    """On tensors that have a GPU as device and no values: what asked for a value would fail.

    Autograd's engine wants a real device, so that the backward pass is left out.
    """
    with FakeTensorMode(), torch.device("cuda"):
        module = SelfReconstruction(64, inplace=True, **options)
        features, image = torch.randn(2, 64, 16, 16, requires_grad=True), torch.rand(2, 3, 64, 64)
        enhanced, output = module(features, image, [(64, 64), (60, 50)], [torch.rand(3, 4), torch.rand(0, 4)])
        assert enhanced.is_cuda
        with torch.no_grad():
            assert module.eval().enhance(features.detach(), image).is_cuda
        with pytest.raises(DataDependentOutputException):
            output.loss.item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_inference_is_captured_as_a_cuda_graph(options: dict[str, Any]) -> None:
    """Replayed on other values, the graph gives what eager code gives."""
    module = SelfReconstruction(64, **options).cuda().eval()
    features, image = (torch.rand(2, c, s, s, device="cuda") for c, s in ((64, 16), (3, 64)))
    others = torch.rand_like(features), torch.rand_like(image)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        module.enhance(features, image)  # loads kernels, which a capture must not
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            enhanced = module.enhance(features, image)
        features.copy_(others[0])
        image.copy_(others[1])
        graph.replay()
        torch.testing.assert_close(enhanced, module.enhance(*others))
