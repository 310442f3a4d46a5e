"""README and docs: their Python blocks run, the commands in them parse, and the files that they name exist.

A block of Python runs in a namespace of its own, on the CPU, in an empty folder that holds

- `runs/swarm/checkpoints/best.ckpt`, what the README's first command leaves: here the `checkpoint` fixture;
- `photos/a.jpg`, an image;

and with `examples/` on the import path, from where the documents say to copy. Commands are parsed, not run: `--config`
must be a preset or a YAML file, of which the reader is the author.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image

from srtod._support.options import Parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)

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


def commands() -> list[Any]:
    """The commands of all documents, in `bash` blocks and in spans of code that begin with `srtod `, as words."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        shell = [fence[3].replace("\\\n", " ") for fence in FENCE.finditer(text) if fence[2] == "bash"]
        lines = [line for block in shell for line in block.splitlines()]
        spans = re.findall(r"`(srtod [^`]+)`", FENCE.sub("", text))
        for line in [*lines, *(" ".join(span.split()) for span in spans)]:
            for command in re.split(r"&&|;", line):
                words = shlex.split(command, comments=True)
                if words:
                    found.append(pytest.param(words, id=f"{path.name}: {' '.join(words)}"))
    return found


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
    words = words[1:] if words[0].partition("=")[1] else words
    program = Path(words[0]).name if words else ""
    if program == "python" and not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file(), words[1]
    if program == "pytest":
        for word in words[1:]:
            if re.match(r"(benchmarks|tests)/", word):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", path.read_text())
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_there_is_something_to_check() -> None:
    assert len(blocks("python")) >= 10
    assert sum(srtod_call(command.values[0]) is not None for command in commands()) >= 15


@pytest.mark.parametrize("line", ["srtod train --wrong 1", "srtod train --config nobody/s", "srtod predict a"])
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ValueError)):
        test_commands_parse(shlex.split(line), monkeypatch)
