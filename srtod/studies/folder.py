"""The folder of a study and those of its runs: what lies where, and what state a run is in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from srtod._support.files import replacing
from srtod._support.locks import locked
from srtod._version import __version__
from srtod.engine.config import TrainConfig
from srtod.engine.report import source_commit
from srtod.engine.run import CHANGEABLE, PATHS

from .definition import Plan, Study

__all__ = ["CODE", "RunFolder", "State", "StudyFolder", "code_version", "planned", "portable"]

CODE = ("srtod", "csrc")
"""What of a checkout makes the numbers of a run: commits that leave it as it is do not count."""

State: TypeAlias = Literal["new", "stopped", "running", "done", "failed"]


def code_version() -> dict[str, str | None]:
    """What code runs: the version, and the commit of the checkout that changed it last."""
    return {"version": __version__, "commit": source_commit(*CODE)}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    plan.json    what it is to be, but for where files lie, and the code that it began with
    training/    the folder that `srtod.engine.train` writes
    log.txt      what it printed, over all attempts
    spent.json   the time that it took so far
    run.json     what came of it, once it has finished or failed
    lock         locked by the process that trains it
    """

    path: Path

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def state(self) -> State:
        return "running" if self.is_locked else self.state_on_disk

    @property
    def state_on_disk(self) -> State:
        """The state, whoever may train the run now."""
        if (record := self.read("run")) is not None:
            return record["status"]
        return "stopped" if (self.path / "plan.json").is_file() else "new"

    @property
    def is_locked(self) -> bool:
        """Whether a process, another one than this, trains the run."""
        if not self.lock.is_file():
            return False
        with locked(self.lock) as free:
            return not free

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of `<name>.json`, None without it. Options that came after it was written have their defaults.

        Raises:
            ValueError: if it is damaged.
        """
        path = self.path / f"{name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); remove the folder {self.path}, and the run starts anew"
            ) from None
        if "options" in content:
            content["options"] = portable(json.loads(json.dumps(TrainConfig().as_dict()))) | content["options"]
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes `<name>.json`, whole or not at all."""
        with replacing(self.path / f"{name}.json") as file:
            json.dump(content, file, indent=2)
            file.write("\n")

    def forget(self, name: str) -> None:
        """Removes `<name>.json`, if it is there."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def check_plan(self, plan: Mapping[str, Any], *, allow_commits: bool) -> None:
        """Checks that what is in the folder is of this plan, see `planned`.

        Raises:
            ValueError: if it is of another one, or of other code.
        """
        before = self.read("plan")
        if before is None:
            return
        for name in ("control", "version", "commit"):
            found, wanted = before[name], plan[name]
            if found == wanted or (allow_commits and name != "control"):
                continue
            cure = (
                ""
                if name == "control"
                else "run the code of then, or pass --allow-commits, which summary.md will say; "
            )
            raise ValueError(
                f"{self.path} was made with {name} {found}, and now it is {wanted}; {cure}or choose another --output"
            )
        options = portable(plan["options"])
        for name in sorted(before["options"].keys() | options.keys()):
            found, wanted = before["options"].get(name), options.get(name)
            if name not in CHANGEABLE and found != wanted:
                raise ValueError(
                    f"{self.path} was made with {name} {found}, and the study says {wanted}; put it back, or choose "
                    f"another --output"
                )


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study: `study.json`, the runs in `runs/<data set>/<variant>/seed_<seed>`, and the tables."""

    path: Path

    def open(self, study: Study) -> None:
        """Makes the folder, or checks that it is the study's.

        Raises:
            OSError: if it cannot be made.
            ValueError: if it is of something else.
        """
        place = self.path / "study.json"
        own = {"name": study.name}
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = None
        except ValueError:
            found = {"name": "a damaged file"}
        if found is not None and found != own:
            raise ValueError(
                f"{self.path} is the folder of another study ({found.get('name')}), and this one is {study.name}; "
                f"choose another --output"
            )
        if found is None:
            with suppress(FileNotFoundError):
                if any(self.path.iterdir()):
                    raise ValueError(
                        f"{self.path} is not the folder of a study; choose another --output, a new or an empty one"
                    )
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(place) as file:
                json.dump(own, file)

    def run(self, plan: Plan) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / "runs" / plan.name)

    def runs(self) -> list[RunFolder]:
        """The folders of all runs that were started."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob("runs/*/*/*/plan.json"))]


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Training options without what another machine has elsewhere: results may be published."""
    weights = options["weights"]
    return {name: value for name, value in options.items() if name not in (*PATHS, "output", "resume")} | {
        "weights": None if weights is None else Path(weights).name
    }


def planned(study: Study, plan: Plan) -> dict[str, Any]:
    """A run as its process is told; `plan.json` holds it with `portable` options."""
    content = {
        "study": study.name,
        "dataset": plan.dataset,
        "variant": plan.variant,
        "seed": plan.seed,
        "control": plan.control,
        "options": plan.config.as_dict(),
        **code_version(),
    }
    return json.loads(json.dumps(content))  # tuples become lists, as they will be read
