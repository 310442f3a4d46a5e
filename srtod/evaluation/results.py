"""Detections in COCO's result format: made from a detector's output, and read back and checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torchvision.ops import box_convert

from srtod._support.reading import parse_json, read_bytes
from srtod._support.schema import decode_each, read_as
from srtod.data.box_tables import Detection, DetectionTable

__all__ = ["coco_results", "detections_by_image", "read_detections"]


def coco_results(detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format.

    Args:
        detections: `boxes` `[K, 4]`, (x1, y1, x2, y2) in pixels, `labels` `[K]` and `scores` `[K]`.
        image_id: the image's id in the ground truth.
        category_ids: COCO category id of each class; label k is `category_ids[k - 1]`.
    """
    boxes = box_convert(detections["boxes"], "xyxy", "xywh").tolist()
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]


def detections_by_image(
    results: Sequence[Mapping[str, Any]], category_ids: Sequence[int]
) -> dict[int, dict[str, Tensor]]:
    """The reverse of `coco_results`: the detections of each image that has any, by its id, in the given order."""
    label_of = {category: label for label, category in enumerate(category_ids, start=1)}
    images: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        images[result["image_id"]].append(result)
    return {
        image_id: {
            "boxes": box_convert(torch.tensor([result["bbox"] for result in group]), "xywh", "xyxy"),
            "labels": torch.tensor([label_of[result["category_id"]] for result in group]),
            "scores": torch.tensor([result["score"] for result in group]),
        }
        for image_id, group in images.items()
    }


def read_detections(source: str | Path | Sequence[Mapping[str, Any]], truth: Mapping[str, Any]) -> DetectionTable:
    """Checked detections, reduced to what is scored: a sequence of dicts.

    Args:
        source: COCO results, as a list or a JSON file.
        truth: the ground truth, a COCO dict as `srtod.data.read_coco` gives it.

    Raises:
        FileNotFoundError: if the file is missing.
        TypeError: if `source` is of another type.
        ValueError: if the file holds no list, or a detection names an unknown image or category, lacks a key, or has a
            box or score that is malformed or not finite.
    """
    from_file = isinstance(source, (str, Path))
    content = _read_file(source) if isinstance(source, (str, Path)) else source
    if isinstance(content, str) or not isinstance(content, Sequence):
        raise (ValueError if from_file else TypeError)(
            f"{source if from_file else 'detections'} must be a list of COCO results, got {type(content).__name__}"
        )

    def place(number: int) -> str:
        return f"{source}: detection {number}" if from_file else f"detections[{number}]"

    table = (
        content
        if isinstance(content, DetectionTable)
        else DetectionTable(read_as(Detection, entry, place(number)) for number, entry in enumerate(content))
    )
    table.check_ids(
        [image["id"] for image in truth["images"]], [category["id"] for category in truth["categories"]], place
    )
    return table


def _read_file(path: str | Path) -> Any:
    """The content of a file of results: a table, unless something in it has to be named."""
    data = read_bytes(path)
    try:
        return DetectionTable(decode_each(Detection, msgspec.json.decode(data, type=list[msgspec.Raw])))
    except (msgspec.DecodeError, RecursionError):
        return parse_json(data, path)
