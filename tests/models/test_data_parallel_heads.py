"""Two processes, each with its own images, learn what one process with all the images learns, and have one threshold.

`python test_data_parallel_heads.py RANK FOLDER` is one of the two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from srtod.models.heads import ATSSHead, FCOSHead, RetinaNetHead
from srtod.models.heads.dense import DenseHead
from srtod.ops.threshold import MIN_STEPS, Threshold

HEADS: dict[str, type[DenseHead]] = {"retinanet": RetinaNetHead, "fcos": FCOSHead, "atss": ATSSHead}
OBJECTS = {"unequal": [[9, 1], [0, 2]], "one process without": [[4, 0], [0, 0]], "none": [[0, 0], [0, 0]]}
"""How many objects the images of each process have."""
SIZE = 64


def gradients(module: nn.Module, objects: list[list[int]], processes: range) -> dict[str, Tensor]:
    """The gradients of the head, which `module` is or holds, from the images of these processes."""
    images = [(process, number) for process in processes for number in range(2)]
    features = OrderedDict(
        (f"p{level}", torch.cat([random(8, -(-SIZE // 2**level), seed=10 * p + n) for p, n in images]))
        for level in range(3, 8)
    )
    targets = []
    for process, number in images:
        count = objects[process][number]
        generator = torch.Generator().manual_seed(10 * process + number)
        corners = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat((corners, corners + 8 + torch.rand(count, 2, generator=generator) * 16), dim=1)
        targets.append({"boxes": boxes, "labels": torch.arange(count) % 2 + 1})
    batch = ImageList(torch.zeros(len(images), 3, SIZE, SIZE), [(SIZE, SIZE)] * len(images))
    _, losses = module.train()(batch, features, targets)
    sum(losses.values()).backward()
    return {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def random(channels: int, side: int, seed: int) -> Tensor:
    return torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(seed))


def heads() -> dict[str, DenseHead]:
    torch.manual_seed(0)
    return {
        name: build(8, 3, **({} if name == "fcos" else {"anchor_scale": 2.0}))  # type: ignore[call-arg]
        for name, build in HEADS.items()
    }


def automatic_threshold(process: int) -> dict[str, Tensor]:
    """The state of a threshold that saw the differences of this process, twice as large in the second process."""
    module = Threshold(threshold="auto")
    generator = torch.Generator().manual_seed(process)
    for _ in range(2 * MIN_STEPS):
        module.observe(0.1 * (1 + process) * torch.rand(1, 1, 64, 64, generator=generator), (16, 16))
        module.observe(torch.full((1, 1, 64, 64), torch.nan if process else 0.1), (16, 16))  # one has nothing to see
    return module.state_dict()


def main(rank: int, folder: Path) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {
        (name, case): gradients(nn.parallel.DistributedDataParallel(heads()[name]), objects, range(rank, rank + 1))
        for name in HEADS
        for case, objects in OBJECTS.items()
    }
    found["threshold", "auto"] = automatic_threshold(rank)
    torch.distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


Gradients = dict[tuple[str, str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def of_both(tmp_path_factory: pytest.TempPathFactory) -> list[Gradients]:
    """The averaged gradients, as each process has them."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", OBJECTS)
@pytest.mark.parametrize("name", HEADS)
def test_two_processes_equal_one(of_both: list[Gradients], name: str, case: str) -> None:
    expected = gradients(heads()[name], OBJECTS[case], range(2))
    assert expected["classifier.weight"].any()
    for found in of_both:
        assert found[name, case].keys() == expected.keys()
        for key, gradient in expected.items():
            scale = max(gradient.abs().max().item(), 1e-6)
            torch.testing.assert_close(found[name, case][key], gradient, rtol=0, atol=1e-5 * scale)


def test_two_processes_have_one_automatic_threshold(of_both: list[Gradients]) -> None:
    first, second = (found["threshold", "auto"] for found in of_both)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    low, high = (automatic_threshold(process)["threshold"] for process in range(2))
    assert low < first["threshold"] < high < 1


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
