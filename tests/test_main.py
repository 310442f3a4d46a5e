"""The command `srtod`: what it lists and runs, what it loads for that, and what it says without its dependencies."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srtod
from srtod.__main__ import commands, main
from srtod._support.cli import run

PACKAGE = Path(srtod.__file__).parent


def call(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments, in any folder, on the package that is tested."""
    paths = [environment.pop("PYTHONPATH", ""), str(PACKAGE.parent)]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "80"}
    command = (sys.executable, *command)
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_help_lists_every_command_with_its_own_line() -> None:
    done = call("-m", "srtod", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(
        line.split(maxsplit=1) for line in done.stdout.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    )
    modules = [path for path in PACKAGE.glob("[a-z]*.py") if path.name[0] != "_"]
    assert sorted(listed) == sorted(path.stem for path in modules)
    assert {"train", "evaluate", "predict", "inspect", "convert", "info", "benchmark_data"} <= listed.keys()
    for path in modules:
        assert listed[path.stem] == (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        assert 10 < len(listed[path.stem]) < 105


@pytest.mark.parametrize("sizes", [(2**46,), (2**40, 2**40)])
def test_what_memory_has_no_room_for_is_one_sentence(
    sizes: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(lambda: torch.zeros(sizes))
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: not enough memory (")


def test_without_a_command_the_help_is_an_error() -> None:
    done = call("-m", "srtod")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: srtod COMMAND")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"], ["evaluate", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom srtod.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'matplotlib', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = call("-c", code, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "srtod" in done.stdout


def test_the_version() -> None:
    assert call("-m", "srtod", "--version").stdout == f"srtod {srtod.__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("benchmark-data", "unknown command benchmark-data; did you mean benchmark_data?"),
        ("--batch", "unknown command --batch; srtod --help lists them all"),
        ("__main__", "unknown command __main__; srtod --help lists them all"),
        ("models", "unknown command models; srtod --help lists them all"),
    ],
)
def test_an_unknown_command_ends_with_one_sentence(command: str, message: str) -> None:
    done = call("-m", "srtod", command)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("command", commands())
def test_help_and_errors_name_the_command_as_it_was_called(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"srtod.{command}")
    for program, arguments, run_it in (
        (f"srtod {command}", [command], main),
        (f"python -m srtod.{command}", [], lambda: run(module.main)),
    ):
        for option, status in (("--help", 0), ("--quux", 2)):
            monkeypatch.setattr(sys, "argv", ["program", *arguments, option])
            with pytest.raises(SystemExit) as end:
                run_it()
            printed = capsys.readouterr()
            assert (end.value.code or 0) == status
            assert printed.out.startswith(f"usage: {program} [") == (status == 0)
            assert printed.err.startswith(f"{program}: error: ") == (status == 2)
            assert printed.err.count("\n") == status // 2


@pytest.mark.parametrize("arguments", [["srtod.info"], ["srtod", "info"], ["srtod", "--help"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_quietly(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", *arguments], check=False, stdout=write, stderr=subprocess.PIPE, env=environment
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_another_broken_pipe_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(SystemExit, match="2"):
        run(main)
    assert capfd.readouterr().err == "error: Broken pipe\n"


def test_output_to_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "srtod", "--version"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        )
    assert (done.returncode, done.stderr) == (2, b"error: No space left on device\n")


def test_both_ways_to_run_a_command_do_the_same(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [car]\n")
    for how in (["srtod", "convert"], ["srtod.convert"]):
        done = call("-m", *how, "yolo", ".", "out.json", cwd=tmp_path)
        message = "error: data.yaml has none of the splits train, val, test; add one, such as `train: images/train`\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


# --- Without dependencies --------------------------------------------------------------------------------------------


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH: Python finds no module there is a name of in the environment's WITHOUT."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in os.environ['WITHOUT'].split():\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return tmp_path


ARGUMENTS = {
    "convert": ["yolo", ".", "a.json"],
    "evaluate": ["a.json", "b.json"],
    "export": ["a.ckpt", "a.onnx"],
    "inspect": ["."],
    "predict": ["a.ckpt", ".", "out"],
    "report": ["."],
    "study": ["a.yaml"],
}


@pytest.mark.parametrize("command", [name for name in commands() if name != "info"])
@pytest.mark.parametrize("how", ["srtod", "srtod."])
def test_a_missing_dependency_is_named_with_its_cure(without: Path, command: str, how: str) -> None:
    way = [how, command] if how == "srtod" else [f"{how}{command}"]
    done = call("-m", *way, *ARGUMENTS.get(command, []), cwd=without, PYTHONPATH=str(without), WITHOUT="torch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: the module torch is not installed for {sys.executable}; activate the environment that has it "
        "(. .venv/bin/activate), or install srtod with all that it needs (pip install .)\n"
    )
    assert sorted(path.name for path in without.iterdir() if path.name != "__pycache__") == ["sitecustomize.py"]


def test_the_commands_are_listed_without_any_dependency(without: Path) -> None:
    missing = "torch torchvision lightning matplotlib numpy PIL yaml tqdm pycocotools"
    done = call("-m", "srtod", "--help", PYTHONPATH=str(without), WITHOUT=missing)
    assert (done.returncode, done.stdout) == (0, call("-m", "srtod", "--help").stdout)


def test_info_reports_what_is_missing(without: Path) -> None:
    done = call("-m", "srtod", "info", PYTHONPATH=str(without), WITHOUT="torch")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not usable: ModuleNotFoundError: No module named 'torch'" in done.stdout


@pytest.mark.parametrize("module", ["srtod.evaluation", "torch.torch_version", "json"])
def test_a_missing_part_of_a_package_is_a_bug_and_not_hidden(without: Path, module: str) -> None:
    done = call("-m", "srtod", "evaluate", "a", "b", cwd=without, PYTHONPATH=str(without), WITHOUT=module)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert f"No module named {module!r}" in done.stderr
