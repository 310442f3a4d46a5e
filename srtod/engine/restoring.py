"""The checkpoint that a run goes on from: compared with what the run would save, before anything of it is changed.

Lightning and PyTorch restore most of it without a look, and would stumble over it later, in any way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from reprlib import repr as short
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.migration.utils import migrate_checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from srtod._support.errors import first_line, is_out_of_memory
from srtod._support.tensor_files import is_plain
from srtod._version import __version__
from srtod.models.checkpoint import DESCRIPTION, METRICS, read_checkpoint

from .callbacks.averaged_weights import AveragedWeights
from .callbacks.checkpoints import RANDOM_STATE, RandomState
from .data import DetectionData, steps_per_epoch
from .module import DetectionModule

__all__ = ["check_restorable", "read_last"]

VERSION = "pytorch-lightning_version"

NEEDED: dict[str, type] = {
    "callbacks": dict,
    METRICS: dict,
    RANDOM_STATE: list,
    "global_step": int,
    "epoch": int,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    VERSION: str,
}
"""What a checkpoint to go on from must hold beside the weights, by type."""

CHECKPOINTS = {"best": None, "finished": False, "data": {"training": (0, ""), "test": (0, "")}}
"""What it must hold of the callback of this name, by example."""

RATES = frozenset({"lr", "initial_lr"})
"""What of an optimizer's groups depends on more than the options."""

MOST = 2**63 - 1
"""The largest count."""


def read_last(path: Path) -> dict[str, Any]:
    """The content of `last.ckpt`, which holds all that a resume needs; `check_restorable` looks at it in depth.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or lacks something.
    """
    folder = path.parents[1]
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {path.name} to go on from; start the run again, with save_every if its epochs are long"
        )
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"{error}: this run cannot go on, start it again{_others(path)}") from error
    for name, kind in NEEDED.items():
        if not isinstance(content.get(name), kind):
            raise _refusal(path, content, f"no {name!r}" if name not in content else f"{name!r} is no {kind.__name__}")
    for difference in _differences(content["callbacks"].get("Checkpoints"), CHECKPOINTS, "callbacks['Checkpoints']"):
        raise _refusal(path, content, difference)
    return content


def check_restorable(path: Path, trainer: L.Trainer, module: DetectionModule, data: DetectionData) -> None:
    """Checks that a run can go on from a checkpoint to the end.

    Args:
        path: the checkpoint.
        trainer: the run's trainer, before it fits.
        module: what it trains.
        data: what it trains on.

    Raises:
        ValueError: if it cannot; says what is wrong.
    """
    content = read_last(path)
    trainer.datamodule, module.trainer = data, trainer  # type: ignore[attr-defined]  # as `fit` does
    try:
        migrate_checkpoint(content)
        difference = next(_problems(content, trainer, module, data), None)
    except Exception as error:  # where content was edited, Lightning and torch stumble over it in any way
        if is_out_of_memory(error):
            raise
        raise _refusal(path, content, f"{type(error).__name__}: {first_line(error)}") from error
    if difference is not None:
        raise _refusal(path, content, difference)


def _refusal(path: Path, content: Mapping[str, Any], reason: str) -> ValueError:
    now = {"srtod": __version__, "lightning": L.__version__}
    written = {"srtod": content[DESCRIPTION]["version"], "lightning": content.get(VERSION)}
    others = [f"{name} {was}" for name, was in written.items() if isinstance(was, str) and was != now[name]]
    cure = f"install {' and '.join(others)} to go on with it, or " if others else ""
    return ValueError(
        f"{path}, written by srtod {written['srtod']}, does not hold what srtod {__version__} needs to go on "
        f"({reason}); {cure}start the run again{_others(path)}"
    )


def _others(path: Path) -> str:
    """What the other checkpoints of the run are good for, if there are any."""
    others = [str(other) for other in path.parent.glob("*.ckpt") if other != path]
    return f"; {' and '.join(others)} can still be used by srtod.predict" if others else ""


def _problems(
    content: dict[str, Any], trainer: L.Trainer, module: DetectionModule, data: DetectionData
) -> Iterator[str]:
    weights, generators = module.state_dict(), RandomState.state(trainer)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # not declared there
    expected: dict[str, Any] = {
        "state_dict": weights,
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {callback.state_key: state for callback in callbacks if (state := callback.state_dict())},
        RANDOM_STATE: [generators] * trainer.world_size,
    }
    if any(isinstance(callback, AveragedWeights) for callback in callbacks):
        expected |= {"current_model_state": weights, "averaging_state": {"n_averaged": torch.tensor(0)}}
    if scaler := trainer.precision_plugin.state_dict():
        expected[type(trainer.precision_plugin).__qualname__] = scaler
    # The other loops are not restored, nor is what else there may be.
    found = {key: content[key] for key in expected if key in content}
    found["loops"] = {key: value for key, value in content["loops"].items() if key == "fit_loop"}
    yield from _differences(found, expected)

    for callback in callbacks:
        if callback.state_key in expected["callbacks"]:
            callback.load_state_dict(deepcopy(content["callbacks"][callback.state_key]))
    for state in content[RANDOM_STATE]:
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(state["torch"])
    trainer.fit_loop.load_state_dict(deepcopy(content["loops"]["fit_loop"]))
    epochs = module.config.epochs
    steps = epochs * steps_per_epoch(module.config, len(data.train_set))
    for name, count, most in (
        ("epoch", trainer.current_epoch, epochs - 1),
        ("global_step", trainer.global_step, steps),
    ):
        if content[name] != count or count > most:
            yield f"{name} is {short(content[name])}, the loops count {count}, and the run has at most {most}"

    made = module.configure_optimizers()
    if isinstance(made, Mapping):  # a module of somebody else may return other things
        schedule = made["lr_scheduler"]["scheduler"]  # type: ignore[index]
        yield from _differences(content["lr_schedulers"], [schedule.state_dict()], "lr_schedulers")
        schedule.load_state_dict(deepcopy(content["lr_schedulers"][0]))
        yield from _wrong_optimizer(content["optimizer_states"], made["optimizer"])


def _wrong_optimizer(states: Any, optimizer: Optimizer) -> Iterator[str]:
    """What is wrong with the states of a run's optimizers, of which there is one."""
    groups = optimizer.state_dict()["param_groups"]
    yield from _differences(
        [
            {**part, "state": {}} if isinstance(part, dict) and isinstance(part.get("state"), dict) else part
            for part in states
        ],
        [{"state": {}, "param_groups": groups}],
        "optimizer_states",
    )
    for number, (found, group) in enumerate(zip(states[0]["param_groups"], groups, strict=True)):
        for name in group.keys() - RATES:
            if found[name] != group[name]:
                yield f"{name} of group {number} in optimizer_states is {short(found[name])}, not {short(group[name])}"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_whole = _state_after_a_step(optimizer)
    for index, state in states[0]["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters):
            yield f"optimizer_states[0]['state'] is of {len(parameters)} parameters, and has {short(index)}"
        expected = {name: parameters[index] if whole else torch.tensor(0.0) for name, whole in is_whole.items()}
        yield from _differences(state, expected, f"optimizer_states[0]['state'][{index}]")


def _state_after_a_step(optimizer: Optimizer) -> dict[str, bool]:
    """The names of what such an optimizer keeps of a parameter, and whether each has the parameter's shape."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    other = type(optimizer)([{**optimizer.param_groups[0], "params": [parameter]}])  # type: ignore[call-arg]
    other.step()
    return {name: value.shape == parameter.shape for name, value in other.state[parameter].items()}


def _differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where something has other types, keys, lengths or shapes than expected. Numbers and text may be others."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            yield f"{where} must be a mapping, got {short(found)}"
        for key in expected.keys() - found.keys():
            yield f"no {_within(where, key)}"
        for key in found.keys() - expected.keys():
            yield f"{_within(where, key)} is unknown"
        for key, value in expected.items():
            yield from _differences(found[key], value, _within(where, key))
    elif isinstance(expected, list | tuple):
        if type(found) is not type(expected) or (expected and len(found) != len(expected)):
            yield f"{where} must be a {type(expected).__name__} of {len(expected)} values, got {short(found)}"
        for index, (one, other) in enumerate(zip(found, expected, strict=False)):  # of an empty one, any may be found
            yield from _differences(one, other, f"{where}[{index}]")
    elif not _fits(found, expected):
        got = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else short(found)
        yield f"{where} must be {_kind(expected)}, got {got}"


def _within(where: str, key: Any) -> str:
    return f"{where}[{str(key)[:100]!r}]" if where else str(key)


def _kind(expected: Any) -> str:
    if isinstance(expected, Tensor):
        return f"a tensor {list(expected.shape)} of finite numbers"
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    return kinds.get(type(expected), "none, a number or text")


def _fits(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or not is_plain(found) or found.shape != expected.shape:
            return False
        return found.is_floating_point() == expected.is_floating_point() and (
            bool(found.isfinite().all()) or not bool(expected.isfinite().all())
        )
    if expected is None:
        return found is None or isinstance(found, int | float | str)
    if type(expected) is int:
        return type(found) is int and 0 <= found <= MOST
    if type(expected) is float:
        return type(found) is float and (math.isfinite(found) or not math.isfinite(expected))
    return type(found) is type(expected)
