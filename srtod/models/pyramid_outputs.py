"""A pyramid level inside the output of a module: a tensor, or an entry of tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Key", "describe_levels", "find_level", "replace_level"]

Key = str | int


def find_level(output: Any, key: Key | Sequence[Key] | None, name: str) -> Tensor:
    """The level `[N, C, h, w]` in the output of the module `name`.

    Args:
        output: a tensor, or a tuple, list or dictionary of such outputs.
        key: the index or key that leads to it, or several, outermost first. None: the first entry at each step.
        name: of the module, for errors.

    Raises:
        ValueError: if there is no such entry, or it is no tensor.
    """
    found = output
    for step in _path(output, key):
        entries = _entries(found)
        if step not in entries:
            known = ", ".join(map(repr, entries)) or f"a {type(found).__name__} and no entries"
            raise ValueError(f"the output of {name!r} has no entry {step!r}; it has {known}")
        found = entries[step]
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise ValueError(f"the output of {name!r} at key={key!r} is a {kind} and no tensor; set key to a tensor in it")
    return found


def replace_level(output: Any, key: Key | Sequence[Key] | None, level: Tensor) -> Any:
    """The output with another level: lists and dictionaries are changed in place, tuples are copied."""
    return _replace(output, _path(output, key), level)


def describe_levels(output: Any, size: Sequence[int]) -> str:
    """The maps `[N, C, h, w]` in an output, with the scale of each for an image of `size` (H, W), for errors."""
    lines = []
    for path, level in _tensors(output, ()):
        if level.dim() == 4:
            strides = {-(-side // own) for side, own in zip(size, level.shape[2:], strict=True)}
            stride = f"scale={strides.pop()}" if len(strides) == 1 else "no scale"
            key = path[0] if len(path) == 1 else path
            lines.append(f"{f'key={key!r}, ' if path else ''}{stride} ({list(level.shape)})")
    return "; ".join(lines) or "none: its output has no map [N, C, h, w]"


def _path(output: Any, key: Key | Sequence[Key] | None) -> tuple[Key, ...]:
    if key is not None:
        return (key,) if isinstance(key, (str, int)) else tuple(key)
    path: list[Key] = []
    while entries := _entries(output):
        path.append(next(iter(entries)))
        output = entries[path[-1]]
    return tuple(path)


def _entries(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, (list, tuple)) else {}


def _replace(output: Any, path: tuple[Key, ...], level: Tensor) -> Any:
    if not path:
        return level
    step: Any = path[0]
    entry = _replace(output[step], path[1:], level)
    if not isinstance(output, tuple):
        output[step] = entry
        return output
    entries = [entry if index == step else own for index, own in enumerate(output)]
    return type(output)._make(entries) if hasattr(output, "_make") else tuple(entries)


def _tensors(output: Any, path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
    for step, entry in _entries(output).items():
        yield from _tensors(entry, (*path, step))
