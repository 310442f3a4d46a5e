"""Fields of configurations: dataclasses whose fields know their meaning and range, and values read for them."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    "Group",
    "Kind",
    "build",
    "check_named",
    "check_ranges",
    "check_values",
    "flat",
    "groups",
    "near_names",
    "number",
    "option",
    "read_value",
    "redeclared",
]

Config = TypeVar("Config")
Range = Literal["positive", "natural", "share", "below_one", "inner"]

LARGEST = 2**31 - 1
"""What every number may be at most; more is a slip of the hand, and too much for some library."""

DEMANDS = {
    "positive": "be positive",
    "natural": "not be negative",
    "share": "be from 0 to 1",
    "below_one": "be from 0 to less than 1",
    "inner": "be between 0 and 1",
}


def option(
    default: Any, doc: str, *, alias: str | None = None, within: Range | None = None, near: Sequence[str] = ()
) -> Any:
    """A dataclass field whose documentation is at hand when the program runs: `--help` prints it.

    Args:
        default: its default.
        doc: what it means, with its unit.
        alias: a second name of the field on the command line.
        within: what `check_ranges` asks of a number: more than 0, not less than 0, in [0, 1], in [0, 1), or in (0, 1).
        near: names that other tools have for it, such as `img_size`; who types one is told the name here.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "alias": alias, "within": within, "near": near})


def redeclared(config: type, name: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a dataclass for one that inherits from it: the same option, of another type or with another default.

    Args:
        config: the dataclass that declares it.
        name: the field.
        default: its default there; left out, the same.
    """
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return dataclasses.field(
        default=field.default if default is dataclasses.MISSING else default, metadata=field.metadata
    )


def check_ranges(config: Any) -> None:
    """Raises a ValueError for the first field of a dataclass with a number out of its range, or over `LARGEST`."""
    for field in dataclasses.fields(config):
        _check_range(field, getattr(config, field.name))


def check_values(config: Any) -> None:
    """Raises a ValueError for the first field of a dataclass whose value is of another kind, or out of its range.

    For options that come as keywords of a function; those of a command line or a file are read by their kind.
    """
    check_named(type(config), {field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def check_named(config: type, values: Mapping[str, Any]) -> None:
    """As `check_values`, for values of some of the fields; names that the dataclass does not have are ignored."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name not in values:
            continue
        kind, value = Kind.of(hints[field.name]), values[field.name]
        try:
            if isinstance(value, str) and kind.base is not str and value not in kind.words:
                raise ValueError(f"must be {kind}, got {value!r}")
            read_value(kind, value)
        except ValueError as error:
            raise ValueError(f"{field.name} {error}") from None
        _check_range(field, value)


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    within = field.metadata.get("within")
    for part in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(part, int | float):
            continue
        if within is not None and not _is_within(part, within):
            raise ValueError(f"{field.name} must {DEMANDS[within]}, got {value}")
        if abs(part) > LARGEST:
            raise ValueError(f"{field.name} must be at most {LARGEST}, got {reprlib.repr(part)}")


def _is_within(number: float, within: Range) -> bool:
    """Whether a number is in a range; NaN is in none."""
    if within == "positive":
        return number > 0
    if within == "inner":
        return 0 < number < 1
    if within == "below_one":
        return 0 <= number < 1
    return number >= 0 if within == "natural" else 0 <= number <= 1


@dataclass(frozen=True)
class Kind:
    """The type of a field, taken apart.

    Attributes:
        base: bool, int, float or str; of a tuple, its elements' type; None where words alone are allowed.
        words: the values of a `Literal`.
        many: whether it is a tuple.
        optional: whether None is allowed, which is written `none`.
    """

    base: type | None
    words: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """Takes a type hint apart, such as `float | Literal["auto"] | None`."""
        parts = get_args(hint) if NoneType in get_args(hint) or _has_literal(hint) else (hint,)
        words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
        bases = [part for part in parts if part is not NoneType and get_origin(part) is not Literal]
        many = bool(bases) and get_origin(bases[0]) is tuple
        base = (get_args(bases[0])[0] if many else bases[0]) if bases else None
        return cls(base, words, many, NoneType in parts)

    @property
    def constants(self) -> dict[str, Any]:
        """The words that a value may be written as, and what they stand for."""
        return ({"none": None} if self.optional else {}) | {word: word for word in self.words}

    def __str__(self) -> str:
        """What a value should be, in words."""
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        plural = {int: "whole numbers", float: "numbers", str: "names"}
        said = [f"a list of {plural[self.base]}" if self.many else names[self.base]] if self.base else []
        return " or ".join(
            [*said, *([f"one of {', '.join(self.words)}"] if self.words else []), *["none"] * self.optional]
        )


def _has_literal(hint: Any) -> bool:
    return get_origin(hint) is not Literal and any(get_origin(part) is Literal for part in get_args(hint))


class Group(NamedTuple):
    """A dataclass and those of its fields that are no dataclasses themselves, with their types."""

    config: type
    fields: dict[str, tuple[dataclasses.Field[Any], Kind]]


def groups(config: type) -> Iterator[Group]:
    """The dataclasses inside a dataclass, at any depth, and last the dataclass itself.

    Names of fields are unique in all of them, so that one flat mapping can hold their values.
    """
    hints = get_type_hints(config)
    own = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from groups(hint)
        else:
            own[field.name] = (field, Kind.of(hint))
    yield Group(config, own)


def near_names(config: type) -> dict[str, list[str]]:
    """The names that other tools have for the fields of a dataclass; the fields that each may stand for."""
    near: dict[str, list[str]] = {}
    for group in groups(config):
        for field, _ in group.fields.values():
            for name in field.metadata["near"]:
                near.setdefault(name, []).append(field.name)
    return near


def build(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A dataclass from a flat mapping of field names to values; fields that it does not name keep their defaults."""
    given = {}
    for name, hint in get_type_hints(config).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            given[name] = build(hint, values)
        elif name in values:
            given[name] = values[name]
    return config(**given)


def flat(config: Any) -> dict[str, Any]:
    """The values of a dataclass and those inside it, by the name of their field; `build` is the way back."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value)
        else:
            values[field.name] = value
    return values


def read_value(kind: Kind, value: Any) -> Any:
    """A plain value, as YAML has it, as the value of a field.

    Words may stand for what they mean, a fraction written as text for a number, and one number for a list of one.

    Raises:
        ValueError: if it is not of that kind.
    """
    if value is None and kind.optional:
        return None
    if isinstance(value, str) and value in kind.constants:
        return kind.constants[value]
    if kind.many:
        return tuple(_read_scalar(kind, part) for part in (value if isinstance(value, list | tuple) else [value]))
    return _read_scalar(kind, value)


def _read_scalar(kind: Kind, value: Any) -> Any:
    if kind.base is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return number(value) if isinstance(value, str) else _finite(float(value))
        except (OverflowError, ValueError):
            pass
    elif type(value) is kind.base:
        return value
    raise ValueError(f"must be {kind}, got {value!r}")


def number(text: str) -> float:
    """A finite number from its text, which may be a fraction such as 4/255."""
    try:
        # Not `Fraction` alone, which writes 1e999999999 out.
        return _finite(float(Fraction(text)) if "/" in text else float(text))
    except ZeroDivisionError as error:
        raise ValueError(f"{text} divides by 0") from error
    except OverflowError:
        raise ValueError(f"{text} is too large") from None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value
