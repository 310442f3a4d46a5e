"""Command-line options made from a dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from srtod._support.fields import near_names, option
from srtod._support.options import parse_options
from srtod.engine.config import TrainConfig


@dataclass(frozen=True)
class Inner:
    """Inner options."""

    anchor_scale: float = option(4.0, "a number")
    resize: Literal["nearest", "max"] | None = option(None, "a choice")


@dataclass(frozen=True)
class Outer:
    """Outer options."""

    inner: Inner = Inner()
    enabled: bool = option(True, "a switch, 100 %")
    steps: tuple[int, ...] | None = option(None, "some numbers")
    size: int | None = option(8, "a number or none", near=("side", "img_size"))
    name: str = option("a", "some text")
    scale: float | Literal["auto"] | None = option(2.0, "a number or a word", alias="zoom", near=("img_size",))
    jitter: tuple[float, ...] | None = option((1.0, 2.0), "some numbers")


def test_defaults() -> None:
    assert parse_options(Outer, []) == Outer()


def test_every_type() -> None:
    arguments = ["--anchor-scale", "4/255", "--resize", "max", "--no-enabled", "--steps", "8", "11", "--size", "none"]
    assert parse_options(Outer, [*arguments, "--name=b"]) == Outer(Inner(4 / 255, "max"), False, (8, 11), None, "b")


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("1/2", 0.5), ("none", None)])
def test_a_number_or_a_word(text: str, value: float | str | None) -> None:
    assert parse_options(Outer, ["--scale", text]).scale == value
    assert parse_options(Outer, ["--zoom", text]).scale == value


def test_lists_of_numbers() -> None:
    assert parse_options(Outer, ["--jitter", "1/2", "3", "--steps", "8"]) == Outer(jitter=(0.5, 3.0), steps=(8,))
    assert parse_options(Outer, ["--jitter", "none"]).jitter is None


def test_options_come_over_the_base_and_the_base_over_the_defaults() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--file")
    seen = []

    def base(given: dict[str, object]) -> dict[str, object]:
        seen.append(given)
        return {"name": "b", "size": 3, "anchor_scale": 1.0, "enabled": False}

    options = parse_options(
        Outer, ["--file", "f", "--size", "none", "--name", "a", "--enabled"], base=base, parents=[parser]
    )
    assert options == Outer(Inner(1.0), size=None, name="a", enabled=True)
    assert seen == [{"file": "f", "size": None, "name": "a", "enabled": True}]


def test_none_is_not_a_choice_where_it_is_a_value() -> None:
    assert parse_options(TrainConfig, ["--surrogate", "none"]).model.self_reconstruction_options.surrogate == "none"
    assert parse_options(TrainConfig, ["--norm", "none"]).model.norm is None


@pytest.mark.parametrize(("arguments", "before"), [([""], "tool"), (["--size", "3", "--name", ""], "--name")])
def test_an_empty_argument_is_an_unset_variable(
    arguments: list[str], before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(Outer, arguments, prog="tool")
    error = capsys.readouterr().err
    assert error == f"tool: error: the argument after {before} is empty; is a variable of the shell unset?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--anchor-scal 3", "unknown option --anchor-scal; did you mean --anchor-scale?"),
        ("--side 3", "unknown option --side; did you mean --size?"),
        ("--img_size=3", "unknown option --img_size; did you mean --size or --scale?"),
        ("--anchor_scale 3", "unknown option --anchor_scale; did you mean --anchor-scale?"),
        ("--quux", "unknown option --quux; --help lists them all"),
        ("stray", "unknown option stray; --help lists them all"),
        ("--anchor-scale x", "argument --anchor-scale: invalid number value: 'x'"),
        ("--anchor-scale nan", "argument --anchor-scale: invalid number value: 'nan'"),
        ("--anchor-scale 1/0", "argument --anchor-scale: invalid number value: '1/0'"),
        ("--size 2.5", "argument --size: invalid int value: '2.5'"),
        ("--resize cubic", "argument --resize: invalid choice: 'cubic'"),
        ("--name", "argument --name: expected one argument"),
        ("--steps 8 none", "argument --steps: none stands alone, without numbers"),
        ("--scale Auto", "argument --scale/--zoom: invalid number value: 'Auto'"),
    ],
)
def test_bad_options_end_with_one_sentence(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_options(Outer, arguments.split(), prog="tool")
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith(f"tool: error: {message}")
    assert error.count("\n") == 1


def test_help_shows_documentation_groups_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(Outer, ["--help"], prog="tool", description="A tool.")
    text = capsys.readouterr().out
    for part in (
        "usage: tool [options]",
        "A tool.",
        "Inner options:",
        "--anchor-scale X",
        "a number [4]",
        "--scale auto|X",
        "100 %",
        "[none]",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--batch", "--batch-size"),
        ("--imgsz", "--min-size"),
        ("--img", "--min-size"),
        ("--img-size", "--min-size"),
        ("--weights-file", "--weights"),
        ("--pretrained", "--weights"),
        ("--lr0", "--lr"),
        ("--learning_rate", "--lr"),
        ("--device", "--accelerator or --devices"),
        ("--gpus", "--devices"),
        ("--project", "--output"),
        ("--name", "--output"),
        ("--work-dir", "--output"),
        ("--num-workers", "--workers"),
        ("--max-epochs", "--epochs"),
        ("--dataset", "--data"),
        ("--patience", "--early-stop"),
        ("--amp", "--precision"),
        ("--conf-thres", "--score-threshold"),
        ("--checkpoint", "--resume"),
    ],
)
def test_options_of_other_tools(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(TrainConfig, [typed, "1"], prog="tool")
    assert capsys.readouterr().err == f"tool: error: unknown option {typed}; did you mean {meant}?\n"


def test_no_name_of_another_tool_is_an_option_here() -> None:
    assert not near_names(TrainConfig).keys() & TrainConfig().as_dict().keys()
