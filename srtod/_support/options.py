"""Parsers of command lines, and options made from a dataclass: its fields are the options, their text the help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from srtod._support.fields import Group, Kind, build, groups, near_names, number
from srtod._support.suggestions import did_you_mean

__all__ = ["Parser", "parse_options"]

Config = TypeVar("Config")


def parse_options(
    config: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    base: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda given: {},
    **about: Any,
) -> Config:
    """Reads a dataclass from the command line.

    Field `anchor_scale` is the option `--anchor-scale`; a bool is a pair `--name` and `--no-name`; fields that are
    dataclasses themselves become groups of options. `none` stands for None where that is allowed, a number may be a
    fraction, and `float | Literal["auto"]` takes that word too. An unknown option or a value of another type ends the
    program with one sentence and exit status 2.

    Args:
        config: the dataclass; each field is an `srtod._support.fields.option`.
        arguments: the command line; None for that of the process.
        base: called with the options that were given; returns values that stand in place of the defaults of fields
            that were not.
        about: more arguments of `argparse.ArgumentParser`, such as `prog`, `description` and `parents`, parsers of
            options that only `base` reads.
    """
    parts = list(groups(config))
    near = {_flag(name): [*map(_flag, meant)] for name, meant in near_names(config).items()}
    parser = Parser(usage="%(prog)s [options]", near=near, **about)
    for part in parts:
        _add_options(parser if len(parts) == 1 else parser.add_argument_group(_title(part.config)), part)
    given = vars(parser.parse_args(arguments))
    words = {name: kind.constants for part in parts for name, (_, kind) in part.fields.items()}
    for name, value in given.items():
        if isinstance(value, list):
            alone = [word for word, meaning in words.get(name, {}).items() if meaning in value]
            if alone and len(value) > 1:
                parser.error(f"argument {_flag(name)}: {alone[0]} stands alone, without numbers")
            given[name] = value[0] if alone else tuple(value)
    return build(config, {**base(given), **given})


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)


class Parser(argparse.ArgumentParser):
    """A parser that refuses bad options with one sentence and exit status 2, and names the option that was meant.

    Args:
        near: options of other tools, such as `--imgsz`; what they are here.
        about: the arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *, near: Mapping[str, Sequence[str]] | None = None, **about: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **about)
        self._near = near or {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else args
        if "" in given:
            before = [self.prog, *given[: given.index("")]][-1]
            self.error(f"the argument after {before} is empty; is a variable of the shell unset?")
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            hint = did_you_mean(option.replace("_", "-"), known, self._near) or "--help lists them all"
            self.error(f"unknown option {option}; {hint}")
        return values

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def _add_options(parser: argparse._ActionsContainer, group: Group) -> None:
    """Adds an option for each field of a dataclass."""
    for field, kind in group.fields.values():
        default = "none" if field.default is None else field.default
        shown = f"{default:g}" if isinstance(default, float) else default
        names = [field.name, *filter(None, [field.metadata.get("alias")])]
        parser.add_argument(
            *map(_flag, names),
            dest=field.name,
            default=argparse.SUPPRESS,  # what is not given is absent, and `base` or the dataclass has it
            help=f"{field.metadata['doc']} [{shown}]".replace("%", "%%"),
            **_how_to_parse(kind),
        )


def _title(config: type) -> str:
    return (config.__doc__ or config.__name__).splitlines()[0].rstrip(".")


def _how_to_parse(kind: Kind) -> dict[str, Any]:
    """The arguments of `add_argument` for a field's type."""
    if kind.base is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind.base is None:
        names = [*kind.words] + ["none"] * kind.optional
        return {
            "type": _or_word(str, kind.constants),
            "choices": [kind.constants[name] for name in names],
            "metavar": "{" + ",".join(names) + "}",
        }
    converters: dict[type, tuple[Callable[[str], Any], str]] = {
        int: (int, "N"),
        float: (number, "X"),
        str: (str, "TEXT"),
    }
    convert, metavar = converters[kind.base]
    parsed = {"type": _or_word(convert, kind.constants), "metavar": "|".join([*kind.words, metavar])}
    return parsed | ({"nargs": "+"} if kind.many else {})


def _or_word(convert: Callable[[str], Any], words: dict[str, Any]) -> Callable[[str], Any]:
    """A converter that takes these words for the values they stand for, and converts all other text."""

    def converted(text: str) -> Any:
        return words[text] if text in words else convert(text)

    converted.__name__ = convert.__name__  # argparse names it where a value is refused
    return converted
