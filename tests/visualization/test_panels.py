"""Pictures: sizes, places and colours of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from srtod.evaluation import Outcomes
from srtod.models import ImageReconstruction
from srtod.visualization import draw_boxes, draw_detections, heat_map, panel, reconstruction_figure
from srtod.visualization.figures import COLOURS, HEAT
from srtod.visualization.marks import FALSE_ALARM, HIT, MISSED, NOT_COUNTED, Kind, Mark, draw_marks

GREEN = tuple(bytes.fromhex(COLOURS[0][1:]))


def objects(*boxes: list[float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.1, len(boxes)),
    }


def reconstructed(height: int, width: int, stride: int = 4) -> ImageReconstruction:
    rows, columns = -(-height // stride), -(-width // stride)
    return ImageReconstruction(
        image=torch.zeros(3, height, width),
        reconstruction=torch.full((3, height, width), 0.5),
        difference=torch.zeros(1, height, width),
        filter=torch.ones(1, rows, columns),
        features=torch.linspace(1, 2, rows * columns).reshape(1, rows, columns),
        enhanced=torch.linspace(1, 3, rows * columns).reshape(1, rows, columns),
        stride=stride,
    )


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
    raised = heat_map(torch.tensor([[[0.0, 0.05, 0.1, 0.3]]]), top=0.3, bottom=0.1)
    assert [raised.getpixel((x, 0)) for x in range(4)] == [HEAT[0], HEAT[0], HEAT[0], HEAT[-1]]


def test_a_panel_of_five_pictures() -> None:
    parts = reconstructed(63, 90)
    image = torch.zeros(3, 63, 90)
    five = panel(image, objects([4, 4, 9, 9]), objects(), parts, class_names=["drone"])
    two = panel(image, objects([4, 4, 9, 9]), objects(), class_names=["drone"])
    tile = 6 * 90
    assert five.size == (8 + 5 * (tile + 8), 26 + 6 * 63 + 8)
    assert two.size == (8 + 2 * (tile + 8), five.size[1])


def test_pictures_without_a_filter_leave_it_out() -> None:
    parts = reconstructed(63, 90)._replace(filter=None, enhanced=None)
    image = torch.zeros(3, 63, 90)
    four = panel(image, objects([4, 4, 9, 9]), objects(), parts, class_names=["drone"])
    assert four.size == (8 + 4 * (6 * 90 + 8), 26 + 6 * 63 + 8)
    figure = reconstruction_figure(parts)
    assert figure.size == (8 + 3 * (6 * 90 + 8), 2 * (26 + 6 * 63 + 8))
    assert figure.getpixel((8 + 6 * 90 - 1, 2 * 26 + 2 * 6 * 63 + 7)) == HEAT[-1]  # P2's largest value


@pytest.mark.parametrize("stride", [4, 8])
def test_a_figure_of_six_pictures(stride: int) -> None:
    figure = reconstruction_figure(reconstructed(63, 90, stride))
    width, height = 6 * 90, 6 * 63
    assert figure.size == (8 + 3 * (width + 8), 2 * (26 + height + 8))

    def tile(row: int, column: int) -> np.ndarray:
        left, top = 8 + column * (width + 8), row * (26 + height + 8) + 26
        return np.array(figure.crop((left, top, left + width, top + height)))

    assert (tile(0, 0) == 0).all()
    assert (tile(0, 1) == 127).all()
    assert (tile(0, 2) == HEAT[0]).all()
    assert (tile(1, 0) == 0).all()
    before, after = tile(1, 1), tile(1, 2)
    assert tuple(after[-1, -1]) == HEAT[-1]  # on the one scale of both, the larger value alone is the lightest
    assert tuple(before[-1, -1]) != HEAT[-1]
    row, column = 3 * 6 * stride, 4 * 6 * stride
    cell = before[row : row + 6 * stride, column : column + 6 * stride]
    assert (cell == cell[0, 0]).all()
    assert (before[row - 1, column] != cell[0, 0]).any()


def test_titles_of_large_figures_grow_with_them() -> None:
    assert reconstruction_figure(reconstructed(100, 1920)).size == (8 + 3 * 1928, 2 * (3 * 26 + 100 + 8))


def captioned(*boxes: list[float]) -> np.ndarray:
    """Where captions are, in a picture of 512 x 512 without its boxes, bool `[512, 512]`."""
    found = objects(*boxes) | {"scores": torch.full((len(boxes),), 0.9)}
    picture = draw_detections(torch.full((3, 512, 512), 0.5), found, ["drone", "bird"])
    plain = draw_boxes(torch.full((3, 512, 512), 0.5), found["boxes"], found["labels"])
    return (np.array(picture.crop((8, 26, 520, 538))) != np.array(plain)).any(-1)


def test_captions_stand_beside_their_boxes() -> None:
    rows, columns = np.nonzero(captioned([100, 100, 108, 106]))
    assert 80 < rows.min() < rows.max() < 99  # above
    assert 95 < columns.min() < columns.max() < 200
    rows, _ = np.nonzero(captioned([100, 2, 108, 8]))
    assert 8 < rows.min() < rows.max() < 30  # below, where there is no room above


def test_captions_hide_no_object() -> None:
    lattice = [[x, y, x + 8, y + 8] for x in range(20, 480, 16) for y in range(20, 480, 16)]
    places = captioned(*lattice)
    assert places.any()
    assert not any(places[y - 1 : y + 9, x - 1 : x + 9].any() for x, y, _, _ in lattice)


def test_one_class_needs_no_name_in_captions() -> None:
    image, found = torch.zeros(3, 512, 512), objects([100, 100, 108, 106])
    named, plain = (np.array(draw_detections(image, found, names)) for names in (["drone", "bird"], ["drone"]))
    assert (plain != named).any()


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


@pytest.mark.parametrize("kind", [HIT, FALSE_ALARM, MISSED, NOT_COUNTED])
@pytest.mark.parametrize("box", [(40, 40, 44, 43), (40, 40, 70, 45), (40, 30, 43, 70)])
@pytest.mark.parametrize("ground", [0, 255])
def test_a_mark_hides_nothing_of_its_object_and_is_seen_on_dark_and_bright(
    kind: Kind, box: tuple[int, int, int, int], ground: int
) -> None:
    picture = Image.new("RGB", (100, 100), (ground,) * 3)
    draw_marks(ImageDraw.Draw(picture), [Mark(box, kind)])
    pixels = np.array(picture).astype(int)
    assert (pixels[box[1] : box[3], box[0] : box[2]] == ground).all()
    line = (pixels == list(bytes.fromhex(kind.colour[1:]))).all(-1)
    rim = (pixels == 0).all(-1)
    assert line.sum() > 10
    beside = np.abs(np.argwhere(line)[:, None] - np.argwhere(rim)[None]).max(-1).min(-1)
    assert beside.max() <= 1  # the rim goes along all of the line


def test_outcomes_have_their_colours_in_the_picture_and_in_its_title() -> None:
    """A hit, a detection on an ignore region and a false alarm; one below the score; a missed object."""
    places = [[10.0 + 60 * index, 100, 22 + 60 * index, 110] for index in range(5)]
    image, found = torch.full((3, 512, 512), 0.5), objects(*places[:4])
    judged = Outcomes([{"bbox": [250, 100, 12, 10]}], [0], [2], [1])
    picture = panel(image, objects(), found, class_names=["drone"], score=0.2, outcomes=judged).convert("RGB")
    last = picture.crop((picture.width - 520, 0, picture.width - 8, picture.height))
    for kind, left in ((HIT, 10), (NOT_COUNTED, 70), (FALSE_ALARM, 130), (MISSED, 250)):
        rows, columns = np.nonzero((np.array(last) == list(bytes.fromhex(kind.colour[1:]))).all(-1))
        assert rows.min() < 26  # the legend
        drawn = columns[rows > 26]
        assert left - 10 < drawn.min() < drawn.max() < left + 22
    assert coloured(last) == []
    below = draw_detections(image, found, ["drone"], score=0.2, outcomes=Outcomes([], [], [], []))
    assert (np.array(below.crop((8, 26, 520, 538))) == 127).all()


def test_a_box_of_a_billion_pixels_is_cut_and_a_name_of_two_lines_is_one() -> None:
    image, huge = torch.zeros(3, 64, 64), objects([10, 10, 1e9, 1e9])
    target = {key: huge[key] for key in ("boxes", "labels")}
    judged = Outcomes([{"bbox": [10, 10, 1e9, 1e9]}], [0], [], [])
    panel(image, target, huge, class_names=["small\ncar"], outcomes=judged)
    draw_detections(image, huge, ["small\ncar", "bus"])
    cut = draw_boxes(image, torch.tensor([[10.0, 10, 1e9, 1e9]]), torch.tensor([1]))
    assert coloured(cut) == coloured(draw_boxes(image, torch.tensor([[10.0, 10, 99, 99]]), torch.tensor([1])))
