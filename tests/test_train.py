"""`python -m srtod.train`: exit status, messages, and what is left behind."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from srtod import train
from srtod._support.cli import run
from srtod.engine import DetectionModule, TrainConfig, preset_names, read_config
from srtod.models.checkpoint import load_detector

QUICK = [
    *("--channels", "16", "--swarm-images", "10", "--swarm-size", "128", "--limit-batches", "1"),
    *("--threads", "1", "--accelerator", "cpu"),
]
PLAIN = ("--detector", "retinanet", "--no-self-reconstruction")
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
    "annotations": [],
    "categories": [{"id": 1, "name": "drone"}],
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str:
    """The exit status of the command line, or the sentence that it ends with."""
    monkeypatch.setattr(sys, "argv", ["train", *QUICK, *arguments])
    try:
        run(train.main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_a_short_run_prints_the_table_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--epochs", "1", "--no-self-reconstruction", "--panels", "1") == 0
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert printed.endswith(
        "runs/swarm: checkpoints, logs and report\n"
        "next: srtod predict runs/swarm/checkpoints/best.ckpt YOUR_IMAGES OUT\n"
    )
    assert load_detector("runs/swarm/checkpoints/best.ckpt").detector.self_reconstruction is None


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """The configuration that a command line trains with, without the training."""

    def configure(*arguments: str) -> TrainConfig:
        seen: list[TrainConfig] = []

        def stop(config: TrainConfig) -> None:
            seen.append(config)
            raise SystemExit(0)

        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        monkeypatch.setattr("srtod.engine.train", stop)
        with pytest.raises(SystemExit):
            train.main()
        [config] = seen
        return config

    return configure


def test_options_come_over_a_configuration(configured: Callable[..., TrainConfig]) -> None:
    preset = TrainConfig.from_dict(read_config("visdrone/cascade_rcnn_paper") | {"data": "VisDrone"})
    assert configured("--config", "visdrone/cascade_rcnn_paper", "--data", "VisDrone") == preset
    changed = configured(
        "--config=visdrone/cascade_rcnn_paper", "--data", "VisDrone", "--lr", "0.01", "--lr-steps", "9"
    )
    assert changed == TrainConfig.from_dict(preset.as_dict() | {"lr": 0.01, "lr_steps": (9,)})
    off = configured("--no-self-reconstruction", "--clip-grad-norm", "none", "--config", "sirst_v2")
    assert not off.model.self_reconstruction
    assert off.clip_grad_norm is None
    assert configured() == TrainConfig()


def test_a_saved_configuration_is_trained_or_resumed_as_it_is(
    configured: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = TrainConfig.from_dict(read_config("drones_rgb") | {"output": str(tmp_path), "threshold": 1 / 3})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
    assert configured("--config", str(tmp_path / "config.yaml")) == config
    own = [str(config.epochs), "--channels", str(config.model.channels)]  # what the run has may be repeated
    assert configured("--resume", str(tmp_path), "--epochs", *own) == replace(config, resume=str(tmp_path))


def test_what_was_typed_beside_resume_must_be_what_the_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TrainConfig(epochs=12).as_dict()))
    default = TrainConfig().epochs  # as if nobody had given it, where the options are read no more
    monkeypatch.setattr(sys, "argv", ["train", "--resume", str(tmp_path), "--epochs", str(default)])
    with pytest.raises(SystemExit):
        run(train.main)
    assert (
        f"error: epochs is {default}, but the run in {tmp_path} has 12 and goes on as it was" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--config visdrone/cascade_rcn_paper", "did you mean visdrone/cascade_rcnn_paper?"),
        ("--config absent.yaml", "there is no file absent.yaml; pass a YAML file or the name of a preset"),
        ("--config bad.yaml", "bad.yaml, line 2: unknown option 'lrr'; did you mean lr?"),
        ("--resume absent", "absent is not the folder of a run: it has no config.yaml; pass the one to go on with"),
        ("--resume x/checkpoints/last.ckpt", "last.ckpt is not the folder of a run: it has no config.yaml; pass the"),
        ("--resume run --config sirst_v2", "--resume takes the configuration of the run that it goes on with"),
        ("--config", "argument --config: expected one argument"),
        ("--confg sirst_v2", "unknown option --confg; did you mean --config?"),
        ("--config data.yaml --train-json x.json", "data and train_json both say what to train on"),
        ("--config visdrone/cascade_rcnn_paper", "train_split is a part of data, which is not given; pass data"),
        ("--config data.yaml --train-images absent", "train_images has no effect beside data"),
        ("--swarm-size 64", "swarm_size must be at least 128 pixels, got 64"),
        ("--detections-per-image 0", "detections_per_image must be positive, got 0"),
        ("--anchors -1", "anchor_scale must be positive, got -1"),
    ],
)
def test_bad_configurations_end_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("# comment\nlrr: 1\n")
    Path("data.yaml").write_text("data: folder\n")
    assert call(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "data.yaml"]


def test_list_presets_prints_each_with_its_description(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--list-presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert max(map(len, lines)) <= 160


def test_help_lists_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for name in ("config", "list-presets", *TrainConfig().as_dict()):
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "train.json does not exist"),
        ("", "train.json is empty"),
        ('{"images": [', "train.json is not valid JSON"),
        ('{"images": []}', "train.json has no 'annotations'"),
        (json.dumps(COCO), "train.json has no box to train on"),
    ],
)
def test_bad_annotations_end_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    if content is not None:
        Path("train.json").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    files = ["--train-json", "train.json", "--train-images", ".", "--test-json", "train.json"]
    assert call(monkeypatch, *files) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--anchr-scale 2", "unknown option --anchr-scale; did you mean --anchor-scale?"),
        ("--epochs 0", "epochs must be positive, got 0"),
        ("--weights absent.pth", "absent.pth"),
        ("--output train.py/run", "cannot be made (Not a directory); choose another output"),
    ],
)
def test_bad_options_end_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    assert call(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_a_loss_that_is_not_finite_ends_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--lr", "1e9", "--weight-decay", "1e9", "--clip-grad-norm", "none", "--limit-batches", "4"]
    ending = call(monkeypatch, *options, "--output", str(tmp_path / "x"))
    assert isinstance(ending, str)
    assert ending.startswith("error: the loss is no longer finite at step ")


@pytest.mark.usefixtures("interruptible")
def test_a_signal_before_anything_is_logged_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectionModule, "training_step", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert call(monkeypatch, *PLAIN, "--output", str(tmp_path / "run")) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_last_checkpoint_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: signal.Signals
) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = DetectionModule.training_step

    def interrupted(self: DetectionModule, *arguments: Any) -> Any:
        if last.exists():
            signal.raise_signal(kind)
        return step(self, *arguments)

    monkeypatch.setattr(DetectionModule, "training_step", interrupted)
    assert call(monkeypatch, *PLAIN, "--epochs", "1000", "--output", str(tmp_path / "run")) == 128 + kind
    error = capsys.readouterr().err
    assert f"the last checkpoint is {last}, and --resume {tmp_path / 'run'} goes on from it" in error
    assert "Traceback" not in error
    assert load_detector(last).class_names == ["drone"]
    assert not list(tmp_path.rglob("*.part"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # Lightning had switched it off
