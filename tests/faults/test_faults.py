"""A full or broken disk, wherever srtod writes: one sentence, nothing half-written, and nothing lost.

`faults.c` stands between Python and the C library, and so meets every write of every library. `driver.py` repeats each
command line with a fault at another call.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

import srtod
from srtod._support.folders import is_leftover
from srtod.models.checkpoint import read_checkpoint
from srtod.studies.definition import read_study
from srtod.studies.folder import StudyFolder, planned

HERE = Path(__file__).parent
FULL, BROKEN = errno.ENOSPC, errno.EIO

CASES = pytest.mark.parametrize(
    ("error", "at_most"),
    [(FULL, 2), pytest.param(FULL, None, marks=pytest.mark.slow), pytest.param(BROKEN, 6, marks=pytest.mark.slow)],
    ids=["quick", "full", "broken"],
)
"""Some faults, every one, and some of another kind: what is done about both is the same."""

TRAINING = ["--detector", "retinanet", "--channels", "16", "--no-self-reconstruction", "--swarm-images", "4"]
TRAINING += ["--swarm-size", "128", "--epochs", "2", "--panels", "1", "--accelerator", "cpu", "--threads", "1"]

STUDY = """
name: small
seeds: [0]
options: {epochs: 1, accelerator: cpu, channels: 16, swarm_images: 4, swarm_size: 128, panels: 0}
datasets:
  easy: {}
variants:
  plain: {self_reconstruction: false, detector: retinanet}
  other: {self_reconstruction: false, detector: fcos}
"""


class Attempt(NamedTuple):
    """What came of a run with a fault at `site`."""

    folder: Path
    status: int
    said: str
    site: str = ""


Attempts = Callable[..., dict[str, list[Attempt]]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture
def attempts(library: Path, tmp_path: Path) -> Attempts:
    """Runs command lines, by name, without and with faults."""

    def attempts(tasks: dict[str, tuple[str, list[str], Path]], **options: Any) -> dict[str, list[Attempt]]:
        given = {
            name: {"program": program, "arguments": arguments, "start": str(start), "base": str(tmp_path / name)}
            | options
            | {"lasting": options["error"] == FULL}
            for name, (program, arguments, start) in tasks.items()
        }
        environment = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        environment["PYTHONPATH"] = str(Path(srtod.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, HERE / "driver.py"],
            input=json.dumps(given),
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return {
            name: [Attempt(**{**result, "folder": Path(result["folder"])}) for result in results]
            for name, results in json.loads(done.stdout).items()
        }

    return attempts


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path) -> Path:
    """A folder with what the command lines read, and what they wrote before."""
    folder = tmp_path / "start"
    (folder / "images").mkdir(parents=True)
    (folder / "a.ckpt").symlink_to(checkpoint)
    for number in (1, 2):
        Image.new("RGB", (64, 64)).save(folder / "images" / f"{number}.png")
    image = {"id": 1, "file_name": "1.png", "width": 64, "height": 64}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 9, 9], "area": 81, "iscrowd": 0}
    truth = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "drone"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps([{key: box[key] for key in list(box)[1:4]} | {"score": 0.5}]))
    (folder / "yolo" / "labels").mkdir(parents=True)
    shutil.copytree(folder / "images", folder / "yolo" / "images")
    (folder / "yolo" / "labels" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "yolo" / "data.yaml").write_text("train: images\nval: images\nnames: [drone]\n")
    for name in ("metrics.json", "curves.png", "coco.json"):
        (folder / name).write_text("before")
    return folder


def write_clip(path: Path) -> None:
    """A video of two black frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        container.mux(stream.encode())


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder, in whose content it is called HERE."""
    own = str(folder).encode()
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(own, b"HERE")
        for path in folder.rglob("*")
        if path.is_file()
    }


def check(attempt: Attempt) -> None:
    """It has ended with one sentence, and left nothing half-written."""
    about = f"{attempt.site}: {attempt.said[-3000:]}"
    assert attempt.status in (0, 1, 2), about  # 1: what `inspect` found
    assert "Traceback" not in attempt.said, about
    if attempt.status == 2:
        last = attempt.said.strip().splitlines()[-1].strip()
        assert last.startswith("error: "), about
        assert "No space left on device" in last or "Input/output error" in last, about
        assert str(attempt.folder) in last, about  # what could not be written
    else:
        assert attempt.site.startswith("fsync ") or not attempt.site, about  # of names alone
    assert not [path for path in attempt.folder.rglob("*") if is_leftover(path)], about


@CASES
def test_what_the_command_lines_write_is_there_as_a_whole_or_as_it_was(
    attempts: Attempts, start: Path, error: int, at_most: int | None
) -> None:
    predict = ["HERE/a.ckpt", "HERE/images", "--device", "cpu", "--threads", "1"]
    evaluate = ["HERE/truth.json", "HERE/found.json", "--json", "HERE/metrics.json", "--plot", "HERE/curves.png"]
    tasks = {
        "new": ("predict", [*predict, "HERE/out"], start),
        "evaluate": ("evaluate", [*evaluate, "--overwrite"], start),
        "convert": ("convert", ["yolo", "HERE/yolo", "HERE/coco.json", "--split", "train", "--overwrite"], start),
        "inspect": ("inspect", ["HERE/yolo", "--plot", "HERE/sizes.png", "--json", "HERE/problems.json"], start),
    }
    if find_spec("av") is not None:  # elsewhere there are no videos
        write_clip(start / "clip.avi")
        tasks["video"] = ("predict", ["HERE/a.ckpt", "HERE/clip.avi", "HERE/film", *predict[2:]], start)
    done = attempts(tasks, error=error, at_most=at_most)
    again = done["new"][0].folder  # which holds predictions
    done |= attempts(
        {"again": ("predict", [*predict, "HERE/out", "--overwrite", "--figures"], again)},
        error=error,
        at_most=at_most,
    )
    for name, (whole, *faulty) in done.items():
        assert (whole.status, bool(faulty)) == (int(name == "inspect"), True), whole.said
        before = tree(again if name == "again" else start)
        after = tree(whole.folder)
        assert before != after
        for attempt in faulty:
            check(attempt)
            found = tree(attempt.folder)
            if name in ("evaluate", "inspect") and attempt.status == 2:  # two files, each of which is whole
                half = [file for file, value in found.items() if value not in (before.get(file), after[file])]
                assert not half, attempt
                assert before.keys() <= found.keys()
            else:
                assert found == (before if attempt.status == 2 else after), attempt


@CASES
def test_a_training_leaves_whole_checkpoints_or_nothing(
    attempts: Attempts, tmp_path: Path, error: int, at_most: int | None
) -> None:
    (tmp_path / "empty").mkdir()
    tasks = {"train": ("train", [*TRAINING, "--output", "HERE/run"], tmp_path / "empty")}
    whole, *faulty = attempts(tasks, error=error, at_most=at_most)["train"]
    assert (whole.status, bool(faulty)) == (0, True), whole.said
    expected = set(tree(whole.folder / "run" / "report"))
    for attempt in faulty:
        check(attempt)
        run = attempt.folder / "run"
        checkpoints = list(run.glob("checkpoints/*.ckpt"))
        assert run.exists() == bool(checkpoints), attempt
        for checkpoint in checkpoints:
            read_checkpoint(checkpoint)
        for detections in run.glob("checkpoints/*.pt"):
            torch.load(detections, weights_only=True)
        assert set(tree(run / "report")) in (set(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, BROKEN], ids=["full", "broken"])
def test_a_run_of_a_study_and_its_tables(attempts: Attempts, tmp_path: Path, error: int) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "study.yaml").write_text(STUDY)
    study = read_study(start / "study.yaml")
    plan = study.plans(["plain"])[0]
    StudyFolder(start / "out").open(study)
    worker = [f"HERE/out/runs/{plan.name}", json.dumps(planned(study, plan))]
    whole, *faulty = attempts({"worker": ("worker", worker, start)}, error=error, at_most=25)["worker"]
    assert whole.status == 0, whole.said
    for attempt in faulty:
        assert attempt.status in (0, 1, 2), attempt
        folder = StudyFolder(attempt.folder / "out").run(plan)
        assert folder.state in ("new", "stopped", "failed", "done")
        if attempt.status == 0:
            assert folder.state == "done"
    tables = ["HERE/study.yaml", "--output", "HERE/out", "--summary", "--allow-commits"]
    done = attempts({"tables": ("study", tables, whole.folder)}, error=error, at_most=None)
    whole, *faulty = done["tables"]
    assert (whole.status, len(faulty) > 4) == (0, True), whole.said
    for attempt in faulty:
        check(attempt)
