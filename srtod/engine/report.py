"""The report of a run: what its best checkpoint measured, under which protocol, and what it missed, in one folder."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import lightning
import torch
import torchvision

from srtod._support.folders import replacing_folder
from srtod._support.machine import processor
from srtod._version import __version__
from srtod.data import DetectionDataset
from srtod.data.statistics import set_statistics
from srtod.evaluation import (
    DetailedEvaluation,
    detailed_evaluation,
    detections_by_image,
    format_classes,
    format_table,
    outcomes,
    plot_curves,
    protocol,
)
from srtod.models.checkpoint import TrainedDetector
from srtod.visualization import drawn_from

from .callbacks.pictures import NO_DETECTIONS, sample_panel
from .config import TrainConfig
from .page import run_page

__all__ = ["PAGE", "REPORT", "SUMMARY", "source_commit", "write_report"]

REPORT = "report"
SUMMARY = f"{REPORT}/metrics.json"
PAGE = f"{REPORT}/report.html"
MOST_OF_A_SEQUENCE = 2  # neighbouring frames look the same
CONTENT = ("report.html", "metrics.json", "per_class.md", "pr_curves.png", "panels")


def write_report(
    folder: Path,
    trained: TrainedDetector,
    test_set: DetectionDataset,
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    config: TrainConfig,
    checkpoint: str,
    epoch: int,
    commit: str | None,
) -> DetailedEvaluation:
    """Writes `report/` in a run's folder, which can be mailed as it is; it is there when all of it is.

        report.html     all of it as one page, see `srtod.engine.page`
        metrics.json    the metrics, with the protocol and all that the numbers depend on
        per_class.md    the metrics of each class
        pr_curves.png   precision over recall in each size bin
        panels/         pictures of test images, `01_<image>.png` the one where most objects were missed;
                        of a sequence of frames two at most, unless there is nothing else

    Args:
        folder: the run's folder; a report in it is replaced.
        trained: the detector of the checkpoint.
        test_set: the test set.
        ground_truth: its ground truth, of the images that were evaluated.
        detections: what the detector found in them, as COCO results.
        config: the run.
        checkpoint: the checkpoint's file, as it is named from the run's folder.
        epoch: epochs that it was trained.
        commit: what `source_commit` said when the run began.

    Raises:
        OSError: if it cannot be written; a report that was there stays.
    """
    evaluation = detailed_evaluation(ground_truth, detections)
    summary = {
        "metrics": evaluation.metrics,
        "protocol": protocol(),
        "test_set": {
            "images": len(ground_truth["images"]),
            "objects": evaluation.curves["all"].objects,
            "ignore_regions": set_statistics(ground_truth).ignore_regions,
        },
        "checkpoint": checkpoint,
        "epoch": epoch,
        "seed": config.seed,
        "device": _device(config),
        "precision": config.precision,
        "commit": commit,
        "versions": {
            "srtod": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
        "config": config.as_dict(),
    }
    try:
        with replacing_folder(folder / REPORT, CONTENT) as report:
            (report / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            (report / "per_class.md").write_text(_classes(evaluation), encoding="utf-8")
            plot_curves(evaluation.curves).savefig(report / "pr_curves.png")
            _write_panels(
                report / "panels",
                trained,
                test_set,
                ground_truth,
                detections,
                count=config.panels,
                score=drawn_from(evaluation.metrics),
            )
            (report / "report.html").write_text(run_page(folder, report), encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"the report {folder / REPORT} could not be written ({error.strerror or error}); the run's checkpoints are "
            f"complete: make room, and --resume {folder} writes it"
        ) from error
    return evaluation


def source_commit(*paths: str) -> str | None:
    """The git commit of the checkout that srtod runs from, with `+changes` behind it if files differ from it.

    None if srtod is installed: then its version says what ran.

    Args:
        paths: files and folders of the checkout; the latest commit that changed one of them counts. None: all.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:  # installed somewhere in another checkout
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
        return git("log", "-1", "--format=%H", "--", *paths) + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _classes(evaluation: DetailedEvaluation) -> str:
    whole = f"```\n{format_table(evaluation.metrics)}\n```"
    return f"# Classes\n\n{format_classes(evaluation)}\n\n# All classes\n\n{whole}\n"


def _write_panels(
    folder: Path,
    trained: TrainedDetector,
    test_set: DetectionDataset,
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    count: int,
    score: float,
) -> None:
    folder.mkdir()
    judged = outcomes(ground_truth, detections, score=score)
    found = detections_by_image(detections, trained.category_ids)
    position = {image["id"]: index for index, image in enumerate(test_set.ground_truth["images"])}
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    worst = _varied(list(judged), [names[image_id] for image_id in judged], count)
    for number, image_id in enumerate(worst, start=1):
        sample = test_set[position[image_id]]
        name = f"{number:0{max(2, len(str(len(worst))))}}_{Path(sample[1]['file_name']).stem}.png"
        picture = sample_panel(
            trained.detector,
            sample,
            found.get(image_id, NO_DETECTIONS),
            judged[image_id],
            trained.class_names,
            score=score,
        )
        picture.save(folder / name)


def _varied(images: Sequence[int], names: Sequence[str], count: int) -> list[int]:
    """The first images, but no third one of a sequence while there are others; in their order.

    Files of one folder whose names differ in digits alone are taken for a sequence, such as the frames of a video.
    """
    seen: Counter[str] = Counter()
    first: list[int] = []
    others: list[int] = []
    for index, name in enumerate(names):
        path = PurePosixPath(name)
        sequence = str(path.with_name(re.sub(r"\d+", "0", path.name)))
        seen[sequence] += 1
        (first if seen[sequence] <= MOST_OF_A_SEQUENCE else others).append(index)
    return [images[index] for index in sorted((first + others)[:count])]


def _device(config: TrainConfig) -> str:
    """What the run trained on, such as "4 x NVIDIA H100"."""
    name, _ = processor()
    if config.accelerator != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    count = config.devices * config.nodes
    return name if count == 1 else f"{count} x {name}"
