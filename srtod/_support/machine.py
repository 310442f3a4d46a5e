"""What this machine is: its processor."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor"]


def processor() -> tuple[str, list[str]]:
    """The name of the processor and the instruction sets that it has, as Linux calls them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    supported = fields.get("flags") or fields.get("Features", "")  # of x86, of ARM
    return fields.get("model name", platform.machine()), supported.split()
