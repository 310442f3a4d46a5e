"""What a checkpoint says of itself, in `srtod info` and in its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srtod.engine.card import checkpoint_facts, model_card
from srtod.info import main
from srtod.models import build_detector
from srtod.models.checkpoint import describe, write_checkpoint

METRICS = {"AP": 0.25, "APvt": -1.0, "F1": 0.5, "precision": 0.5, "recall": 0.5, "F1_threshold": 0.3}


def content(class_names: list[str], **model: Any) -> dict[str, Any]:
    arguments = {"name": "faster_rcnn", "backbone": "mobilenet_v2", "channels": 16, **model}
    detector = build_detector(**arguments, num_classes=len(class_names) + 1)
    description = describe(arguments, class_names, [*range(1, len(class_names) + 1)])
    return {
        "state_dict": {f"detector.{name}": value for name, value in detector.state_dict().items()},
        "srtod": description | {"image_size": [480, 640]},
        "metrics": METRICS,
        "epoch": 2,
        "global_step": 30,
        "callbacks": {"Checkpoints": {"data": {"training": [10, "abcdef" * 10], "test": [4, "123456" * 10]}}},
    }


def test_facts() -> None:
    facts = checkpoint_facts(content(["drone", "two\nlines"], reconstruction="paper", resize="nearest"))
    assert facts["detector"] == "faster_rcnn"
    assert facts["self-reconstruction"] == "reconstruction paper, resize nearest"
    assert facts["classes"].count("\n") == 0
    assert facts["trained"] == "3 epochs, 30 steps"
    assert facts["training set"] == "10 images, fingerprint abcdefabcdefabcd"
    assert facts["image size"] == "mostly 640x480 pixels"
    assert "control" not in facts


def test_a_plain_detector_with_many_classes_and_a_bare_checkpoint() -> None:
    given = content([f"class {number}" for number in range(25)], self_reconstruction=False)
    given = {name: given[name] for name in ("state_dict", "srtod")} | {"callbacks": {"Checkpoints": None}}
    given["srtod"]["control"] = "oracle"
    facts = checkpoint_facts(given)
    assert facts["self-reconstruction"] == "none"
    assert facts["classes"].endswith("class 19 and 5 others")
    assert facts["control"] == "oracle: of an experiment, not to be used"
    assert not facts.keys() & {"trained", "training set", "test set"}
    assert "## Metrics" not in model_card(given, Path("best.ckpt"))


def test_the_card_is_markdown() -> None:
    card = model_card(content(["a|b"]), Path("runs/x/best.ckpt"))
    assert card.startswith("# faster_rcnn: a|b\n\n| | |\n|---|---|\n")
    assert "| classes | a\\|b |" in card
    assert "25.0" in card
    assert 'srtod.Predictor("best.ckpt")' in card


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(content(["drone"]), tmp_path / "a.ckpt")
    main([str(tmp_path / "a.ckpt")])
    printed = capsys.readouterr().out
    assert "detector " in printed
    assert "F1_threshold\n" in printed
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is not a checkpoint of srtod's training"):
        main([str(tmp_path / "other.ckpt")])
