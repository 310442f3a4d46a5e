"""Study files: what is compared, read from YAML and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srtod._support.entries import Section, read_entries
from srtod._support.fields import Kind, read_value
from srtod._support.suggestions import did_you_mean
from srtod.engine import TrainConfig
from srtod.engine.presets import read_options

from .controls import CONTROLS, check_control

__all__ = ["Plan", "Study", "Variant", "read_study"]

FIELDS = ("name", "baseline", "seeds", "options", "datasets", "variants")
OWN = ("seed", "output", "resume", "threads", "eval_every", "early_stop")
"""Options that the runner sets: runs are evaluated once, at their end."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: its name.
        options: its training options, over those of the study and the data set.
        control: what replaces its filter, one of `CONTROLS`; None: nothing.
        baseline: the variant that it is compared with; None if it is a baseline itself.
    """

    name: str
    options: Mapping[str, Any]
    control: str | None
    baseline: str | None


@dataclass(frozen=True)
class Plan:
    """One run of a study.

    Attributes:
        dataset: name of the data set.
        variant: name of the variant.
        seed: the seed.
        control: of the variant.
        config: the training run, but for its folder and its threads.
    """

    dataset: str
    variant: str
    seed: int
    control: str | None
    config: TrainConfig

    @property
    def name(self) -> str:
        """How the run is called, which is also the path of its folder."""
        return f"{self.dataset}/{self.variant}/seed_{self.seed}"


@dataclass(frozen=True)
class Study:
    """A grid of variants, seeds and data sets.

    Attributes:
        path: its file.
        name: its name.
        seeds: the seeds of each variant on each data set.
        options: training options of all runs.
        datasets: training options of each data set, by its name.
        variants: the variants, by name.
    """

    path: Path
    name: str
    seeds: tuple[int, ...]
    options: Mapping[str, Any]
    datasets: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Variant]

    def written_options(self, dataset: str, variant: str) -> dict[str, Any]:
        """The options of a variant's runs on a data set that the file sets, its variables not expanded."""
        return {**self.options, **self.datasets[dataset], **self.variants[variant].options}

    def plans(
        self,
        variants: Sequence[str] | None = None,
        datasets: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Plan]:
        """The runs, seed by seed, so that an unfinished study has matched pairs.

        Args:
            variants: names of those to run; None: all.
            datasets: likewise.
            seeds: in place of the study's own.

        Raises:
            ValueError: if a name is unknown, a variable is not set, or the options of a run do not go together.
        """
        chosen_variants = _chosen(variants, self.variants, f"{self.path} has no variant")
        chosen_datasets = _chosen(datasets, self.datasets, f"{self.path} has no data set")
        return [
            self._plan(dataset, variant, seed)
            for seed in (self.seeds if seeds is None else dict.fromkeys(seeds))
            for dataset in chosen_datasets
            for variant in chosen_variants
        ]

    def _plan(self, dataset: str, variant: str, seed: int) -> Plan:
        options = {
            name: _expanded(value, name, self.path) for name, value in self.written_options(dataset, variant).items()
        }
        control = self.variants[variant].control
        panels = options.get("panels", 0) if control is None else 0  # pictures would show the detector's own filter
        try:
            config = TrainConfig.from_dict(
                options | {"seed": seed, "panels": panels, "eval_every": 1, "early_stop": None}
            )
            config = TrainConfig.from_dict(config.as_dict() | {"eval_every": config.epochs})
            if control is not None:
                check_control(control, config)
        except ValueError as error:
            raise ValueError(f"{self.path}: variant {variant} on {dataset}: {error}") from None
        return Plan(dataset, variant, seed, control, config)


def read_study(path: str | Path) -> Study:
    """Reads a study file.

    Raises:
        FileNotFoundError: if it, or a file that it extends, does not exist.
        ValueError: if it is not a valid study.
    """
    path = Path(path)
    lines: dict[str, int] = {}
    given: dict[str, Any] = {}
    for name, value, line in read_entries(path):
        where = f"{path}, line {line}"
        if name not in FIELDS:
            hint = did_you_mean(str(name), FIELDS) or f"a study has {', '.join(FIELDS)}"
            raise ValueError(f"{where}: unknown field {name!r}; {hint}")
        if name in given:
            raise ValueError(f"{where}: {name} is given twice; keep one")
        given[name], lines[name] = value, line
    for name in ("name", "datasets", "variants"):
        if name not in given:
            raise ValueError(f"{path} has no {name}; a study has {', '.join(FIELDS)}")

    def at(name: str) -> str:
        return f"{path}, line {lines[name]}"

    try:
        seeds = read_value(Kind(int, many=True), given.get("seeds", [0]))
    except ValueError as error:
        raise ValueError(f"{at('seeds')}: seeds {error}") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"{at('seeds')}: seeds must be different numbers, not negative, got {list(seeds)}")
    baseline = str(given.get("baseline", "plain"))
    variants = {
        name: _variant(name, section, path) for name, section in _named(given["variants"], path, at("variants"))
    }
    if baseline not in variants:
        raise ValueError(f"{path} has no variant {baseline!r}, which is its baseline; add it, or set baseline")
    for variant in variants.values():
        if variant.baseline not in (None, *variants):
            hint = did_you_mean(str(variant.baseline), variants) or f"there are {', '.join(variants)}"
            raise ValueError(f"{path}: variant {variant.name} has an unknown baseline {variant.baseline!r}; {hint}")
    are_baselines = {baseline, *(variant.baseline for variant in variants.values())}
    return Study(
        path=path,
        name=_checked_name(given["name"], at("name")),
        seeds=seeds,
        options=_options(given.get("options", Section()), path, "options"),
        datasets={
            name: _options(section, path, f"data set {name}")
            for name, section in _named(given["datasets"], path, at("datasets"))
        },
        variants={
            name: Variant(
                name, variant.options, variant.control, None if name in are_baselines else variant.baseline or baseline
            )
            for name, variant in variants.items()
        },
    )


def _variant(name: str, section: Section, path: Path) -> Variant:
    """A variant as its file has it: without a baseline unless it names one."""
    own = {entry.name: entry for entry in section if entry.name in ("control", "baseline")}
    options = _options(Section(entry for entry in section if entry.name not in own), path, f"variant {name}")
    control = own["control"].value if "control" in own else None
    if control not in (None, *CONTROLS):
        hint = did_you_mean(str(control), CONTROLS) or f"there are {', '.join(CONTROLS)}"
        raise ValueError(f"{path}, line {own['control'].line}: unknown control {control!r}; {hint}")
    return Variant(name, options, control, own["baseline"].value if "baseline" in own else None)


def _options(section: Any, path: Path, what: str) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, Section):
        raise ValueError(f"{path}: {what} must be a mapping of options to values, got {section!r}")
    for name, _, line in section:
        if name in OWN:
            raise ValueError(f"{path}, line {line}: {name} is set by the runner of the study; leave it out")
    return read_options(section, path)


def _named(section: Any, path: Path, where: str) -> list[tuple[str, Any]]:
    """The entries of a mapping from names to options."""
    if not isinstance(section, Section) or not section:
        raise ValueError(f"{where}: must be a mapping of names to options, got {section!r}")
    names = [_checked_name(entry.name, f"{path}, line {entry.line}") for entry in section]
    for entry in section:
        if names.count(str(entry.name)) > 1:
            raise ValueError(f"{path}, line {entry.line}: {entry.name} is there twice; keep one")
    return [
        (name, Section() if entry.value is None else entry.value) for name, entry in zip(names, section, strict=True)
    ]


def _checked_name(name: Any, where: str) -> str:
    if not NAME.fullmatch(str(name)):
        raise ValueError(f"{where}: a name has letters, digits and _ . - alone, since folders get it, got {name!r}")
    return str(name)


def _chosen(names: Sequence[str] | None, known: Iterable[str], problem: str) -> list[str]:
    known = list(known)
    for name in names or ():
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise ValueError(f"{problem} {name!r}; {hint}")
    return known if names is None else [name for name in known if name in names]


def _expanded(value: Any, name: str, path: Path) -> Any:
    """The value with `${VARIABLE}`, or `${VARIABLE:-otherwise}`, replaced by the environment's."""
    if not isinstance(value, str):
        return value

    def content(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ValueError(f"{path}: {name} needs the variable {match[1]}, which is not set; export {match[1]}=...")
        return found

    return VARIABLE.sub(content, value)
