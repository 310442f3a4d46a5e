"""Command-line options made from a dataclass: its fields are the options, their types and documentation the help."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["parse_options"]

Config = TypeVar("Config")


def parse_options(config: type[Config], arguments: Sequence[str] | None = None, **about: Any) -> Config:
    """Reads a dataclass from the command line.

    Field `anchor_scale` is the option `--anchor-scale`; a bool is a pair `--name` and `--no-name`; fields that are
    dataclasses themselves become groups of options. `none` stands for None where that is allowed, a number may be a
    fraction, and `float | Literal["auto"]` takes that word too. An unknown option or a value of another type ends the
    program with one sentence and exit status 2.

    Args:
        config: the dataclass; each field has `metadata["doc"]`, and perhaps a second name in `metadata["alias"]`.
        arguments: the command line; None for that of the process.
        about: more arguments of `argparse.ArgumentParser`, such as `prog` and `description`.
    """
    parser = _Parser(usage="%(prog)s [options]", allow_abbrev=False, formatter_class=_HelpFormatter, **about)
    _add_options(parser, config)
    values = parser.parse_args(arguments)
    return _read(config, values)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(option.replace("_", "-"), known, n=1)
            self.error(f"unknown option {option}; " + (f"did you mean {near[0]}?" if near else "--help lists them all"))
        return values

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _add_options(parser: argparse._ActionsContainer, config: type) -> None:
    """Adds an option for each field, groups of nested dataclasses first."""
    types = get_type_hints(config)
    fields = dataclasses.fields(config)
    groups = [types[field.name] for field in fields if dataclasses.is_dataclass(types[field.name])]
    for group in groups:
        _add_options(parser.add_argument_group(_title(group)), group)
    if groups:
        parser = parser.add_argument_group(_title(config))
    for field in fields:
        if types[field.name] not in groups:
            default = "none" if field.default is None else field.default
            shown = f"{default:g}" if isinstance(default, float) else default
            names = [field.name, *filter(None, [field.metadata.get("alias")])]
            parser.add_argument(
                *(f"--{name.replace('_', '-')}" for name in names),
                dest=field.name,
                default=field.default,
                help=f"{field.metadata['doc']} [{shown}]".replace("%", "%%"),
                **_how_to_parse(types[field.name]),
            )


def _title(config: type) -> str:
    return (config.__doc__ or config.__name__).splitlines()[0].rstrip(".")


def _how_to_parse(kind: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a field's type."""
    allows_none = NoneType in get_args(kind)
    if allows_none:
        kind = functools.reduce(operator.or_, [part for part in get_args(kind) if part is not NoneType])
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        names = [*get_args(kind)] + ["none"] * allows_none
        choices = [*get_args(kind)] + [None] * allows_none
        return {
            "type": _or_word(str, {"none": None} if allows_none else {}),
            "choices": choices,
            "metavar": "{" + ",".join(names) + "}",
        }
    literals = [name for part in get_args(kind) if get_origin(part) is Literal for name in get_args(part)]
    if literals:  # words that are values beside a number, such as `float | Literal["auto"]`
        [kind] = [part for part in get_args(kind) if get_origin(part) is not Literal]
    if get_origin(kind) is tuple:
        return {"type": get_args(kind)[0], "nargs": "+", "metavar": "N"}
    converters: dict[Any, tuple[Callable[[str], Any], str]] = {
        int: (int, "N"),
        float: (number, "X"),
        str: (str, "TEXT"),
    }
    convert, metavar = converters[kind]
    words: dict[str, Any] = {name: name for name in literals} | ({"none": None} if allows_none else {})
    return {"type": _or_word(convert, words), "metavar": "|".join([*literals, metavar])}


def number(text: str) -> float:
    try:
        return float(Fraction(text))
    except ZeroDivisionError as error:
        raise ValueError(f"{text} divides by 0") from error


def _or_word(convert: Callable[[str], Any], words: dict[str, Any]) -> Callable[[str], Any]:
    """A converter that takes these words for the values they stand for, and converts all other text."""

    def converted(text: str) -> Any:
        return words[text] if text in words else convert(text)

    converted.__name__ = convert.__name__  # argparse names it where a value is refused
    return converted


def _read(config: type[Config], values: argparse.Namespace) -> Config:
    fields: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            fields[name] = _read(kind, values)
        else:
            value = getattr(values, name)
            fields[name] = tuple(value) if isinstance(value, list) else value
    return config(**fields)
