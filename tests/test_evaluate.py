"""`python -m srtod.evaluate`, and what all command lines share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from srtod import convert, evaluate, inspect
from srtod._support.cli import run
from srtod._support.files import replacing

TRUTH = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 12, 12], "area": 144, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "drone"}],
}
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 12, 12], "score": 0.5}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of a command line."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    try:
        run(evaluate.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_module_prints_the_table() -> None:
    command = [sys.executable, "-m", "srtod.evaluate", "--help"]
    assert "DETECTIONS.json" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_table_and_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "truth.json", "results.json", "--json", "metrics.json") == 0
    printed = capsys.readouterr()
    assert "APvt" in printed.out
    assert printed.err == ""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["APt"] == pytest.approx(1.0)
    assert metrics["APm"] == -1
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "results.json", "truth.json"]


def test_classes_and_curves_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "truth.json", "results.json", "--per-class", "--plot", "pr.PNG", "--json", "m.json") == 0
    assert "| drone |       1 | 100.0 |" in capsys.readouterr().out
    assert Image.open(folder / "pr.PNG").format == "PNG"
    assert call(monkeypatch, "truth.json", "results.json", "--plot", "pr.svg") == 0
    assert "<svg" in (folder / "pr.svg").read_text()
    assert "| class" not in capsys.readouterr().out
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("plot", "message"), [("pr.bmp", "pr.bmp must end in .pdf, .png, .svg"), ("nowhere/pr.png", "does not exist")]
)
def test_a_figure_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plot: str, message: str
) -> None:
    (folder / "metrics.json").write_text("before")
    arguments = ("--overwrite", "--json", "metrics.json", "--plot", plot)
    assert call(monkeypatch, "truth.json", "results.json", *arguments) == 2
    assert message in capsys.readouterr().err
    assert (folder / "metrics.json").read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--json old.json", "old.json exists; pass another --json, or --overwrite to replace it"),
        ("--plot old.png", "old.png exists; pass another --plot, or --overwrite to replace it"),
        ("--overwrite --json ./truth.json", "--json ./truth.json is the file of the ground truth; pass another"),
        ("--overwrite --json link.json", "--json link.json is the file of the detections; pass another"),
        ("--json a.png --plot a.png", "--plot a.png is the file of --json; pass another"),
        ("--overwrit --json old.json", "unknown option --overwrit; did you mean --overwrite?"),
    ],
)
def test_no_file_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    for name in ("old.json", "old.png"):
        (folder / name).write_text("before")
    (folder / "link.json").symlink_to("results.json")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert call(monkeypatch, "truth.json", "results.json", *arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_files_are_replaced_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert (
            call(monkeypatch, "truth.json", "results.json", "--overwrite", "--json", "a.json", "--plot", "a.svg") == 0
        )
    assert json.loads((folder / "a.json").read_text())["APt"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truth.json", None, "truth.json does not exist"),
        ("truth.json", "", "truth.json is empty"),
        ("truth.json", '{"images": [', "truth.json is not valid JSON"),
        ("truth.json", "[]", "truth.json must be a JSON object, got list"),
        ("results.json", None, "results.json does not exist"),
        ("results.json", '{"a": 1}', "results.json must be a list of COCO results, got dict"),
        ("results.json", json.dumps([{**RESULTS[0], "image_id": 2}]), "results.json: detection 0: 'image_id' 2"),
        ("results.json", json.dumps([{**RESULTS[0], "score": float("nan")}]), "'score' must be a finite number"),
        ("results.json", b"\xff\xfe\x00", "results.json is not a text file"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_the_output_alone(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes | None,
    message: str,
) -> None:
    (folder / "metrics.json").write_text("before")
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(content)
    files = sorted(folder.iterdir())
    assert call(monkeypatch, "truth.json", "results.json", "--json", "metrics.json", "--overwrite") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert (folder / "metrics.json").read_text() == "before"
    assert sorted(folder.iterdir()) == files


@pytest.mark.parametrize(
    ("output", "message"), [("nowhere/metrics.json", "the folder nowhere does not exist"), (".", "is a folder")]
)
def test_output_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, message: str
) -> None:
    assert call(monkeypatch, "truth.json", "results.json", "--json", output) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder.chmod(0o555)
    assert call(monkeypatch, "truth.json", "results.json", "--json", "metrics.json") == 2
    folder.chmod(0o755)
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "arguments"), [(convert, "yolo a b --overwrit"), (inspect, "a --deco")], ids=["convert", "inspect"]
)
def test_options_are_not_abbreviated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: ModuleType, arguments: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments.split()])
    with pytest.raises(SystemExit):
        program.main()
    assert re.search(r"error: unknown option (--\w+); did you mean \1\w+\?\n$", capsys.readouterr().err)


def test_ctrl_c_ends_with_130_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with replacing(tmp_path / "out.txt") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_operating_system_errors_are_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda: tmp_path.read_text() and None)
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_programming_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0 and None)
