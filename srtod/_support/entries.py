"""YAML files as entries with their lines, so that an error can say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Entry", "Section", "read_entries"]


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


def read_entries(path: Path) -> Section:
    """Reads a YAML file that holds a mapping; an empty file holds none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no text, no valid YAML, or no mapping.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path} must have one `option: value` a line")
        return Section() if node is None else _section(loader, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}, line {mark.line + 1}"
        raise ValueError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason})") from None


def _section(loader: yaml.SafeLoader, mapping: yaml.MappingNode) -> Section:
    entries = Section()
    for key, value in mapping.value:
        content = (
            _section(loader, value)
            if isinstance(value, yaml.MappingNode)
            else loader.construct_object(value, deep=True)
        )
        entries.append(Entry(loader.construct_object(key, deep=True), content, key.start_mark.line + 1))
    return entries
