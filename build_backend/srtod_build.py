"""PEP 517 backend: setuptools', building against the torch that is already installed.

pip builds in an isolated environment that hides the user's packages; torch as a plain build requirement would be
downloaded there a second time, and in another version perhaps. So the user's own interpreter is asked for its torch: if
it is new enough, its import path is appended to the build's, and only otherwise does torch become a build requirement.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from srtod_build_common import require_cxx_compiler, say

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_SETUPTOOLS = 77
OLDEST_TORCH = (2, 11)
PROBE = """
import importlib.metadata, json, sys
print(json.dumps([sys.version_info[:2], importlib.metadata.version("torch"), sys.path]))
"""

if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"[srtod] setuptools {setuptools.__version__} is too old for a build without isolation: "
        f"pip install --upgrade 'setuptools>={OLDEST_SETUPTOOLS}' ninja"
    )


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def build_wheel(directory: str, config_settings: dict | None = None, metadata_directory: str | None = None) -> str:
    _reuse_installed_torch()
    return build_meta.build_wheel(directory, config_settings, metadata_directory)


def build_editable(directory: str, config_settings: dict | None = None, metadata_directory: str | None = None) -> str:
    _reuse_installed_torch()
    # A .pth file. setuptools' default, a finder, comes after the import path, where the folder around a clone named
    # srtod makes the clone a namespace package.
    settings = {"editable_mode": "compat", **(config_settings or {})}
    return build_meta.build_editable(directory, settings, metadata_directory)


def _torch_requirement() -> list[str]:
    if os.environ.get("SRTOD_BUILD") == "0" or _path_with_torch():
        return []
    require_cxx_compiler()  # before gigabytes are fetched
    say(
        "torch is not installed: pip fetches it for the build, which takes minutes, and unpacks it once more at the "
        "end; `pip install torch` before this command saves that"
    )
    return ["torch>=" + ".".join(map(str, OLDEST_TORCH))]


def _reuse_installed_torch() -> None:
    # At the end: the isolated environment's own setuptools and ninja come first.
    sys.path += [entry for entry in _path_with_torch() if entry not in sys.path]


def _path_with_torch() -> list[str]:
    """The import path of the user's environment if it has a usable torch, else nothing.

    With pip, `sys.executable` is the user's interpreter (the isolation is in PYTHONPATH, which -E ignores). `python -m
    build` makes an interpreter of its own, so the activated environment's is asked too.
    """
    environments = [os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    for python in [sys.executable, *(str(Path(prefix, "bin", "python")) for prefix in environments)]:
        try:
            answer = subprocess.run([python, "-E", "-c", PROBE], capture_output=True, check=True, cwd=os.sep).stdout
        except (OSError, subprocess.CalledProcessError):
            continue
        version, torch, path = json.loads(answer)
        if tuple(version) == sys.version_info[:2] and tuple(map(int, torch.split(".")[:2])) >= OLDEST_TORCH:
            return [entry for entry in path if entry]
    return []
