"""The command `srtod`: runs the commands of the package, each of which is a module beside this one."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import srtod
from srtod._support.cli import run
from srtod._support.suggestions import did_you_mean

USAGE = """usage: srtod COMMAND [arguments]

{about}

commands:
{commands}

`srtod COMMAND --help` tells more of a command. `srtod --version` prints the version."""


def commands() -> list[str]:
    """The commands: the modules in `srtod/` whose names begin with a letter."""
    return [module.name for module in iter_modules(srtod.__path__) if not (module.ispkg or module.name.startswith("_"))]


def describe(command: str) -> str:
    """What a command does: the first line of its module, which is read and not imported."""
    spec = find_spec(f"srtod.{command}")
    source = spec.loader.get_source(spec.name)  # type: ignore[union-attr]
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def main() -> None:
    """Runs the command line of this process."""
    run(_main)


def _main() -> None:
    # `sys.argv` stays as it is: processes that a command starts, as training on several GPUs does, begin with it too.
    command, *arguments = sys.argv[1:] or [""]
    known = commands()
    if command in ("", "-h", "--help"):
        width = max(map(len, known))
        lines = "\n".join(f"  {name:{width}}  {describe(name)}" for name in known)
        print(USAGE.format(about=srtod.__doc__, commands=lines), file=sys.stdout if command else sys.stderr)
        raise SystemExit(0 if command else 2)
    if command == "--version":
        print(f"srtod {srtod.__version__}")
        return
    if command not in known:
        raise ValueError(f"unknown command {command}; {did_you_mean(command, known) or 'srtod --help lists them all'}")
    import_module(f"srtod.{command}").main(arguments, f"srtod {command}")


if __name__ == "__main__":
    main()
