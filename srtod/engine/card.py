"""What a checkpoint says of itself: lines for `srtod info CHECKPOINT`, and a model card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srtod._support.names import printable
from srtod.evaluation import format_table
from srtod.models.checkpoint import BEFORE, CONTROL, DESCRIPTION, IMAGE_SIZE, INTENSITY_RANGE, METRICS

__all__ = ["CARD", "checkpoint_facts", "model_card"]

CARD = "checkpoints/MODEL_CARD.md"
"""Where a run keeps the card of its best checkpoint, from its folder."""

MOST_CLASSES = 20
"""Names of classes that are listed; of more, their number is said."""


def checkpoint_facts(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint holds, name by name, in printing order, but for its metrics.

    Args:
        checkpoint: what `srtod.models.checkpoint.read_checkpoint` gave.
    """
    description = checkpoint[DESCRIPTION]
    model = BEFORE | description["model"]
    names = [printable(name) for name in description["class_names"]]
    others = len(names) - MOST_CLASSES
    facts = {
        "detector": str(model.get("name")),
        "backbone": f"{model.get('backbone')}, {model.get('channels')} channels in the pyramid",
        "self-reconstruction": _self_reconstruction(model),
        "classes": ", ".join(names[:MOST_CLASSES]) + (f" and {others} others" if others > 0 else ""),
        "weights": f"{sum(tensor.numel() for tensor in checkpoint['state_dict'].values()):,} values",
    }
    if control := description.get(CONTROL):
        facts["control"] = f"{control}: of an experiment, not to be used"
    if "epoch" in checkpoint and "global_step" in checkpoint:
        facts["trained"] = f"{checkpoint['epoch'] + 1} epochs, {checkpoint['global_step']} steps"
    for split, (images, digest) in _data(checkpoint).items():
        facts[f"{split} set"] = f"{images} images, fingerprint {digest[:16]}"
    if size := description.get(IMAGE_SIZE):
        facts["image size"] = f"mostly {size[1]}x{size[0]} pixels"
    if span := description.get(INTENSITY_RANGE):
        facts["intensity range"] = f"{span[0]:g} to {span[1]:g}"
    return facts | {"written by": f"srtod {description['version']}"}


def model_card(checkpoint: Mapping[str, Any], path: Path) -> str:
    """The card of a checkpoint, for people who get the file alone.

    Args:
        checkpoint: its content.
        path: its place, of which the name is used.
    """
    facts = checkpoint_facts(checkpoint)
    lines = [f"# {facts['detector']}: {facts['classes']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in facts.items()]
    if metrics := checkpoint.get(METRICS):
        lines += ["", "## Metrics", "", "Of the test set, which also chose this checkpoint among those of its run.", ""]
        lines += ["```", format_table(metrics), "```"]
    lines += ["", "## Use", "", "```python", "import srtod", ""]
    lines += [f'found = srtod.Predictor("{path.name}")("image.jpg")', 'found.save("found.png")', "```", ""]
    return "\n".join(lines)


def _self_reconstruction(model: Mapping[str, Any]) -> str:
    if not model.get("self_reconstruction", True):
        return "none"
    options = ["reconstruction", "reconstruction_target", "enhancement"]
    if model.get("enhancement") != "none":
        options += ["threshold", "resize"]
    return ", ".join(f"{name} {model[name]}" for name in options if model.get(name) is not None)


def _data(checkpoint: Mapping[str, Any]) -> Mapping[str, tuple[int, str]]:
    """Number of images and fingerprint of the training and the test set, as far as the checkpoint says them."""
    try:
        data = checkpoint["callbacks"]["Checkpoints"]["data"]
        return {split: (int(count), str(digest)) for split, (count, digest) in data.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}
