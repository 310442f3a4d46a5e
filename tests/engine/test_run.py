"""A run starts in its own folder; a stopped or killed one ends as an unbroken one, or is refused with the reason.

Run as a script, this file is such a run: `python test_resume.py FOLDER POINT COUNT` trains, or goes on, and kills
itself where POINT is reached for the COUNT-th time.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srtod.data import SwarmDataset
from srtod.engine import DataConfig, DetectionData, DetectionModule, ModelConfig, TrainConfig, TrainedRun, train
from srtod.engine.folder import new_folder
from srtod.engine.run import Run, read_run, requeued_run, with_saved_options
from srtod.models.checkpoint import load_detector, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.usefixtures("blank_plots")

# Faster R-CNN: its samplers draw from the generator at every step. 4 batches an epoch, and 2 optimizer steps.
CONFIG = TrainConfig(
    ModelConfig(channels=16, min_size=(96, 128)),
    DataConfig(swarm_images=4, swarm_size=128, batch_size=1),
    epochs=2,
    accumulate=2,
    ema=0.9,
    save_every=1,
    early_stop=2,
    panels=0,
    seed=3,
    accelerator="cpu",
    threads=1,
)


START = TrainConfig(
    ModelConfig(channels=16),
    DataConfig(swarm_images=10, swarm_size=128),
    epochs=1,
    limit_batches=1,
    panels=0,
    accelerator="cpu",
    threads=1,
)


class StoppedError(Exception):
    """Stands for a kill, where the process has to live on."""


@contextmanager
def ending(point: str, count: int, end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` where `point` is reached for the `count`-th time.

    Args:
        point: "step", inside a training step; "validation", inside an evaluation; "write", when half of a checkpoint is
            written.
        count: see above.
        end: ends the process, or raises.
    """
    owner, name = {
        "step": (DetectionModule, "training_step"),
        "validation": (DetectionModule, "validation_step"),
        "write": (torch, "save"),
    }[point]
    original, calls = getattr(owner, name), 0

    def ending_one(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < count:
            return original(*arguments, **options)
        if point == "write":
            arguments[1].write(b"half")
            arguments[1].flush()
        else:
            original(*arguments, **options)
        return end()

    setattr(owner, name, ending_one)
    try:
        yield
    finally:
        setattr(owner, name, original)


def go_on(folder: Path, config: TrainConfig = CONFIG) -> TrainedRun:
    """The run in `folder`, from its last checkpoint if it has one."""
    if (folder / "checkpoints" / "last.ckpt").exists():
        return train(TrainConfig(resume=str(folder)))
    return train(replace(config, output=str(folder)))


def main() -> None:
    folder, point, count = sys.argv[1:]
    with ending(point, int(count), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        go_on(Path(folder))


def rows(run: TrainedRun) -> list[dict[str, str]]:
    with (run.folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(found: Any, expected: Any, where: str) -> None:
    """Bitwise, for all that a checkpoint may hold."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


def assert_same_run(found: TrainedRun, expected: TrainedRun) -> None:
    """The same weights, averaged weights, optimizer, schedule, generators, scores and logs, bit by bit."""
    assert found.metrics == expected.metrics
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(run.folder / "checkpoints" / name) for run in (found, expected))
        for content in (one, other):
            # Lightning's own counts of what it has begun, which differ after a restart.
            del content["loops"]
        assert_equal(one, other, name)
    assert rows(found) == rows(expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The run that nothing stops."""
    return train(replace(CONFIG, output=str(tmp_path_factory.mktemp("runs") / "whole")))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_as_the_whole_one(
    whole: TrainedRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # Within the first epoch; while its last.ckpt is written, the third file after the resume; in the next evaluation.
    for point, count in (("step", 4), ("write", 3), ("validation", 2)):
        command = [sys.executable, __file__, str(folder), point, str(count)]
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert_same_run(go_on(folder), whole)
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("step", 1),
        ("step", 5),
        ("write", 6),
        *(pytest.param(*point, marks=pytest.mark.slow) for point in (("step", 4), ("validation", 1), ("write", 3))),
    ],
)
def test_a_run_goes_on_from_any_point(whole: TrainedRun, tmp_path: Path, point: str, count: int) -> None:
    def stop() -> None:
        raise StoppedError

    folder = tmp_path / "run"
    with ending(point, count, stop), pytest.raises(StoppedError):
        go_on(folder)
    if (folder / "checkpoints" / "last.ckpt").exists():
        random.seed(count)
        np.random.seed(count)  # noqa: NPY002
        torch.manual_seed(count)
        assert_same_run(go_on(folder), whole)
        events = EventAccumulator(str(folder / "logs")).Reload()
        steps = [event.step for event in events.Scalars("train/loss")]
        assert steps == [int(row["step"]) for row in rows(whole) if row["train/loss"]]
    else:
        with pytest.raises(FileNotFoundError, match=r"run has no last\.ckpt to go on from; start the run again"):
            train(TrainConfig(resume=str(folder)))


def stopped(tmp_path: Path, config: TrainConfig, step: int = 5) -> Path:
    """The folder of a run that was stopped in its second epoch."""

    def stop() -> None:
        raise StoppedError

    folder = tmp_path / "run"
    with ending("step", step, stop), pytest.raises(StoppedError):
        go_on(folder, config)
    return folder


PLAIN = replace(
    CONFIG, model=ModelConfig("retinanet", channels=16, self_reconstruction=False), ema=None, save_every=None
)


@pytest.fixture(scope="module")
def run_to_resume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(tmp_path_factory.mktemp("runs"), PLAIN)


@pytest.fixture
def copied(run_to_resume: Path, tmp_path: Path) -> Path:
    """A run that was stopped, in another place than it was."""
    return Path(shutil.copytree(run_to_resume, tmp_path / "moved"))


def test_a_moved_run_knows_its_best_checkpoint_and_a_finished_one_says_so(copied: Path) -> None:
    best = copied / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    content = read_checkpoint(copied / "checkpoints" / "last.ckpt")
    content["callbacks"]["Checkpoints"]["best"] = 1.0  # which nothing beats
    write_checkpoint(content, copied / "checkpoints" / "last.ckpt")
    assert go_on(copied).folder == copied
    assert best.read_bytes() == before
    with pytest.raises(ValueError, match=r"moved has finished, see .*metrics\.json; to train longer, start another"):
        train(TrainConfig(resume=str(copied)))
    shutil.rmtree(copied / "report")  # as if it had been stopped while it wrote its report
    assert (train(TrainConfig(resume=str(copied))).folder / "report" / "metrics.json").is_file()


def damage(copied: Path) -> None:
    file = copied / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-1000])


def exchange(copied: Path) -> None:
    torch.save({"state_dict": {}}, copied / "checkpoints" / "last.ckpt")


def change_config(copied: Path, old: str, new: str) -> None:
    file = copied / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            damage,
            ValueError,
            r"last\.ckpt is damaged .*: this run cannot go on, start it again; .*best\.ckpt can still",
        ),
        (exchange, ValueError, r"last\.ckpt is not a checkpoint of srtod's training"),
        (lambda run: (run / "config.yaml").unlink(), FileNotFoundError, r"moved is not the folder of a run: it has no"),
        (lambda run: change_config(run, "channels: 16", "channels: 32"), ValueError, r"its channels is 16, .* say 32"),
        (lambda run: change_config(run, "retinanet", "fcos"), ValueError, r"its name is 'retinanet', .* say 'fcos'"),
        (lambda run: change_config(run, "epochs: 2", "epochz: 2"), ValueError, r"unknown option 'epochz'"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_with_its_reason(
    tmp_path: Path, copied: Path, spoil: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    spoil(copied)
    before = sorted(copied.rglob("*"))
    with pytest.raises(error, match=message):
        train(TrainConfig(resume=str(copied)))
    assert sorted(copied.rglob("*")) == before


def test_a_run_of_other_classes_is_refused(copied: Path) -> None:
    content = read_checkpoint(copied / "checkpoints" / "last.ckpt")
    content["srtod"]["class_names"] = ["bird"]
    write_checkpoint(content, copied / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"its class_names is \['bird'\], .* say \['drone'\]"):
        train(TrainConfig(resume=str(copied)))


@pytest.mark.parametrize("absent", ["callbacks", "random_state", "global_step", "optimizer_states", "loops"])
def test_a_checkpoint_of_an_earlier_version_is_told(copied: Path, absent: str) -> None:
    content = read_checkpoint(copied / "checkpoints" / "last.ckpt")
    del content[absent]
    content["srtod"]["version"] = "0.0.1"
    write_checkpoint(content, copied / "checkpoints" / "last.ckpt")
    with pytest.raises(
        ValueError, match=rf"last\.ckpt, written by srtod 0\.0\.1, does not hold .*\(no '{absent}'\); install srtod 0"
    ):
        train(TrainConfig(resume=str(copied)))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (
            ("optimizer_states", 0, "state", 0, "momentum_buffer"),
            torch.zeros(2),
            r"must be a tensor \[.*, got .* \[2\]",
        ),
        (("optimizer_states", 0, "state", 9999), {}, r"is of \d+ parameters, and has 9999"),
        (("optimizer_states", 0, "param_groups", 0, "momentum"), 0.5, r"momentum of group 0 .* is 0\.5, not 0\.9"),
        (("lr_schedulers", 0, "step"), 1, r"lr_schedulers\[0\]\['step'\] is unknown"),
        (("loops", "fit_loop", "epoch_progress", "current", "completed"), 7, "epoch is 0, the loops count 7, and"),
        (("callbacks", "UnreadableImages", "training"), [99], "IndexError: index 99 is out of bounds"),
        (("random_state", 0, "torch"), torch.zeros(5056, dtype=torch.uint8), "RuntimeError: .* mt19937"),
        (("pytorch-lightning_version",), "newest", "InvalidVersion: Invalid version: 'newest'"),
        (("pytorch-lightning_version",), torch.zeros(2), "'pytorch-lightning_version' is no str"),
    ],
)
def test_a_checkpoint_that_was_edited_is_refused_before_the_run_is_changed(
    copied: Path, path: tuple[Any, ...], value: Any, reason: str
) -> None:
    last = copied / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    *above, key = path
    place = content
    for name in above:
        place = place[name]
    place[key] = value
    torch.save(content, last)
    before = files(copied)
    with pytest.raises(
        ValueError, match=rf"last\.ckpt, .* does not hold what srtod .*\(.*{reason}.*\); .*start the run"
    ):
        train(TrainConfig(resume=str(copied)))
    assert files(copied) == before


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_options_that_differ_from_the_run_are_refused(copied: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs is 9, but the run in .*moved has 2 and goes on as it was"):
        train(TrainConfig(resume=str(copied), epochs=9))


@pytest.fixture(scope="module")
def coco_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 4 images in the folder `data` beside it, which was stopped; its paths were given relative to them."""
    folder = tmp_path_factory.mktemp("runs")
    swarm = SwarmDataset(4, (128, 128), seed=0)
    (folder / "data").mkdir()
    for index, image in enumerate(swarm.ground_truth["images"]):
        pixels = (swarm[index][0] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "data" / f"{image['id']}.png")
        image["file_name"] = f"{image['id']}.png"
    (folder / "data" / "all.json").write_text(json.dumps(swarm.ground_truth))
    data = DataConfig(train_json="data/all.json", train_images="data", test_json="data/all.json", workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stopped(folder, replace(PLAIN, data=data, accumulate=1, panels=3, early_stop=None), step=3)
    return folder


def test_a_run_goes_on_from_another_folder_with_other_processes_and_its_data_elsewhere(
    coco_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(coco_run, tmp_path / "moved"))
    monkeypatch.chdir(tmp_path)
    opened = with_saved_options(TrainConfig(resume=str(moved / "run")))
    assert opened.data.train_json == str(coco_run / "data" / "all.json")
    assert opened.data.workers == 1
    elsewhere = {name: str(moved / "data" / "all.json") for name in ("train_json", "test_json")}
    data = DataConfig(**elsewhere, train_images=str(moved / "data"))
    changed = with_saved_options(
        replace(TrainConfig.from_dict({"recompute": False}), data=data, resume=str(moved / "run"), threads=2)
    )
    recompute = changed.model.self_reconstruction_options.recompute
    assert (changed.data, changed.threads, recompute) == (
        replace(data, workers=1),
        2,
        False,
    )
    # All of it, as from the command line, and the default typed.
    whole = with_saved_options(replace(opened, data=replace(data, workers=0), panels=12))
    assert (whole.data, whole.panels) == (data, 12)
    keeping = TrainConfig.from_dict(opened.as_dict() | {"recompute": False})
    keeping = replace(keeping, data=replace(data, workers=0))
    assert (train(keeping).folder / "report" / "metrics.json").is_file()


def fewer_images(content: dict[str, Any]) -> None:
    gone = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone]


def other_box(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][0] += 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [(fewer_images, "it has 3 images in place of 4"), (other_box, "it has other images or boxes")],
)
def test_a_run_whose_data_changed_is_refused(
    coco_run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads((coco_run / "data" / "all.json").read_text())
    change(content)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    for option, kind in (("train_json", "training"), ("test_json", "test")):
        saved = with_saved_options(TrainConfig(resume=str(coco_run / "run")))
        config = TrainConfig.from_dict(saved.as_dict() | {option: str(changed)})
        with pytest.raises(ValueError, match=rf"^the {kind} set has changed since .*last\.ckpt was saved: {message}; "):
            train(config)


def test_slurm_starts_a_job_again_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    folder = stopped(tmp_path, replace(PLAIN, early_stop=None))
    assert folder.name == "run"
    assert requeued_run(tmp_path / "run") is None  # another job, which asks for the same folder
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with monkeypatch.context() as patch:
        patch.setattr("srtod.engine.training.DetectionModule", stop := Mock(side_effect=StoppedError))
        with pytest.raises(StoppedError):
            train(replace(PLAIN, early_stop=None, output=str(tmp_path / "run")))
    stop.assert_called_once_with(read_run(tmp_path / "run-2"), ["drone"], [1])  # with all that the job set
    assert train(replace(PLAIN, early_stop=None, output=str(tmp_path / "run"))).folder == tmp_path / "run-2"
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert requeued_run(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"data": DataConfig(train_json="absent.json", train_images=".", test_json="t.json")},
            FileNotFoundError,
            "absent",
        ),
        ({"model": ModelConfig(weights="absent.pth")}, ValueError, "absent.pth"),
    ],
)
def test_bad_input_leaves_no_folder(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(replace(START, output=str(tmp_path / "run"), **options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("was_there", [False, True])
def test_a_run_that_fails_on_its_data_leaves_no_folder(coco_run: Path, tmp_path: Path, was_there: bool) -> None:
    data = Path(shutil.copytree(coco_run / "data", tmp_path / "data"))
    for image in data.glob("*.png"):
        image.write_bytes(image.read_bytes()[:-500])
    config = DataConfig(train_json=str(data / "all.json"), train_images=str(data), test_json=str(data / "all.json"))
    if was_there:
        (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="cannot be read as an image"):
        train(replace(START, data=config, output=str(tmp_path / "run")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"] + ["run"] * was_there
    assert not was_there or not list((tmp_path / "run").iterdir())


def test_a_run_that_fails_after_its_first_checkpoint_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = DetectionModule.training_step

    def failing(self: DetectionModule, *arguments: Any) -> Any:
        if (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            raise OSError(5, "Input/output error", "a.jpg")
        return step(self, *arguments)

    monkeypatch.setattr(DetectionModule, "training_step", failing)
    with pytest.raises(OSError, match=r"Input/output error: 'a\.jpg'"):
        train(replace(PLAIN, output=str(tmp_path / "run")))
    assert (tmp_path / "run" / "config.yaml").is_file()


LOCKED = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
time.sleep(60)
"""


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", LOCKED, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        yield
        other.kill()


def test_a_run_is_trained_by_one_process_at_a_time(copied: Path) -> None:
    left = copied / "checkpoints" / ".last.ckpt.0123abcd.part"  # of a process that was killed
    left.touch()
    with locked_by_another(copied / "lock"):
        with pytest.raises(ValueError, match=r"another process trains the run in .*moved; wait until it has ended, or"):
            train(TrainConfig(resume=str(copied)))
        assert left.exists()
    train(TrainConfig(resume=str(copied)))
    assert not left.exists()


def test_a_folder_is_taken_if_it_is_free(tmp_path: Path) -> None:
    for name in ("run", "run-2", "run-4"):
        (tmp_path / name).mkdir()
    inode = (tmp_path / "run").stat().st_ino  # as of a folder that is mounted
    (tmp_path / "run-3").touch()
    with ExitStack() as runs:
        first = runs.enter_context(new_folder(tmp_path / "run", START))
        assert (first.path, first.path.stat().st_ino) == (tmp_path / "run", inode)
        with locked_by_another(tmp_path / "run-2" / "lock"):  # by one that has begun at the same moment
            assert runs.enter_context(new_folder(tmp_path / "run", START)).path == tmp_path / "run-4"
        assert runs.enter_context(new_folder(tmp_path / "run", START)).path == tmp_path / "run-2"
        assert runs.enter_context(new_folder(tmp_path / "run", START)).path == tmp_path / "run-5"


def test_a_full_disk_leaves_no_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(yaml, "safe_dump", full)
    with pytest.raises(OSError, match=r"r2 cannot be made \(No space left on device\); choose another output$"):
        train(replace(START, output=str(tmp_path / "r2")))
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/run cannot be made \(Not a directory\); choose another output"):
        train(replace(START, output=str(tmp_path / "file" / "run")))


def test_the_anchor_scale_is_fitted_to_the_training_set_printed_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(START.model, anchor_scale="auto", self_reconstruction=False)
    fitted = train(replace(START, model=model, output=str(tmp_path / "run")))
    scale = yaml.safe_load((fitted.folder / "config.yaml").read_text())["anchor_scale"]
    assert 1 <= scale <= 4  # the swarm's drones are 3 to 16 px, at strides from 4
    assert f"anchor scale {scale:g} fits the training set best" in capsys.readouterr().out
    detector = load_detector(fitted.folder / "checkpoints" / "last.ckpt").detector
    assert detector.head.rpn.anchor_generator.sizes[0] == (4 * scale,)  # type: ignore[union-attr]


@pytest.mark.parametrize("detector", ["fcos", "rfla"])
def test_anchors_without_a_scale_cannot_be_fitted(tmp_path: Path, detector: str) -> None:
    model = replace(START.model, detector=detector, anchor_scale="auto")
    with pytest.raises(ValueError, match=f"needs a detector whose anchors have a scale .*, got '{detector}'"):
        train(replace(START, model=model, output=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_more_objects_than_detections_are_warned_of_once(tmp_path: Path) -> None:
    model = replace(START.model, detections_per_image=45)
    config, data = replace(START, model=model, output=str(tmp_path / "run")), DetectionData(START.data, START.seed)
    with pytest.warns(UserWarning, match="hold more objects than") as warned, Run.open(config, data):
        assert not (tmp_path / "run").exists()
    [message] = [str(warning.message) for warning in warned if "hold more objects" in str(warning.message)]
    assert message == (
        "6 of 10 training images and 1 of 2 test images hold more objects than the 45 detections an image may have, up "
        "to 60: the rest can never be found; raise detections_per_image"
    )


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(OSError, match=r"run cannot be made \(Permission denied\); choose another output"):
        train(replace(START, output=str(tmp_path / "run")))


if __name__ == "__main__":
    main()
