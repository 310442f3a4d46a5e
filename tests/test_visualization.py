"""Pictures: sizes, places and colours of what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srtod.models import ImageReconstruction, build_detector
from srtod.visualization import COLOURS, HEAT, draw_boxes, heat_map, panel, save_panels

GREEN = tuple(bytes.fromhex(COLOURS[0][1:]))


def objects(*boxes: list[float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.1, len(boxes)),
    }


def coloured(picture: Image.Image) -> list[tuple[int, int]]:
    """The (row, column) of every pixel in the first class's colour."""
    return [tuple(place) for place in np.argwhere((np.array(picture) == GREEN).all(-1)).tolist()]


@pytest.mark.parametrize("enlarge", [1, 3])
def test_an_outline_lies_just_outside_its_box(enlarge: int) -> None:
    picture = draw_boxes(torch.zeros(3, 12, 16), torch.tensor([[4.0, 2, 8, 5]]), torch.tensor([1]), enlarge=enlarge)
    assert picture.size == (16 * enlarge, 12 * enlarge)
    rows, columns = zip(*coloured(picture), strict=True)
    assert (min(rows), max(rows)) == (2 * enlarge - 1, 5 * enlarge)
    assert (min(columns), max(columns)) == (4 * enlarge - 1, 8 * enlarge)
    assert len(rows) == 2 * (4 * enlarge + 2) + 2 * (3 * enlarge + 2) - 4


def test_boxes_beyond_the_image_are_drawn_as_far_as_it_goes() -> None:
    draw_boxes(torch.zeros(3, 8, 8), torch.tensor([[-3.0, -3, 20, 20], [2, 2, 2, 2]]), torch.tensor([1, 11]))


def test_heat_map_runs_from_black_to_light_yellow() -> None:
    picture = heat_map(torch.tensor([[[0.0, 0.05, 0.1, 0.3]]]), top=0.1)
    pixels = [picture.getpixel((x, 0)) for x in range(4)]
    assert pixels == [HEAT[0], HEAT[2], HEAT[-1], HEAT[-1]]


def test_a_panel_of_five_pictures() -> None:
    parts = ImageReconstruction(
        image=torch.zeros(3, 63, 90),
        reconstruction=torch.full((3, 63, 90), 0.5),
        difference=torch.zeros(1, 63, 90),
        filter=torch.ones(1, 16, 23),
    )
    image = torch.zeros(3, 63, 90)
    five = panel(image, objects([4, 4, 9, 9]), objects(), parts, class_names=["drone"])
    two = panel(image, objects([4, 4, 9, 9]), objects(), class_names=["drone"])
    tile = 6 * 90
    assert five.size == (8 + 5 * (tile + 8), 26 + 6 * 63 + 8)
    assert two.size == (8 + 2 * (tile + 8), five.size[1])


def test_only_confident_detections_are_drawn() -> None:
    def drawn(score: float) -> int:
        picture = panel(
            torch.zeros(3, 512, 512),
            objects(),
            objects([9, 9, 20, 20], [99, 99, 120, 120]),
            score=score,
            class_names=["drone"],
        )
        return sum(row > 26 for row, _ in coloured(picture))

    assert drawn(0.95) == 0 < drawn(0.5) < drawn(0.05)


@pytest.mark.parametrize("self_reconstruction", [True, False])
def test_save_panels(tmp_path: Path, self_reconstruction: bool) -> None:
    torch.manual_seed(0)
    detector = build_detector(
        "faster_rcnn", 2, self_reconstruction=self_reconstruction, backbone="mobilenet_v2", channels=16, min_size=100
    ).eval()
    sample = (torch.rand(3, 70, 97), objects([10, 10, 20, 18]) | {"file_name": "folder/a.jpg"})
    [file] = save_panels(detector, [sample], ["drone"], tmp_path / "panels")
    assert file == tmp_path / "panels" / "a.png"
    assert Image.open(file).width > (2000 if self_reconstruction else 900)
