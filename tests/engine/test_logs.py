"""The loggers of a run: Weights & Biases, by a stand-in, and the rows that a resumed run keeps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import wandb as lightning_wandb
from PIL import Image

from srtod.engine.logs import check_wandb, make_loggers, wandb_logger

BINS = ("AP", "AP50", "AP75", "APvt", "APt", "APs", "APm")


def test_wandb_gets_scalars_and_pictures(watched: Any) -> None:
    run = watched.wandb
    assert {key: run.options[key] for key in ("project", "name", "dir")} == {
        "project": "drones",
        "name": "swarm-2",
        "dir": str(watched.folder / "logs"),
    }
    assert "mode" not in run.options  # so that WANDB_MODE decides
    assert {*BINS, "filter_share", "threshold_x255", "train/loss"} < {name for values in run.logged for name in values}
    panels = [values for values in run.logged if "panels/swarm_1_00000" in values]
    assert [values["trainer/global_step"] for values in panels] == [1, 2]
    [picture] = panels[0]["panels/swarm_1_00000"]
    assert isinstance(picture, Image.Image)
    assert sum("precision_recall" in values for values in run.logged) == 2


def test_without_wandb_asking_for_it_is_an_error_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", False)
    check_wandb(None)
    with pytest.raises(ValueError, match=r"is not installed; install it \(pip install wandb\) or leave wandb out"):
        check_wandb("drones")


def test_a_resumed_run_goes_on_in_the_same_place_at_wandb(tmp_path: Path, wandb_runs: list[Any]) -> None:
    check_wandb("drones")
    assert wandb_runs == []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        assert wandb_logger(tmp_path / name, "drones").experiment is wandb_runs[-1]
    first, again, other = (run.options["id"] for run in wandb_runs)
    assert first == again != other
    assert all(run.options["resume"] == "allow" for run in wandb_runs)


@pytest.mark.parametrize("first", [False, True])
def test_only_the_first_process_takes_rows_out_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setattr("srtod.engine.logs.is_main_process", lambda: first)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("step,AP\n1,0.1\n2,0.2\n")
    make_loggers(tmp_path, step=2)
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == (["1"] if first else ["1", "2"])
