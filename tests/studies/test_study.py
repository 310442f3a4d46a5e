"""The command `srtod study`: what it says, and a small study from end to end."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from srtod.models.checkpoint import load_detector
from srtod.study import main

from .conftest import STUDY


def test_the_command_tells_what_was_wrong(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(STUDY))
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"):
        main([path, "--jobs", "0"])
    with pytest.raises(SystemExit):
        main([path, "--shard", "two"])
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ValueError, match="need SciPy, which is not installed; pip install scipy"):
        main([path])


def test_a_failed_run_makes_the_status_non_zero(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("srtod.studies.runs._command", lambda folder, threads: ["false"])
    selection = ["--only-variants", "plain", "--only-datasets", "easy", "--seeds", "0"]
    with pytest.raises(SystemExit) as end:
        main([str(write(STUDY)), "--output", str(tmp_path / "out"), *selection])
    assert end.value.code == 1
    assert "easy/plain/seed_0: ended with status 1; see" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_study_from_end_to_end(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Two variants are trained; one is killed on the way, and ends with the weights of an unbroken run."""
    text = STUDY.replace("seeds: [0, 1]", "seeds: [0]").replace("  hard: {swarm_kind: hard}\n", "")
    text = text.replace("epochs: 2", "epochs: 2, save_every: 1").replace("  sr_tod: {threshold: auto}\n", "")
    text = text.replace("control: oracle", "control: shuffled")
    path, out, unbroken = write(text), tmp_path / "out", tmp_path / "unbroken"
    main([str(path), "--output", str(unbroken)])
    place = out / "runs" / "easy" / "oracle" / "seed_0"
    with pytest.MonkeyPatch.context() as patch:

        def killed(folder: object, threads: int) -> list[str]:
            code = (
                "import os, sys\nfrom srtod.engine.callbacks.checkpoints import Checkpoints\n"
                "save, saves = Checkpoints._save, []\n"
                "def kill(self, *arguments):\n    save(self, *arguments)\n    saves.append(1)\n"
                "    if len(saves) == 3:\n        os.kill(os.getpid(), 9)\n"
                "Checkpoints._save = kill\nfrom srtod.studies.worker import main\nmain()"
            )
            return [sys.executable, "-c", code, str(folder.path), str(threads)]

        patch.setattr("srtod.studies.runs._command", killed)
        with pytest.raises(SystemExit):
            main([str(path), "--output", str(out), "--only-variants", "oracle"])
    assert json.loads((place / "run.json").read_text())["error"] == "killed by signal SIGKILL"
    main([str(path), "--output", str(out)])
    rows, expected = (list(csv.DictReader((folder / "runs.csv").open())) for folder in (out, unbroken))
    assert [(row["variant"], row["status"], row["AP"]) for row in rows] == [
        (row["variant"], row["status"], row["AP"]) for row in expected
    ]
    import torch

    checkpoint = "training/checkpoints/best.ckpt"
    ended, whole = (
        torch.load(folder / "runs/easy/oracle/seed_0" / checkpoint, weights_only=True) for folder in (out, unbroken)
    )
    assert all(torch.equal(value, whole["state_dict"][name]) for name, value in ended["state_dict"].items())
    with pytest.raises(ValueError, match=r"control: shuffled"):
        load_detector(place / checkpoint)
    load_detector(out / "runs/easy/plain/seed_0" / checkpoint)
    assert (out / "summary.png").is_file()
