"""Study files: the grid, what they may say, and that every one in the repository can be run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from srtod.studies.definition import Study, read_study
from srtod.studies.runs import shard

from .conftest import STUDY

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_grid_is_variants_by_seeds_by_sets(study: Study) -> None:
    plans = study.plans()
    assert len({plan.name for plan in plans}) == len(plans) == 3 * 2 * 2
    assert [plan.seed for plan in plans] == [0] * 6 + [1] * 6  # matched pairs come first
    for plan in plans:
        config = plan.config
        assert (config.seed, config.epochs, config.eval_every, config.panels) == (plan.seed, 2, 2, 0)
        assert config.data.swarm_kind == ("hard" if plan.dataset == "hard" else "usual")
        assert config.model.self_reconstruction == (plan.variant != "plain")
        assert plan.control == ("oracle" if plan.variant == "oracle" else None)
    assert study.variants["plain"].baseline is None
    assert study.variants["oracle"].baseline == "plain"


def test_filters_and_shards_choose_runs(study: Study) -> None:
    chosen = study.plans(variants=["plain"], datasets=["hard"], seeds=[7, 8])
    assert [plan.name for plan in chosen] == ["hard/plain/seed_7", "hard/plain/seed_8"]
    plans = study.plans()
    parts = [shard(plans, number, 3) for number in (1, 2, 3)]
    assert sorted(plan.name for part in parts for plan in part) == sorted(plan.name for plan in plans)
    with pytest.raises(ValueError, match=r"I from 1 to N, got 4/3"):
        shard(plans, 4, 3)
    with pytest.raises(ValueError, match=r"has no variant 'plian'; did you mean plain\?"):
        study.plans(variants=["plian"])


def test_options_lie_over_presets_and_variables_are_expanded(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        """
        name: a
        options: {extends: base/cpu, epochs: 4, weights: "${W:-none.pth}"}
        datasets: {x: {data: "${HERE}/x", lr: 0.5}}
        variants: {plain: {self_reconstruction: false}, b: {lr: 0.25, threshold: 4/255}}
        """
    )
    study = read_study(path)
    with pytest.raises(ValueError, match="data needs the variable HERE, which is not set"):
        study.plans()
    monkeypatch.setenv("HERE", "/data")
    plain, other = (plan.config for plan in study.plans())
    assert (plain.data.data, plain.model.weights, plain.epochs, plain.lr) == ("/data/x", "none.pth", 4, 0.5)
    assert (other.lr, other.model.self_reconstruction_options.threshold) == (0.25, 4 / 255)
    assert plain.model.channels == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "sedes: [0]", "line 3: unknown field 'sedes'; did you mean seeds"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "line 3: seeds must be different numbers"),
        ("seeds: [0, 1]", "seeds: many", "line 3: seeds must be"),
        ("seeds: [0, 1]", "name: b", "line 3: name is given twice"),
        ("name: small", "name: ../small", "line 2: a name has letters"),
        ("name: small", "", "has no name"),
        ("epochs: 2", "epocs: 2", "line 4: unknown option 'epocs'; did you mean epochs"),
        ("epochs: 2", "epochs: two", "line 4: epochs must be an integer|line 4: epochs must be"),
        ("epochs: 2", "eval_every: 1", "line 4: eval_every is set by the runner"),
        ("{threshold: auto}", "{threshhold: auto}", "line 10: unknown option 'threshhold'; did you mean threshold"),
        ("{threshold: auto}", "{seed: 3}", "line 10: seed is set by the runner"),
        ("{threshold: auto}", "{baseline: plan}", "unknown baseline 'plan'; did you mean plain"),
        ("control: oracle", "control: orcale", "line 11: unknown control 'orcale'; did you mean oracle"),
        ("  plain:", "  simple:", "has no variant 'plain', which is its baseline"),
        ("  sr_tod:", "  plain:", "plain is there twice"),
        ("datasets:", "datasets: 3\nseeds:", "line 6: seeds is given twice"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(write: Callable[[str], Path], old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(ValueError, match=message) as error:
        read_study(write(STUDY.replace(old, new, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("self_reconstruction: false", "control oracle replaces the filter, and this variant has none"),
        ("enhancement: none", "control oracle replaces the filter"),
        ("threshold: none", "control oracle needs a threshold and resize nearest"),
        ("resize: area", "control oracle needs a threshold and resize nearest"),
        ("devices: 2", "control oracle runs in one process"),
    ],
)
def test_a_control_needs_a_filter(write: Callable[[str], Path], options: str, message: str) -> None:
    study = read_study(write(STUDY.replace("{control: oracle}", f"{{control: oracle, {options}}}")))
    with pytest.raises(ValueError, match=message):
        study.plans()


@pytest.mark.parametrize(
    "path", sorted([*STUDIES.glob("*.yaml"), *STUDIES.glob("paper/*.yaml")]), ids=lambda path: path.stem
)
def test_every_study_of_the_repository_can_be_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRTOD_DATA", "/data")
    study = read_study(path)
    plans = study.plans()
    assert len(plans) == len(study.seeds) * len(study.datasets) * len(study.variants) > 1
    for plan in plans:
        assert plan.config.data.data is None or plan.config.data.data.startswith("/data/")
        plan.config.model.arguments  # noqa: B018 (raises without an anchor scale)
    for variant in study.variants.values():
        assert variant.baseline is None or not study.variants[variant.baseline].options["self_reconstruction"]


def test_the_repository_has_the_studies_of_the_paper() -> None:
    assert {path.stem for path in (STUDIES / "paper").glob("*.yaml")} == {f"table{number}" for number in range(1, 8)}
    assert (STUDIES / "tiny_sets.yaml").is_file()
