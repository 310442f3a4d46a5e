"""Configurations by name and from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from srtod._support.fields import Kind, groups, read_value
from srtod.engine import TrainConfig, preset_names, read_config
from srtod.engine.presets import CONFIGS, describe_presets
from srtod.models import build_detector

DATA_SETS = ("droneswarms", "visdrone", "aitod")
DETECTORS = ("retinanet", "faster_rcnn", "cascade_rcnn", "detectors", "rfla")
OTHERS = {"droneswarms": ("atss", "tridentnet", "cascade_rpn", "dyhead"), "aitod": ("detectors_rfla",)}
"""Detectors of one data set: the other rows of the paper's Tab. 1, and RFLA's best."""
PAIRS = [(data, name) for data in DATA_SETS for name in DETECTORS + OTHERS.get(data, ())]
QUERY_DETECTORS = ("deformable_detr", "dfine")
"""The paper has no values for these."""
FLAVOURS = ("paper", "matched")
PAPER = {  # Sec. 4.1 and the authors' code
    "droneswarms": {
        "min_size": (1080,),
        "max_size": 1920,
        "threshold": 40 / 255,
        "anchor_scale": 2.0,
        "epochs": 20,
        "lr_steps": (16, 19),
        "lr": 0.0025,
        "warmup": 500,
        "detections_per_image": 100,
        "proposals": None,
        "train_split": "train",
        "test_split": "test",
    },
    "visdrone": {
        "min_size": (1280,),
        "max_size": 1280,
        "threshold": 4 / 255,
        "anchor_scale": 6.0,
        "epochs": 12,
        "lr_steps": (8, 11),
        "lr": 0.005,
        "warmup": 5000,
        "detections_per_image": 3000,
        "proposals": 3000,
        "train_split": "train",
        "test_split": "val",
    },
    "aitod": {
        "min_size": (800,),
        "max_size": 800,
        "threshold": 3 / 255,
        "anchor_scale": 4.0,
        "epochs": 12,
        "lr_steps": (8, 11),
        "lr": 0.005,
        "warmup": 5000,
        "detections_per_image": 3000,
        "proposals": 3000,
        "train_split": "trainval",
        "test_split": "test",
    },
}
PAPER_EVERYWHERE = {
    "backbone": "resnet50",
    "weights": "IMAGENET1K_V1",
    "trainable_layers": 3,
    "norm": "frozen_batch",
    "channels": 256,
    "batch_size": 2,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "clip_grad_norm": None,
    "horizontal_flip": 0.5,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "self_reconstruction": True,
    "reconstruction": "paper",
    "identity_start": False,
    "surrogate": "none",
    "learn_threshold": True,
    "padding_in_loss": True,
    "reconstruction_lr": 1.0,
    "enhancement": "dgfe",
    "difference": "pixel",
    "resize": "nearest",
    "precision": "32-true",
    "seed": 0,
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "droneswarms/faster_rcnn": {"proposals": 1000},
    "droneswarms/rfla": {"detections_per_image": 3000, "proposals": 3000},
    "visdrone/retinanet": {"anchor_scale": 3.0},  # of P3: as many pixels as 6 on P2
    "aitod/retinanet": {"anchor_scale": 2.0},
    "droneswarms/atss": {"nms_threshold": 0.6},
    "droneswarms/dyhead": {"nms_threshold": 0.6},
    "droneswarms/tridentnet": {"proposals": 1000, "scale_aware": False},
    "droneswarms/cascade_rpn": {"proposals": 300, "score_threshold": 0.001, "clip_grad_norm": 35.0},
}
MATCHED = {
    "surrogate": "sigmoid",
    "identity_start": True,
    "padding_in_loss": False,
    "rfla_paper": False,
    "sac": True,
    "scale_aware": True,
    "detections_per_image": 3000,
    "proposals": 3000,
}


def options_of(preset: str) -> dict[str, Any]:
    return configured(preset).as_dict()


def configured(preset: str) -> TrainConfig:
    """A preset on a folder of data."""
    return TrainConfig.from_dict(read_config(preset) | {"data": "folder"})


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_data_set_and_detector_has_both_presets() -> None:
    expected = [f"{data}/{name}_{flavour}" for data, name in PAIRS for flavour in FLAVOURS]
    expected += [f"{data}/{name}_matched" for data in DATA_SETS for name in QUERY_DETECTORS]
    assert preset_names() == sorted([*expected, "drones_rgb", "recommended", "sirst_v2", "small"])


def test_the_recommended_preset_is_the_default() -> None:
    assert options_of("recommended") == TrainConfig.from_dict({"data": "folder"}).as_dict()
    assert {"self_reconstruction", "reconstruction", "enhancement"} <= read_config("recommended").keys()


@pytest.mark.parametrize(("data", "detector"), PAIRS)
def test_paper_presets_have_the_values_of_the_paper(data: str, detector: str) -> None:
    rfla = detector in ("rfla", "detectors_rfla")
    expected = {"detector": detector, "rfla_paper": rfla, "sac": detector != "detectors", "scale_aware": True}
    expected |= {"allowed_border": 0 if rfla or detector in ("cascade_rcnn", "detectors") else None}
    expected |= {"box_loss": "l1" if detector in ("faster_rcnn", "tridentnet") else "smooth_l1"}
    expected |= PAPER_EVERYWHERE | PAPER[data] | EXCEPTIONS.get(f"{data}/{detector}", {})
    options = options_of(f"{data}/{detector}_paper")
    assert {name: options[name] for name in expected} == expected
    assert {name for name, value in options.items() if value != TrainConfig().as_dict()[name]} <= {*expected, "data"}


@pytest.mark.parametrize(("data", "detector"), PAIRS)
def test_matched_presets_differ_from_the_paper_only_where_that_is_said(data: str, detector: str) -> None:
    assert options_of(f"{data}/{detector}_matched") == options_of(f"{data}/{detector}_paper") | MATCHED


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("detector", QUERY_DETECTORS)
def test_detectors_with_queries_differ_from_others_in_the_schedule(data: str, detector: str) -> None:
    schedule = {"optimizer": "adamw", "lr": 2e-4, "lr_batch": 16, "clip_grad_norm": 0.1, "epochs": 50, "warmup": None}
    expected = options_of(f"{data}/faster_rcnn_matched") | schedule | {"detector": detector, "lr_steps": (40,)}
    assert options_of(f"{data}/{detector}_matched") == expected


@pytest.mark.parametrize("preset", preset_names())
def test_a_saved_configuration_gives_the_same_run(preset: str, tmp_path: Path) -> None:
    config = configured(preset)
    saved = written(tmp_path, yaml.safe_dump(config.as_dict(), sort_keys=False))
    assert TrainConfig.from_dict(read_config(saved)) == config


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    """Values of a field; text that no word stands for, as `none` in a file is None."""
    bases: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(2**-30, 0.75),
        str: st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(lambda text: text not in kind.constants),
    }
    strategies = [st.just(value) for value in kind.constants.values()]
    if kind.base is not None:
        one = bases[kind.base]
        strategies.append(
            st.lists(one, min_size=2, max_size=2, unique=True).map(sorted).map(tuple) if kind.many else one
        )
    return st.one_of(strategies)


FIELDS = {name: kind for group in groups(TrainConfig) for name, (_, kind) in group.fields.items()}


@settings(deadline=None, max_examples=50)
@given(st.fixed_dictionaries({}, optional={name: values_of(kind) for name, kind in FIELDS.items()}))
def test_any_configuration_survives_yaml(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> None:
    options |= {"eval_every": 1, "data": options.get("data") or None}
    options["swarm_size"] = options.get("swarm_size", 0) + 128
    files, splits = ("train_json", "train_images", "test_json", "test_images"), ("train_split", "test_split")
    unused = files if options["data"] else splits if options.get("train_json") is not None else (*files, *splits)
    options |= dict.fromkeys(unused)
    options |= {"reconstruction": "subpixel", "reconstruction_target": "image", "reconstruction_start": 0.0}
    options["cutoff"] = min(options.get("cutoff", 0.5), 0.5)
    config = TrainConfig.from_dict(options)
    saved = written(tmp_path_factory.mktemp("run"), yaml.safe_dump(config.as_dict(), sort_keys=False))
    assert TrainConfig.from_dict(read_config(saved)) == config


@pytest.mark.parametrize(
    "preset", ["visdrone/faster_rcnn_matched", "aitod/detectors_rfla_paper", "aitod/retinanet_paper"]
)
def test_presets_build_their_detector(preset: str) -> None:
    arguments = configured(preset).model.arguments
    detector = build_detector(**arguments | {"num_classes": 3, "weights": None, "backbone": "resnet18", "channels": 16})
    assert detector.transform.min_size == arguments["min_size"]
    assert detector.self_reconstruction.threshold.item() == pytest.approx(arguments["threshold"])


@pytest.mark.parametrize("preset", preset_names())
def test_presets_have_all_arguments_of_their_detector(preset: str) -> None:
    model = configured(preset).model
    if model.anchor_scale == "auto":  # which training replaces
        model = dataclasses.replace(model, anchor_scale=2.0)
    assert model.arguments["name"] in {detector for _, detector in PAIRS} | set(QUERY_DETECTORS)


def test_no_preset_says_what_it_already_has() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        own = yaml.safe_load(path.read_text())
        extended = own.pop("extends", [])
        below: dict[str, Any] = {}
        for name in [extended] if isinstance(extended, str) else extended:
            below |= read_config(name)
        resolved = read_config(path)
        if path.parent.name != "base":
            assert [name for name in own if name in below and below[name] == resolved[name]] == [], path


def test_descriptions_name_every_preset_and_its_source() -> None:
    lines = describe_presets().splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line.split()) > 5 and "#" not in line for line in lines)
    [line] = [line for line in lines if line.startswith("aitod/detectors_paper")]
    assert "DetectoRS with SR-TOD on AI-TOD: the paper's Tab. 3 (24.0 AP)" in line


def test_a_file_extends_presets_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    written(tmp_path, "lr: 1\nepochs: 3\nseed: 4\n", "parts/short.yaml")
    written(tmp_path, "extends: parts/short.yaml\nseed: 5\n", "mine.yaml")
    path = written(tmp_path, "extends: [visdrone/rfla_matched, mine.yaml]\nepochs: 2\n")
    options = read_config(path)
    assert options == read_config("visdrone/rfla_matched") | {"lr": 1.0, "epochs": 2, "seed": 5}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("threshold: 40/255", "threshold", 40 / 255),
        ("threshold: none", "threshold", None),
        ("threshold: null", "threshold", None),
        ("surrogate: none", "surrogate", "none"),
        ("anchor_scale: auto", "anchor_scale", "auto"),
        ("anchor_scale: 3", "anchor_scale", 3.0),
        ("lr: 1e-4", "lr", 1e-4),
        ("min_size: 800", "min_size", (800,)),
        ("min_size: [640, 800]", "min_size", (640, 800)),
        ("scale_jitter: [1/2, 2]", "scale_jitter", (0.5, 2.0)),
        ("lr_steps: none", "lr_steps", None),
        ("sac: no", "sac", False),
    ],
)
def test_values_of_every_kind(tmp_path: Path, text: str, name: str, value: object) -> None:
    read = read_config(written(tmp_path, text))
    assert read == {name: value}
    assert type(read[name]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 2\nanchor_scal: 3", "line 2: unknown option 'anchor_scal'; did you mean anchor_scale?"),
        ("anchor-scale: 3", "line 1: unknown option 'anchor-scale'; did you mean anchor_scale?"),
        ("imgsz: 640", "line 1: unknown option 'imgsz'; did you mean min_size?"),
        ("quux: 3", "line 1: unknown option 'quux'; `python -m srtod.train --help` lists all"),
        ("epochs: 2.5", "line 1: epochs must be a whole number, got 2.5"),
        ("epochs: true", "line 1: epochs must be a whole number, got True"),
        ("epochs: '2'", "line 1: epochs must be a whole number, got '2'"),
        ("epochs: none", "line 1: epochs must be a whole number, got 'none'"),
        ("lr: fast", "line 1: lr must be a number, got 'fast'"),
        ("lr: 1/0", "line 1: lr must be a number, got '1/0'"),
        ("lr: .nan", "line 1: lr must be a number, got nan"),
        ("lr: .inf", "line 1: lr must be a number, got inf"),
        ("lr: true", "line 1: lr must be a number, got True"),
        ("sac: 1", "line 1: sac must be true or false, got 1"),
        ("data: 2019", "line 1: data must be text or none, got 2019"),
        ("lr_steps: [8, x]", "line 1: lr_steps must be a list of whole numbers or none, got 'x'"),
        ("detector: yolo", "line 1: detector must be one of retinanet, faster_rcnn"),
        ("anchor_scale: small", "line 1: anchor_scale must be a number or one of auto or none, got 'small'"),
        ("lr: {a: 1}", "line 1: lr must be a number, got {'a': 1}"),
        ("lr: 1\nlr: 2", "line 2: lr is given twice; keep one"),
        ("- lr", "must have one `name: value` a line"),
        ("lr", "must have one `name: value` a line"),
        ("lr: [1", "line 1: not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
        ("lr: 1e999999999", "line 1: lr must be a number, got '1e999999999'"),
        (f"lr: 1{'0' * 400}", "line 1: lr must be a number, got 1000"),
        ("data: 2024-13-01\nepochs: x", "line 2: epochs must be"),  # a name may look like a date
        ("lr: !!timestamp junk", "line 1: 'junk' is not what its tag says .timestamp"),
        ("epochs: 1\nsac: !!bool junk", "line 2: 'junk' is not what its tag says .bool"),
        ("lr: !!int x", "line 1: 'x' is not what its tag says .int"),
        ("? [lr]\n: 1", "line 1: a name must be text"),
        (f"data: {'[' * 5000}", "run.yaml is nested too deeply"),
        ("extends: visdrone/cascade", "there is no preset 'visdrone/cascade'"),
        ("extends: absent.yaml", "there is no file .*absent.yaml"),
        ("extends: 3", "line 1: extends must be a list of names, got 3"),
        ("extends: run.yaml", r"extends itself \(run.yaml -> run.yaml\)"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_config(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bomb", ["names: &{0} [{1}, {1}]\n", "names: &{0} {{a: {1}, b: {1}}}\n"])
def test_aliases_that_stand_for_billions_are_refused(tmp_path: Path, bomb: str) -> None:
    text = "names: &a0 [x]\n" + "".join(bomb.format(f"a{level + 1}", f"*a{level}") for level in range(40))
    with pytest.raises(ValueError, match=r"run.yaml repeats more than 10000 values by its aliases"):
        read_config(written(tmp_path, text))
    with pytest.raises(ValueError, match=r"run.yaml repeats more than"):
        read_config(written(tmp_path, "lr: &a [*a]"))


def test_a_few_aliases_are_fine(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "min_size: &a [100, 200]\nlr_steps: *a"))["lr_steps"] == (100, 200)


def test_a_cycle_is_refused_with_its_path(tmp_path: Path) -> None:
    written(tmp_path, "extends: b.yaml", "a.yaml")
    path = written(tmp_path, "extends: ./a.yaml", "b.yaml")
    with pytest.raises(ValueError, match=r"b.yaml extends itself \(b.yaml -> a.yaml -> b.yaml\)"):
        read_config(path)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "# nothing yet\n")) == {}


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"lr: \xff\n")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_config(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visdrone/cascade_rcnn_papr", "did you mean visdrone/cascade_rcnn_paper?"),
        ("visdrone/yolo.yaml", "there is no file visdrone/yolo.yaml; pass a YAML file or the name of a preset"),
        ("", "there are aitod/cascade_rcnn_matched, "),
        ("../setup", "there is no preset '../setup'"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_config(name)
    assert message in str(error.value)


def test_every_option_is_documented_and_has_one_name() -> None:
    names = [name for group in groups(TrainConfig) for name in group.fields]
    assert len(names) == len(set(names))
    assert all(field.metadata["doc"] for group in groups(TrainConfig) for field, _ in group.fields.values())
    assert {field.name for group in groups(TrainConfig) for field in dataclasses.fields(group.config)} >= set(names)


GUIDE = Path(__file__).parents[2] / "docs" / "presets.md"


def rows_of(heading: str) -> dict[str, list[str]]:
    """The cells of the rows of the guide's table under a heading, by the option in their first cell."""
    table = GUIDE.read_text().partition(f"| option | {heading} |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
@pytest.mark.parametrize(
    ("heading", "presets"),
    [
        ("`droneswarms` | `visdrone` | `aitod`", [f"{data}/cascade_rcnn_paper" for data in DATA_SETS]),
        ("all three", ["aitod/faster_rcnn_paper"]),
        ("`matched`", ["visdrone/detectors_matched"]),
    ],
)
def test_the_tables_of_the_guide_are_true(heading: str, presets: list[str]) -> None:
    rows = rows_of(heading)
    assert len(rows) >= 5
    for name, cells in rows.items():
        for preset, cell in zip(presets, cells, strict=False):
            value = yaml.safe_load(f"[{', '.join(cell.split())}]")
            expected = read_value(FIELDS[name], value if FIELDS[name].many else value[0])
            assert options_of(preset)[name] == expected, (name, preset)


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
def test_the_file_of_the_guide_is_read(tmp_path: Path) -> None:
    text = GUIDE.read_text()
    path = written(tmp_path, text.partition("```yaml\n")[2].partition("```")[0], "mine.yaml")
    assert read_config(path)["threshold"] == 8 / 255
