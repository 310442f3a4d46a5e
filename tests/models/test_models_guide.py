"""The snippets of docs/models.md run, on a small backbone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

GUIDE = Path(__file__).resolve().parents[2] / "docs/models.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
def test_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    """What the guide leaves to the reader is given here; nothing is downloaded."""
    torch.manual_seed(0)
    corners = torch.rand(96, 2) * 50
    anchors = torch.cat((corners, corners + 4 + torch.rand(96, 2) * 8), dim=1)
    names: dict[str, Any] = {
        "images": [torch.rand(3, 64, 64) for _ in range(2)],
        "targets": [{"boxes": anchors[:2], "labels": torch.tensor([1, 2])} for _ in range(2)],
        "gt_boxes": anchors[:3] + 1,
        "anchors": anchors,
        "anchors_of_levels": anchors.split([64, 32]),
        "receptive_fields": anchors,
        "batch": torch.randn(2, 3, 64, 64),
    }
    text = GUIDE.read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == text.count("```python") >= 4
    for snippet in snippets:
        exec(snippet.replace("resnet50", "resnet18").replace('weights="DEFAULT"', "weights=None, min_size=64"), names)
    assert len(names["detections"]) == 2
    assert names["owners"].shape == (96,)
    assert list(names["pyramid"]) == ["p2", "p3", "p4", "p5", "p6"]
    assert capsys.readouterr().out
