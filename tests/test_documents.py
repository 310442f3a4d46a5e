"""README and docs: their Python blocks and commands run, and the files that they name exist.

A block of Python runs in a namespace of its own, on the CPU, in an empty folder that holds

- `runs/swarm/checkpoints/best.ckpt`, what the README's first command leaves: here the `checkpoint` fixture;
- `photos/a.jpg`, an image;

and with `examples/` on the import path, from where the documents say to copy.

Every command is parsed. The slow tests also run those of each document, one after the other in one folder, `prepare`d
with what a reader has: images, checkpoints, and data sets of a few generated images under the names that the documents
use. `SHORT` makes trainings and tables short. `NOT_RUN` says which commands are left out, and why.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image

import srtod.ops
from srtod._support.options import Parser
from srtod.data import LAYOUTS
from srtod.models.checkpoint import read_checkpoint, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:srtod|torchrun|python|pytest|pip install) [^`]+)`")

SHORT: Mapping[str, list[str]] = {
    "srtod.train": [
        *("--epochs", "1", "--eval-every", "1", "--limit-batches", "1", "--panels", "0", "--channels", "16"),
        *("--swarm-images", "4", "--swarm-test-images", "2", "--swarm-size", "128", "--min-size", "none"),
        *("--accelerator", "cpu", "--threads", "1", "--workers", "0"),
    ],
    "srtod.benchmark_data": [
        *("--seconds", "0.1", "--try-workers", "0", "--channels", "16", "--swarm-images", "4", "--swarm-size", "128"),
        *("--accelerator", "cpu", "--threads", "1"),
    ],
    "scripts/phase_table.py": ["--count", "2"],
}
"""What is appended to a command, by its module or script; the last of two equal options counts."""

NOT_RUN: Mapping[str, str] = {
    r"(\.venv/bin/)?pip install|python3 -m venv": "installs; .ci/run and tests/packaging do that",
    r"\. \.venv/bin/activate": "changes the shell; .ci/run puts the environment on the PATH",
    r"\.venv/bin/python -m pytest -n 2": "runs all tests; the first stage of .ci/run is this command",
    r"pytest -m slow (-s )?tests/": "is a slow test; .ci/run runs them",
    r"pytest benchmarks/": "takes up to an hour; .ci/run runs the benchmarks one round",
    r"python benchmarks/report\.py": "needs a benchmark's results; tests/benchmarks/test_benchmarks.py makes some",
    r"python scripts/(model_table|linear_cost)\.py": "takes minutes; tests/benchmarks/test_benchmarks.py makes some",
    r"srtod export \S+ \S+\.pt2": "takes minutes; tests/prediction/test_export.py compiles two detectors",
    r"srtod .*hf://": "needs a network; tests/_support/test_hub.py has a server",
    r"scripts/gpu_check\.sh": "needs a GPU; tests/scripts/test_gpu_check.py rehearses it",
    r"torchrun": "needs several GPUs; tests/engine/test_distributed.py trains in several processes",
    r"python examples/ultralytics_yolo\.py": "needs ultralytics, whose licence is AGPL-3.0",
    r"python examples/": "takes minutes; tests/examples/test_examples.py trains them",
    r"srtod predict .* rtsp:": "needs a camera; tests/prediction/test_video.py has a stream",
    r"srtod study": "takes hours; tests/studies/test_runs.py runs a short study",
}
"""Which commands do not run here, and why; the first pattern that a command begins with counts."""

if not DOCUMENTS:
    pytest.skip("needs the source tree", allow_module_level=True)


def blocks(language: str) -> list[Any]:
    """The fenced blocks of a language in all documents: document, line, code."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for fence in FENCE.finditer(text):
            if fence[2] == language:
                line = text[: fence.start(3)].count("\n")
                found.append(pytest.param(path, line, textwrap.dedent(fence[3]), id=f"{path.name}:{line}"))
    return found


def commands_of(path: Path) -> list[list[str]]:
    """The commands of a document as words, in order: `bash` blocks, and spans of code that begin as one."""
    text = path.read_text()
    found = [(fence.start(), line) for fence in FENCE.finditer(text) if fence[2] == "bash" for line in lines_of(fence)]
    blank = FENCE.sub(lambda fence: " " * len(fence[0]), text)
    found += [(span.start(), " ".join(span[1].split())) for span in SPAN.finditer(blank)]
    variables: dict[str, str] = {}
    commands = []
    for _, line in sorted(found, key=lambda place: place[0]):
        for words in split(line):
            words = [re.sub(r"\$(\w+)", lambda name: variables[name[1]], word) for word in words]
            if len(words) == 1 and re.fullmatch(r"\w+=.*", words[0]):
                variables.update([words[0].split("=", 1)])
            elif words not in commands:
                commands.append(words)
    return commands


def lines_of(fence: re.Match[str]) -> list[str]:
    return fence[3].replace("\\\n", " ").splitlines()


def split(line: str) -> list[list[str]]:
    """The commands of a line, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def commands() -> list[Any]:
    """The commands of all documents."""
    return [
        pytest.param(words, id=f"{path.name}: {' '.join(words)}") for path in DOCUMENTS for words in commands_of(path)
    ]


def why_not_run(words: list[str]) -> str | None:
    """The pattern of `NOT_RUN` that a command begins with."""
    return next((pattern for pattern in NOT_RUN if re.match(pattern, " ".join(words))), None)


def srtod_call(words: list[str]) -> tuple[str, list[str]] | None:
    """The module and the arguments of a command of srtod; None for other commands."""
    if words[0].endswith("torchrun"):
        words = ["python", *words[words.index("-m") :]]
    if Path(words[0]).name == "srtod" and len(words) > 1:
        return f"srtod.{words[1]}", words[2:]
    if Path(words[0]).name == "python" and words[1:2] == ["-m"] and words[2].startswith("srtod."):
        return words[2], words[3:]
    return None


@pytest.mark.parametrize(("path", "line", "code"), blocks("python"))
def test_python_blocks_run(
    path: Path, line: int, code: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    run = tmp_path / "runs/swarm/checkpoints"
    run.mkdir(parents=True)
    shutil.copy(checkpoint, run / "best.ckpt")
    (tmp_path / "photos").mkdir()
    Image.effect_noise((128, 96), 60).save(tmp_path / "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    # Blank lines before the block give an error the line of the document.
    exec(compile("\n" * line + code, str(path), "exec"), {"__name__": "document"})


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call = srtod_call(words)
    if call is None:
        check_files(words)
        return
    name, arguments = call
    parse, configurations = Parser.parse_args, []

    def parse_only(self: Parser, args: Any = None, namespace: Any = None) -> NoReturn:
        configurations.append(getattr(parse(self, args, namespace), "config", None))
        raise SystemExit(0)

    monkeypatch.setattr(Parser, "parse_args", parse_only)
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        module.main(arguments)
    assert stop.value.code in (None, 0), stop.value.code
    for configuration in configurations:
        check_configuration(configuration)


def check_configuration(config: str | None) -> None:
    """A preset exists; a YAML file is the reader's own."""
    from srtod.engine import read_config

    if config is not None and not config.endswith((".yaml", ".yml")):
        read_config(config)


def check_files(words: list[str]) -> None:
    """The script that a command runs, and the tests or benchmarks that pytest is given, are in the repository."""
    program = Path(words[0]).name if words else ""
    if program == "python" and not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file(), words[1]
    if program == "pytest":
        for word in words[1:]:
            if re.match(r"(benchmarks|tests)/", word):
                assert (ROOT / word).exists(), word


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if not all(map(why_not_run, commands_of(path)))], ids=lambda path: path.name
)
@pytest.mark.filterwarnings("ignore")
def test_commands_run(path: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, checkpoint)
    monkeypatch.chdir(tmp_path)
    for words in commands_of(path):
        if not why_not_run(words):
            run(words, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", NOT_RUN)
def test_commands_that_do_not_run(pattern: str) -> None:
    left_out = [" ".join(words) for path in DOCUMENTS for words in commands_of(path) if why_not_run(words) == pattern]
    pytest.skip(f"{NOT_RUN[pattern]}: {len(left_out)} commands, such as {left_out[0]}")


def test_every_reason_has_a_command_and_its_files() -> None:
    used = {why_not_run(words) for path in DOCUMENTS for words in commands_of(path)}
    assert used >= set(NOT_RUN)
    for reason in NOT_RUN.values():
        assert all((ROOT / file).exists() for file in re.findall(r"[.\w]+/[\w/.]*\w", reason)), reason


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command of srtod or a script, made short; fails if its status is not 0."""
    torch.manual_seed(0)
    call = srtod_call(words)
    try:
        if call is None:
            assert words[0] == "python", "neither run nor in NOT_RUN"
            monkeypatch.setattr(sys, "argv", [*words[1:], *SHORT.get(words[1], [])])
            runpy.run_path(words[1], run_name="__main__")
        else:
            name, arguments = call
            arguments = [*arguments, *SHORT.get(name, [])]
            if name == "srtod.train" and "--config" in arguments and "--weights" not in arguments:
                arguments += ["--weights", "none"]  # a preset's would be downloaded
            importlib.import_module(name).main(arguments)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{' '.join(words)}: {end.code}")
    except Exception as error:
        raise AssertionError(" ".join(words)) from error


def prepare(folder: Path, checkpoint: Path) -> None:
    """What the commands of the documents find in the reader's folder."""
    from torchvision.models import mobilenet_v2

    for name in ("benchmarks", "examples", "scripts", "studies"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("DATA", "sirst_v2", "drones_rgb", "aerial_cars_kit"):
        write_coco(folder / name, train="train.json", test="test.json")
    write_coco(folder / "AI-TOD", trainval="annotations/aitod_trainval_v1.json", test="annotations/aitod_test_v1.json")
    for split_ in ("train", "val"):
        write_visdrone(folder / f"VisDrone2019/VisDrone2019-DET-{split_}")
    write_yolo(folder / "YOLO")
    for name in (
        "best.ckpt",
        "CHECKPOINT",
        *(f"runs/{run}/checkpoints/best.ckpt" for run in ("sirst_v2", "drones_rgb")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(trained_on_images_of(128, checkpoint), folder / name)
    torch.save(mobilenet_v2(weights=None).state_dict(), folder / "mobilenet_v2-b0353104.pth")
    for name in ("photos/a.jpg", "photos/b.jpg", "a.jpg", "flights/first/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((128, 96), 60).save(folder / name)
    (folder / "list.txt").write_text("photos/b.jpg\n")
    write_video(folder / "clip.mp4")
    shutil.copy(folder / "DATA/test.json", folder / "ground_truth.json")
    content = json.loads((folder / "DATA/test.json").read_text())
    found = [{**box, "score": 0.5} for box in content["annotations"]]
    (folder / "detections.json").write_text(json.dumps(found))
    for path in DOCUMENTS:
        for fence in FENCE.finditer(path.read_text()):
            if fence[2] == "yaml":  # its first line is `# NAME.yaml`
                text = fence[3].replace("/data/harbour", "DATA")
                (folder / text.split()[1]).write_text(text)


def trained_on_images_of(size: int, checkpoint: Path) -> dict[str, Any]:
    """The content of the checkpoint as a training leaves it, which knows the size of its images."""
    content = read_checkpoint(checkpoint)
    content["srtod"]["image_size"] = (size, size)
    return content


def swarm(seed: int) -> Any:
    from srtod.data import SwarmDataset

    return SwarmDataset(4, (128, 128), seed)


def write_images(dataset: Any, folder: Path, suffix: str = ".png") -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    folder.mkdir(parents=True, exist_ok=True)
    for image, target in (dataset[index] for index in range(len(dataset))):
        to_pil_image(image).save((folder / target["file_name"]).with_suffix(suffix))


def write_coco(folder: Path, **files: str) -> None:
    """A set in COCO's format, with the categories of the `checkpoint` fixture: the file of each split by its name."""
    for seed, (_, file) in enumerate(files.items()):
        dataset = swarm(seed)
        write_images(dataset, folder / "images")
        content = {**dataset.ground_truth, "categories": [{"id": 3, "name": "drone"}, {"id": 7, "name": "bird"}]}
        boxes = content["annotations"]
        content["annotations"] = [{**box, "category_id": (3, 7)[number % 2]} for number, box in enumerate(boxes)]
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))


def write_visdrone(folder: Path) -> None:
    """A split of VisDrone: cars."""
    dataset = swarm(0)
    write_images(dataset, folder / "images", ".jpg")
    (folder / "annotations").mkdir()
    for image in dataset.ground_truth["images"]:
        boxes = [box["bbox"] for box in dataset.ground_truth["annotations"] if box["image_id"] == image["id"]]
        lines = [f"{int(x)},{int(y)},{int(w) + 1},{int(h) + 1},1,4,0,0\n" for x, y, w, h in boxes]
        (folder / "annotations" / image["file_name"]).with_suffix(".txt").write_text("".join(lines))


def write_yolo(folder: Path) -> None:
    for seed, name in enumerate(("train", "val")):
        dataset = swarm(seed)
        write_images(dataset, folder / "images" / name)
        (folder / "labels" / name).mkdir(parents=True)
        for image in dataset.ground_truth["images"]:
            label = (folder / "labels" / name / image["file_name"]).with_suffix(".txt")
            label.write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [drone]\n")


def write_video(path: Path) -> None:
    av = pytest.importorskip("av", reason="needs srtod[video]")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.effect_noise((96, 64), 60).convert("RGB"))))
        container.mux(stream.encode())


def test_the_reference_has_every_op() -> None:
    names = re.findall(r"<!-- ::: srtod\.ops\S*\.(\w+)", (ROOT / "docs/ops.md").read_text())
    assert {*names, "FiltrationOptions", "reference"} == set(srtod.ops.__all__)


def test_the_page_of_data_has_every_layout() -> None:
    text = (ROOT / "docs/data.md").read_text()
    names = [known.name for layout in LAYOUTS for known in (layout, *layout.releases)]
    assert [name for name in names if not re.search(rf"^\| ([^|]*, )?{re.escape(name)}[ ,]", text, re.MULTILINE)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", path.read_text())
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_there_is_something_to_check() -> None:
    assert len(blocks("python")) >= 10
    assert sum(srtod_call(command.values[0]) is not None for command in commands()) >= 15


def test_a_command_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"srtod info nothing\.ckpt"):
        run(["srtod", "info", "nothing.ckpt"], monkeypatch)


@pytest.mark.parametrize("line", ["srtod train --wrong 1", "srtod train --config nobody/s", "srtod predict a"])
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ValueError)):
        test_commands_parse(shlex.split(line), monkeypatch)
