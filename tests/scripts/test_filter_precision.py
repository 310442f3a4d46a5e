"""The table of what precision does to the filter: the pruned path differs in nothing, bfloat16 does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filter_precision import WAYS, YARDSTICK, Way, compare, run, without_partner

from srtod.data import SwarmDataset
from srtod.models import build_detector
from srtod.models.checkpoint import describe, write_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "filter_precision.py"
MODEL = {
    "name": "faster_rcnn",
    "num_classes": 2,
    "backbone": "mobilenet_v2",
    "norm": "group",
    "enhancement": "dgfe",
    "resize": "nearest",
    "channels": 16,
    "min_size": None,
    "reconstruction": "subpixel",
    "threshold": 0.2,
}


def test_the_pruned_path_flips_nothing_and_bfloat16_little() -> None:
    torch.manual_seed(0)
    detector = build_detector(**MODEL, score_threshold=0.0).eval()  # type: ignore[arg-type]
    images = [torch.rand(3, 75, 130), torch.rand(3, 64, 64)]
    tallies = compare(detector, images, "cpu")
    cells = 19 * 33 + 16 * 16  # of a stride of 4; padding does not count
    assert [tally.pixels for tally in tallies.values()] == [cells] * (1 + len(WAYS))
    yardstick = tallies[YARDSTICK]
    assert (yardstick.flipped, yardstick.largest, yardstick.changed) == (0, 0, 0)
    whole = torch.cat([detector.reconstruct([image])[0].filter.flatten() for image in images]) > 1
    assert yardstick.passing == whole.sum()
    assert 0.1 * cells < yardstick.passing < 0.9 * cells
    for way in WAYS:
        tally = tallies[way]
        if way.half or way.half_enhancement:
            assert 1e-4 < tally.largest < 0.2
            assert tally.flipped < 0.1 * cells
        else:
            assert tally.flipped == 0
            assert tally.largest < 1e-4
            assert tally.changed <= 2  # at the end of the hundred best, where rounding decides
    assert tallies[Way("bfloat16 detector", half=True)].changed > 0
    assert "enhance" not in vars(detector.self_reconstruction)


def test_an_error_leaves_the_detector_as_it_was() -> None:
    detector = build_detector(**MODEL).eval()  # type: ignore[arg-type]
    plug = detector.self_reconstruction
    assert plug is not None

    def fail(*_: object) -> None:
        raise RuntimeError("no detections today")

    with detector.head.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="today"):
        run(detector, torch.rand(3, 64, 64), YARDSTICK)
    assert "enhance" not in vars(plug)
    assert not detector.transform._forward_hooks
    assert not plug.enhancer._forward_hooks


def test_detections_without_a_partner() -> None:
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}
    other = {"boxes": torch.tensor([[0.0, 0, 10, 9.5], [20, 20, 30, 30]]), "labels": torch.tensor([1, 2])}
    assert without_partner(one, other) == without_partner(other, one) == 1
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert (without_partner(one, none), without_partner(none, one)) == (2, 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = {f"detector.{name}": value for name, value in build_detector(**MODEL).state_dict().items()}  # type: ignore[arg-type]
    write_checkpoint({"state_dict": weights, "srtod": describe(MODEL, ["drone"], [1])}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_the_table_is_printed(checkpoint: Path, tmp_path: Path) -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    swarm = SwarmDataset(3, (128, 128))
    for number in range(3):
        to_pil_image(swarm[number][0]).save(tmp_path / f"{number}.png")
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(tmp_path), "--every", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    conditions, _, heads, _, *rows = done.stdout.splitlines()
    assert conditions.startswith(f"2 images, {2 * 32 * 32} pixels of the filter, of which")
    assert [row.split(" | ")[0] for row in rows] == [f"| {way.name}" for way in WAYS]
    assert all(row.count("|") == heads.count("|") for row in rows)
    assert re.match(r"\| float32 \| 0 \(0 %\) \| - \|", rows[0])
