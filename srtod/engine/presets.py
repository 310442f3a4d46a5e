"""Configurations by name or from YAML files: read, put together along `extends`, and checked against the options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srtod._support.entries import Section, read_entries
from srtod._support.fields import Kind, groups, near_names, read_value
from srtod._support.suggestions import did_you_mean

from .config import TrainConfig

__all__ = ["describe_presets", "make_config", "preset_names", "read_config", "read_options"]

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = "base/"  # what presets are put together from: not runs of their own
EXTENDS = "extends"


def read_config(name_or_path: str | Path) -> dict[str, Any]:
    """The options that a preset or a YAML file sets, by name; `TrainConfig.from_dict` makes a run of them.

    A file is a flat mapping of the options' names to values. `extends`, a name or a list of names, puts other
    configurations under it, later ones over earlier ones: presets, or files relative to its own folder. A fraction such
    as 4/255 is a number, and `none` is None.

    Args:
        name_or_path: a preset, such as `visdrone/cascade_rcnn_paper`, or a file, which ends in `.yaml` or `.yml`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such preset, or if a file is no mapping, names an option that does not exist or the
            same one twice, gives a value of another type, or extends itself.
    """
    return _resolve(_find(str(name_or_path), Path()), ())


def make_config(config: str | Path | None = None, **options: Any) -> TrainConfig:
    """A run by a configuration, if any, and options over it, which may be written as in a file.

    Args:
        config: as of `read_config`.
        options: fields of `TrainConfig` and of what it holds, by name; a path may stand for its text.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    kinds = _kinds()
    given = {
        name: _read(name, str(value) if isinstance(value, Path) else value, "options", kinds)
        for name, value in options.items()
    }
    return TrainConfig.from_dict(({} if config is None else read_config(config)) | given)


def preset_names() -> list[str]:
    """The presets that come with the package, in alphabetical order."""
    return [name for name in _shipped() if not name.startswith(PARTS)]


def describe_presets() -> str:
    """Every preset with the comment that its file begins with, a line each."""
    shipped, names = _shipped(), preset_names()
    comments = [shipped[name].read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for name in names]
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {comment}" for name, comment in zip(names, comments, strict=True))


def _shipped() -> dict[str, Path]:
    """The package's files by name: their path in `srtod/configs` without the ending."""
    paths = sorted(CONFIGS.rglob("*.yaml"))
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in paths}


def _find(name: str, folder: Path) -> Path:
    """The file of a preset, or the one of this name relative to `folder`."""
    if name.endswith((".yaml", ".yml")):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no file {folder / name}; pass a YAML file or the name of a preset")
        return folder / name
    shipped = _shipped()
    if name not in shipped:
        hint = did_you_mean(name, shipped) or f"there are {', '.join(preset_names())}"
        raise ValueError(f"there is no preset {name!r}, and the name of a file ends in .yaml; {hint}")
    return shipped[name]


def read_options(section: Section, path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options that the entries of a file set, over those of the configurations that they extend.

    Args:
        section: the entries.
        path: their file.
        above: the files that led to it along `extends`.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    own = _checked(section, path)
    options: dict[str, Any] = {}
    for name in own.pop(EXTENDS, ()):
        options |= _resolve(_find(name, path.parent), above)
    return options | own


def _resolve(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The options of a file; `above` led to it."""
    chain = (*above, path.resolve())
    if chain[-1] in above:
        raise ValueError(f"{path} extends itself ({' -> '.join(file.name for file in chain)}); take one `extends` out")
    return read_options(read_entries(path), path, chain)


def _checked(section: Section, path: Path) -> dict[str, Any]:
    """What the entries say, checked; `extends` as a tuple of names."""
    options: dict[str, Any] = {}
    for name, value, line in section:
        where = f"{path}, line {line}"
        if name in options:
            raise ValueError(f"{where}: {name} is given twice; keep one")
        options[name] = _read(name, value, where, _kinds() | {EXTENDS: Kind(str, many=True)})
    return options


def _kinds() -> dict[str, Kind]:
    return {name: kind for group in groups(TrainConfig) for name, (_, kind) in group.fields.items()}


def _read(name: Any, value: Any, where: str, kinds: Mapping[str, Kind]) -> Any:
    """The value of an option, as `read_value`."""
    if name not in kinds:
        hint = did_you_mean(str(name).replace("-", "_"), kinds, near_names(TrainConfig))
        raise ValueError(f"{where}: unknown option {name!r}; {hint or '`python -m srtod.train --help` lists all'}")
    try:
        return read_value(kinds[name], value)
    except ValueError as error:
        raise ValueError(f"{where}: {name} {error}") from None
