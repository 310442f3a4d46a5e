"""The table of the difference by its place in a block."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import phase_table
import pytest
import torch
import torchvision


class FakeDetector:
    """Whose difference map is the image's first channel."""

    self_reconstruction = SimpleNamespace(scale=4)

    def reconstruct(self, images: list[torch.Tensor]) -> list[Any]:
        return [SimpleNamespace(difference=image[:1]) for image in images]


def test_means_are_those_of_each_place_in_a_block() -> None:
    images = [torch.rand(3, 17, 22), torch.rand(3, 8, 4)]
    blocks = [image[0, y : y + 4, x : x + 4] for image, h, w in zip(images, (16, 8), (20, 4), strict=True)
              for y in range(0, h, 4) for x in range(0, w, 4)]  # fmt: skip
    means = phase_table.mean_by_phase(FakeDetector(), iter(images))  # type: ignore[arg-type]
    torch.testing.assert_close(means, torch.stack(blocks).double().mean(0))


def test_the_table_tells_the_first_phase_from_the_others() -> None:
    means = torch.full((4, 4), 10 / 255, dtype=torch.float64)
    means[0, 0] = 25 / 255
    lines = phase_table.table(means)
    assert lines[0] == "first phase 25.00, others 10.00: ratio 2.50"
    assert lines[4] == "| 0 | 25.00 | 10.00 | 10.00 | 10.00 |"


@pytest.mark.parametrize("kind", ["usual", "hard"])
def test_swarm_images_are_those_of_the_default_run(kind: str) -> None:
    from srtod.engine import TrainConfig
    from srtod.engine.data import DetectionData

    config = TrainConfig.from_dict({"swarm_kind": kind})
    (image,) = phase_table.swarm_images(kind, 1)
    assert torch.equal(image, DetectionData(config.data, 0).test_set[0][0])


def test_a_folder_gives_every_so_many_of_its_images(tmp_path: Path) -> None:
    for number in range(5):
        torchvision.io.write_png(torch.full((3, 4, 4), 50 * number, dtype=torch.uint8), str(tmp_path / f"{number}.png"))
    images = phase_table.folder_images(str(tmp_path), 2)
    assert [round(float(255 * image.mean())) for image in images] == [0, 100, 200]
