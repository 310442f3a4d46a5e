"""`srtod export`: what the files hold and find, from Python and from C++, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import srtod
from srtod import export as command
from srtod._support.cli import run
from srtod._support.folders import is_leftover
from srtod.data import SwarmDataset
from srtod.models import DETECTORS, build_detector
from srtod.models.checkpoint import describe, write_checkpoint
from srtod.prediction import export as module
from srtod.prediction.export import NOT_EXPORTED, OPSET, Agreement, export_detector

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("retinanet", "faster_rcnn", "fcos", "tridentnet", "cascade_rpn", "detectors_rfla")
"""Detectors that were compiled; a test compiles the first two, and with SRTOD_EXPORT=all every one."""
SLOW = ("detectors_rfla",)
"""With `faster_rcnn`, and the packages of two detectors, they have every kind of head, neck and operator, but for the
blocks of `dyhead`; SRTOD_EXPORT=all exports all."""
if os.environ.get("SRTOD_EXPORT") == "all":
    SLOW = tuple(name for name in DETECTORS if name not in NOT_EXPORTED)
COMPILED = PACKAGES if os.environ.get("SRTOD_EXPORT") == "all" else PACKAGES[:2]
CLASSES = {"class_names": '["drone", "bird"]', "category_ids": "[3, 7]"}

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs srtod[export]")


def call(*arguments: object) -> int | str:
    """The exit status of the command line."""
    try:
        run(lambda: command.main([str(argument) for argument in arguments]))
    except SystemExit as end:
        return end.code or 0
    return 0


def write(name: str, folder: Path, **options: Any) -> Path:
    """A checkpoint of a small untrained detector that finds something everywhere."""
    torch.manual_seed(0)
    model: dict[str, Any] = {"name": name, "num_classes": 3, "backbone": "resnet18", "channels": 16}
    model |= {"min_size": None, "score_threshold": 0.0, "detections_per_image": 20, "reconstruction": "subpixel"}
    model |= {"enhancement": "dgfe", "resize": "max", "threshold": 4 / 255} | options
    weights = {f"detector.{key}": value for key, value in build_detector(**model).state_dict().items()}
    path = folder / f"{name}.ckpt"
    write_checkpoint({"state_dict": weights, "srtod": describe(model, ["drone", "bird"], [3, 7])}, path)
    return path


def picture(height: int, width: int, seed: int = 3) -> Tensor:
    """`[1, 3, height, width]`."""
    return SwarmDataset(1, (height, width), seed=seed)[0][0][None]


def check_alike(found: Any, expected: list[Any]) -> None:
    """Boxes, labels and scores of a file, and the detections of PyTorch."""
    boxes, labels, scores = map(torch.as_tensor, found)
    assert len(labels) == len(expected)
    for index, of_image in enumerate(expected):
        count = int((labels[index] > 0).sum())
        agreement = module._compare_image(of_image, boxes[index, :count], labels[index, :count], scores[index, :count])
        assert agreement.detections == 20
        assert agreement.unlike == 0
        assert agreement.boxes < 0.01


def detections(checkpoint: Path, images: Tensor) -> list[Any]:
    return srtod.Predictor(checkpoint, "cpu")(list(images))


@needs_onnx
def test_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx
    import onnxruntime

    checkpoint, path = write("faster_rcnn", tmp_path), tmp_path / "out.onnx"
    assert call(checkpoint, path) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    said = (
        rf"{re.escape(str(path))}: faster_rcnn, ONNX opset {OPSET}; 60 detections against PyTorch's on pictures of 2 "
    )
    assert re.fullmatch(said + r"sizes: boxes differ by at most \S+ px, scores by at most \S+\n", printed.out)
    assert printed.err == ""

    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.items() >= (CLASSES | {"detector": "faster_rcnn", "opset": str(OPSET)}).items()
    assert json.loads(metadata["preprocessing"])["min_size"] is None

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images in (picture(140, 200), torch.cat([picture(160, 130, seed) for seed in range(3)])):
        check_alike(session.run(None, {"images": images.numpy()}), detections(checkpoint, images))

    run_the_document(checkpoint, path, tmp_path)


def run_the_document(checkpoint: Path, path: Path, folder: Path) -> None:
    """The Python block of docs/export.md that runs an ONNX file."""
    code = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[0]
    from torchvision.utils import save_image

    image = folder / "a.png"
    save_image(picture(128, 192), image)
    names: dict[str, Any] = {}
    exec(code.replace("out.onnx", str(path)).replace("photos/a.jpg", str(image)), names)
    assert len(names["found"]) == 20
    name, score, box = names["found"][0]
    expected = srtod.Predictor(checkpoint, "cpu")(image)
    assert name == expected.names[0]
    assert score == pytest.approx(float(expected["scores"][0]), abs=1e-4)
    assert box == pytest.approx(expected["boxes"][0].tolist(), abs=0.01)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", SLOW)
def test_detectors_as_onnx(name: str, tmp_path: Path) -> None:
    exported = export_detector(write(name, tmp_path), tmp_path / "out.onnx")
    assert exported.agreement.detections == 60
    assert exported.agreement.boxes < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_package_runs_from_python_and_from_cpp(name: str, tmp_path: Path) -> None:
    from torch._inductor import aoti_load_package

    checkpoint, path = write(name, tmp_path), tmp_path / "out.pt2"
    assert export_detector(checkpoint, path).agreement.boxes < 0.01
    package = aoti_load_package(str(path))
    assert package.get_metadata().items() >= (CLASSES | {"detector": name}).items()
    for images in (picture(140, 200), torch.cat([picture(160, 130, seed) for seed in range(3)])):
        check_alike(package(images), detections(checkpoint, images))

    if shutil.which("g++") is None:
        pytest.fail("the package was compiled without g++")
    image = picture(140, 200)
    image.numpy().tofile(tmp_path / "image")
    program = [build(tmp_path), path, tmp_path / "image", "140", "200", *libraries()]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    classes, *lines = done.stdout.splitlines()
    assert classes == f"classes: {CLASSES['class_names']}"
    rows = torch.tensor([[float(word) for word in line.split()] for line in lines])
    check_alike((rows[None, :, 2:], rows[None, :, 0].long(), rows[None, :, 1]), detections(checkpoint, image))


def build(folder: Path) -> Path:
    """Compiles tests/cpp/run_package.cpp as docs/export.md says."""
    torch_folder = Path(torch.__file__).parent
    program = folder / "run_package"
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    where = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib,--disable-new-dtags"]
    source = ROOT / "tests" / "cpp" / "run_package.cpp"
    subprocess.run(
        ["g++", "-std=c++20", source, "-isystem", torch_folder / "include", *where, *libraries, "-o", program],
        check=True,
    )
    return program


def libraries() -> list[Path]:
    """The libraries with the ops of a package: srtod's and torchvision's, which needs libpython."""
    import torchvision

    [ours] = Path(srtod.__file__).parent.glob("_cpu*.so")
    [theirs] = Path(torchvision.__file__).parent.glob("_C*.so")
    python = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    if not python.is_file() or python.suffix == ".a":
        pytest.skip(f"torchvision's wheel needs libpython, which {sys.executable} does not come with")
    return [ours, python, theirs]


def test_the_table_of_the_document() -> None:
    text = (ROOT / "docs" / "export.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert tuple(name for name in rows if name in DETECTORS) == DETECTORS
    for name in DETECTORS:
        onnx_cell, pt2_cell, dynamic, *_ = [cell.strip() for cell in rows[name].split("|")]
        if name in NOT_EXPORTED:
            assert (onnx_cell, pt2_cell, dynamic) == (f"no: {NOT_EXPORTED[name]}", "no: the same", "none")
        else:
            assert (onnx_cell, dynamic) == ("yes", "N, H, W")
            assert pt2_cell == ("yes" if name in PACKAGES else "untried")


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_detectors_that_cannot_be_exported(
    name: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs srtod[detr]")
    pytest.importorskip("onnxruntime", reason="needs srtod[export]")
    assert call(write(name, tmp_path, channels=32), tmp_path / f"out.{suffix}") == 2
    assert capsys.readouterr().err == (
        f"error: {name} cannot be exported: {NOT_EXPORTED[name]}; choose another detector\n"
    )


@needs_onnx
def test_an_option_that_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(write("fcos", tmp_path, difference="high_frequency"), tmp_path / "out.onnx") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a detector with difference=high_frequency cannot be exported: ")
    assert error.count("\n") == 1


@needs_onnx
def test_bad_input(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, there, foreign = tmp_path / "out.onnx", tmp_path / "there.onnx", tmp_path / "foreign.ckpt"
    there.write_text("before")
    torch.save({"a": 1}, foreign)
    cases = [
        ((checkpoint, tmp_path / "out.engine"), "the name out.engine must end in .onnx, or in .pt2 for AOTInductor"),
        ((checkpoint, there), f"{there} exists; choose another name, or add --overwrite"),
        ((foreign, out), f"{foreign} is not a checkpoint of srtod's training; pass a .ckpt file that it wrote"),
        ((tmp_path, out), f"the checkpoint {tmp_path} is a folder; pass a .ckpt file of a training run"),
        ((checkpoint, tmp_path / "no" / "out.onnx"), f"the folder {tmp_path}/no does not exist; make it first"),
        ((checkpoint, out, "--score-threshold", "2"), "score_threshold must be from 0 to less than 1, got 2.0"),
        ((checkpoint, out, "--detections-per-image", "0"), "detections_per_image must be"),
    ]
    for arguments, sentence in cases:
        assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert there.read_text() == "before"
    assert not out.exists()


def test_missing_libraries(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LIBRARIES", ("onnx_that_is_missing", "scripts_too"))
    assert call(checkpoint, tmp_path / "out.onnx") == 2
    said = "error: export to ONNX needs onnx_that_is_missing and scripts_too; pip install 'srtod[export]'\n"
    assert capsys.readouterr().err == said
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/compiler",))
    assert call(checkpoint, tmp_path / "out.pt2") == 2
    assert capsys.readouterr().err == "error: export to .pt2 needs a C++ compiler; install g++\n"


@needs_onnx
@pytest.mark.parametrize("reason", ["the exporter stops", "it finds something else"])
def test_a_file_is_there_as_a_whole_or_as_it_was(
    reason: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(trained: Any, images: Any, path: Path, metadata: Any) -> Any:
        path.write_bytes(b"half of it")
        if reason == "the exporter stops":
            raise RuntimeError("three steps") from NotImplementedError("no operator\nfor that")
        return None

    monkeypatch.setitem(module._WRITERS, "onnx", make)
    monkeypatch.setattr(module, "_compare", lambda *_: Agreement(20, 0.0, 0.0, 2))
    path = tmp_path / "out.onnx"
    path.write_text("before")
    assert call(checkpoint, path, "--overwrite") == 2
    error = capsys.readouterr().err
    if reason == "the exporter stops":
        assert error == (
            f"error: faster_rcnn with the options of {checkpoint} cannot be exported to .onnx (no operator); "
            f"docs/export.md lists what can\n"
        )
    else:
        assert "is not written: 2 of 20 detections differ from PyTorch's" in error
    assert path.read_text() == "before"
    assert not [file for file in tmp_path.iterdir() if is_leftover(file)]


def test_a_comparison_finds_counterparts_in_any_order() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 44, 44]])
    expected = {"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "scores": torch.tensor([0.5, 0.5, 0.4])}
    found = (boxes[[1, 0, 2]] + 0.25, torch.tensor([2, 1, 1]), torch.tensor([0.5, 0.5, 0.4005]))
    agreement = module._compare_image(expected, *found)
    assert agreement == Agreement(3, 0.25, pytest.approx(0.0005, abs=1e-6), 0)
    other = (found[0], torch.tensor([2, 2, 1]), found[2])
    assert module._compare_image(expected, *other).unlike == 1
    assert module._compare_image(expected, *(values[:2] for values in found)).unlike == 2
    assert module._compare_image(expected, *(values[:0] for values in found)).unlike == 3
