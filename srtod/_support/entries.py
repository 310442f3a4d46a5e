"""YAML files as entries with their lines, so that an error can say where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .reading import require_regular_file

__all__ = ["Entry", "Section", "read_entries"]


ALIASED = 10_000
"""How many values a file may repeat by aliases: a few nested ones could stand for billions."""

TIMESTAMP = "tag:yaml.org,2002:timestamp"


class Entry(NamedTuple):
    """One `name: value` of a YAML file.

    Attributes:
        name: its name.
        value: its value: a plain one, a list, or a `Section`.
        line: its line, from 1 on.
    """

    name: Any
    value: Any
    line: int


class Section(list[Entry]):
    """The entries of one mapping, in their order; a name may be there twice."""

    def __repr__(self) -> str:
        return repr({entry.name: entry.value for entry in self})

    def as_dict(self, path: Path) -> dict[Any, Any]:
        """The values by name, those of sections inside too.

        Raises:
            ValueError: if a name is there twice; calls the file `path`.
        """
        values: dict[Any, Any] = {}
        for name, value, line in self:
            if name in values:
                raise ValueError(f"{path}, line {line}: {name} is given twice; keep one")
            values[name] = value.as_dict(path) if isinstance(value, Section) else value
        return values


class _Loader(yaml.SafeLoader):
    """Takes dates for text, since no option is one, and `2024-13-01` would be an error."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_entries(path: Path) -> Section:
    """Reads a YAML file that holds a mapping; an empty file holds none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no regular file, no text, no valid YAML, no mapping, nested too deeply, or repeats too much
            by aliases.
    """
    require_regular_file(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path} must have one `name: value` a line")
        _check_aliases(node, path)
        return Section() if node is None else _section(loader, node, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}, line {mark.line + 1}"
        raise ValueError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason})") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; write it with fewer levels") from None


def _check_aliases(root: yaml.Node | None, path: Path) -> None:
    """Refuses a file whose aliases would make much of little, before they do."""
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # of one that holds itself
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in parts for part in pair]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if root is not None and size(root) - len(sizes) > ALIASED:
        raise ValueError(f"{path} repeats more than {ALIASED} values by its aliases (*name); write them out")


def _section(loader: yaml.SafeLoader, mapping: yaml.MappingNode, path: Path) -> Section:
    entries = Section()
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{path}, line {line}: a name must be text, not a list or a mapping")
        content = _section(loader, value, path) if isinstance(value, yaml.MappingNode) else _value(loader, value, path)
        entries.append(Entry(_value(loader, key, path), content, line))
    return entries


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # PyYAML's, of `!!bool junk`
        where = f"{path}, line {node.start_mark.line + 1}"
        what = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a value of this list"
        raise ValueError(f"{where}: {what} is not what its tag says ({node.tag.rpartition(':')[2]})") from None
