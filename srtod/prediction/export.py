"""A trained detector as a file that other programs run: ONNX, or a package of compiled code for PyTorch's runtime.

Both take a batch of images and give boxes, labels and scores, see `ExportableDetector`. docs/export.md tells how they
are used, and of each detector whether it can be exported.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from srtod._support.errors import first_line, is_out_of_memory
from srtod._support.extras import MissingExtraError
from srtod._support.files import replacing
from srtod._version import __version__
from srtod.data import SwarmDataset
from srtod.models import DetectionTransform
from srtod.models.checkpoint import TrainedDetector, load_detector
from srtod.models.exportable import ExportableDetector
from srtod.ops import use_reference

__all__ = ["NOT_EXPORTED", "OPSET", "Agreement", "Exported", "export_detector"]

Format = Literal["onnx", "pt2"]

OPSET = 20
"""Of ONNX's standard operators; deformable convolutions are there from 19 on."""

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")

NOT_EXPORTED = dict.fromkeys(
    ("deformable_detr", "dfine"), "the library transformers fixes the size of the images in its program"
)
"""Detectors that no file can hold, and why."""

SIZES = ((256, 320), (384, 256))
"""Height and width of the pictures that a file is checked on."""

MOST_UNLIKE = 0.05
"""Share of the detections that may lack a counterpart: at a threshold the least rounding decides."""

Detections = tuple[Tensor, Tensor, Tensor]
"""What an exported detector gives."""


class Agreement(NamedTuple):
    """How an exported file compares with PyTorch, on pictures of two sizes.

    Attributes:
        detections: how many detections were compared.
        boxes: the greatest difference of a coordinate, in pixels.
        scores: the greatest difference of a score.
        unlike: how many detections have no counterpart: of the same label, within a pixel and 0.001 of the score.
    """

    detections: int
    boxes: float
    scores: float
    unlike: int

    def __str__(self) -> str:
        if not self.detections:
            return "found nothing in the pictures of the check, as PyTorch did"
        unlike = f", {self.unlike} without a counterpart" if self.unlike else ""
        return (
            f"{self.detections} detections against PyTorch's on pictures of {len(SIZES)} sizes: boxes differ by at "
            f"most {self.boxes:.2g} px, scores by at most {self.scores:.2g}{unlike}"
        )


class Exported(NamedTuple):
    """A written file.

    Attributes:
        path: the file.
        metadata: what it says about itself; docs/export.md lists it.
        agreement: how it compares with PyTorch.
    """

    path: Path
    metadata: dict[str, str]
    agreement: Agreement


def export_detector(
    checkpoint: str | Path,
    path: str | Path,
    *,
    overwrite: bool = False,
    score_threshold: float | None = None,
    detections_per_image: int | None = None,
) -> Exported:
    """Writes a trained detector for other programs, once it has given there what it gives here.

    Args:
        checkpoint: a checkpoint of `srtod train`.
        path: the file: `.onnx`, of standard operators alone; or `.pt2`, code for this kind of CPU that AOTInductor
            compiles, with srtod's fused ops.
        overwrite: whether a file that is there is replaced.
        score_threshold: detections must score above this; None for the training run's.
        detections_per_image: the most detections an image; None for the training run's.

    Raises:
        FileExistsError: if the file exists and is not to be replaced.
        FileNotFoundError: if the checkpoint or the file's folder does not exist.
        ImportError: if a library is missing.
        IsADirectoryError: if the checkpoint is a folder.
        ValueError: if the file has another suffix, the checkpoint is damaged or foreign, or the detector cannot be
            exported with its options, or finds something else there.
    """
    path = Path(path)
    format_ = _format(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or add --overwrite")
    _check_libraries(format_)
    options: dict[str, Any] = {"score_threshold": score_threshold, "detections_per_image": detections_per_image}
    trained = load_detector(checkpoint, **{name: value for name, value in options.items() if value is not None})
    if why := NOT_EXPORTED.get(trained.name):
        raise ValueError(f"{trained.name} cannot be exported: {why}; choose another detector")
    reconstruction = trained.detector.self_reconstruction
    if reconstruction is not None and reconstruction.options.difference == "high_frequency":
        raise ValueError(
            "a detector with difference=high_frequency cannot be exported: its Fourier transform cannot be traced for "
            "images of any size; export one with difference=pixel"
        )
    metadata = _metadata(trained, format_)
    trained.detector.transform = DetectionTransform(None, None)  # resizing is left to whoever runs the file
    pictures = _pictures()
    with replacing(path, binary=True) as file, TemporaryDirectory() as folder:
        made = Path(folder, f"detector{path.suffix}")
        try:
            with _quiet():
                run = _WRITERS[format_](trained, pictures[0], made, metadata)
                agreement = _compare(trained, run, pictures)
        except Exception as error:  # exporters and runtimes raise errors of any kind
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise ValueError(
                f"{trained.name} with the options of {checkpoint} cannot be exported to {path.suffix} "
                f"({_cause(error)}); docs/export.md lists what can"
            ) from error
        if agreement.unlike > MOST_UNLIKE * agreement.detections:
            raise ValueError(
                f"{path} is not written: {agreement.unlike} of {agreement.detections} detections differ from "
                f"PyTorch's; export another checkpoint, or report it"
            )
        with made.open("rb") as content:
            shutil.copyfileobj(content, file)
    return Exported(path, metadata, agreement)


def _cause(error: BaseException) -> str:
    """The first line of what an error goes back to: exporters wrap each in several that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _format(path: Path) -> Format:
    for format_ in _WRITERS:
        if path.suffix == f".{format_}":
            return format_
    raise ValueError(f"the name {path.name} must end in .onnx, or in .pt2 for AOTInductor")


def _check_libraries(format_: Format) -> None:
    missing = [name for name in LIBRARIES if format_ == "onnx" and find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"export to ONNX needs {' and '.join(missing)}; pip install 'srtod[export]'")
    if format_ == "pt2":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise MissingExtraError("export to .pt2 needs a C++ compiler; install g++") from error


def _metadata(trained: TrainedDetector, format_: Format) -> dict[str, str]:
    """What a file says about itself; all values are text, and lists and groups are JSON."""
    detector = trained.detector
    transform = detector.transform
    preprocessing = {
        "images": "RGB in [0, 1], float32, not normalised",
        "min_size": transform.min_size[-1] if transform.min_size else None,
        "max_size": None if transform.max_size == float("inf") else transform.max_size,
        "scale": transform.scale,
        "intensity_range": trained.intensity_range,
    }
    return {
        "srtod": __version__,
        "detector": trained.name,
        "class_names": json.dumps(trained.class_names),
        "category_ids": json.dumps(trained.category_ids),
        "preprocessing": json.dumps(preprocessing),
        "training_image_size": json.dumps(trained.image_size),
    } | ({"opset": str(OPSET)} if format_ == "onnx" else {"torch": str(torch.__version__)})


def _pictures() -> list[Tensor]:
    """A batch `[N, 3, H, W]` of each size, of generated pictures: two in the first, one in the second."""
    first, second = (SwarmDataset(2, size) for size in SIZES)
    return [torch.stack([first[0][0], first[1][0]]), second[0][0][None]]


Runner = Callable[[Tensor], Detections]
"""Runs a written file."""


def _write_onnx(trained: TrainedDetector, images: Tensor, path: Path, metadata: dict[str, str]) -> Runner:
    with use_reference():
        program = torch.onnx.export(
            _trace(trained, images),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["boxes", "labels", "scores"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Detections:
        boxes, labels, scores = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        return boxes, labels, scores

    return run


def _write_pt2(trained: TrainedDetector, images: Tensor, path: Path, metadata: dict[str, str]) -> Runner:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    options = {"aot_inductor.metadata": metadata}
    aoti_compile_and_package(_trace(trained, images), package_path=str(path), inductor_configs=options)
    package = aoti_load_package(str(path))

    def run(images: Tensor) -> Detections:
        boxes, labels, scores = package(images)
        return boxes, labels, scores

    return run


_WRITERS: dict[Format, Callable[[TrainedDetector, Tensor, Path, dict[str, str]], Runner]] = {
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}


def _trace(trained: TrainedDetector, images: Tensor) -> torch.export.ExportedProgram:
    """The detector's program for images and batches of any size."""
    dynamic = torch.export.Dim.DYNAMIC
    model = ExportableDetector(trained.detector).eval().requires_grad_(False)
    with torch.no_grad():
        return torch.export.export(
            model,
            (images,),
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
            prefer_deferred_runtime_asserts_over_guards=True,  # of sizes, which the guards could not express
        )


@torch.no_grad()
def _compare(trained: TrainedDetector, run: Runner, batches: Sequence[Tensor]) -> Agreement:
    total = Agreement(0, 0.0, 0.0, 0)
    for images in batches:
        for expected, boxes, labels, scores in zip(trained.detector(list(images)), *run(images), strict=True):
            real = labels > 0
            one = _compare_image(expected, boxes[real], labels[real], scores[real])
            total = Agreement(
                total.detections + one.detections,
                max(total.boxes, one.boxes),
                max(total.scores, one.scores),
                total.unlike + one.unlike,
            )
    return total


def _compare_image(expected: dict[str, Tensor], boxes: Tensor, labels: Tensor, scores: Tensor) -> Agreement:
    """Looks for a counterpart of each detection, since those of equal scores have no order."""
    count = len(expected["scores"])
    if count == 0 or len(scores) == 0:
        return Agreement(count, 0.0, 0.0, max(count, len(scores)))
    apart = (expected["boxes"][:, None] - boxes).abs().amax(dim=2)  # [K, M]
    scores_apart = (expected["scores"][:, None] - scores).abs()
    alike = (expected["labels"][:, None] == labels) & (apart < 1) & (scores_apart < 1e-3)
    nearest, index = apart.where(alike, torch.inf).min(dim=1)
    found = nearest.isfinite()
    of_scores = scores_apart.gather(1, index[:, None])[found]
    return Agreement(
        count,
        float(nearest[found].max()) if found.any() else 0.0,
        float(of_scores.max()) if found.any() else 0.0,
        int((~found).sum()) + abs(count - len(scores)),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of themselves: nobody who exports a detector can act on it."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.utils", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
