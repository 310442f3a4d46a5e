"""What the machine code of DGFE's kernels says about their speed, without a GPU; and a prediction of their times.

python scripts/kernel_report.py              # compiles csrc/cuda for an H100 and prints two tables
python scripts/kernel_report.py --write      # also keeps the first one, which a slow test compares later kernels with

It needs nvcc, cuobjdump (of the CUDA toolkit or of triton) and torch's headers. The kernels are those for bfloat16.

The hot path of a kernel is the way of one thread once through its innermost loop with the most 16-byte loads; in a
kernel without such a loop it is the way through the kernel. Where the path forks, the side with 16-byte accesses
counts, not that for odd sizes, and then the side with more arithmetic. Kernels that scale have both: a loop for NCHW,
none for channels_last. Loads in flight are the most 16-byte loads from global memory that a thread has waiting there.

The model of a launch is the longest of three times, plus what is serial:

    memory    bytes / 3.0 TB/s, what an H100 copies
    issue     warp instructions / (132 multiprocessors x 4 a cycle x 1.755 GHz x 0.8)
    latency   bytes read / (bytes in flight on all multiprocessors / 0.8 us)
    serial    3 us for the first launch of a pass, 1.5 us for a dependent one, and 0.25 us for each round trip to the
              L2 cache, with its barrier, that the launch's last block makes while no other works

Round trips are counted in the source. Warps are taken to overlap, and P2 not to be found in the L2 cache. A prediction
may be off by a fifth. It does not replace a measurement.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "tests/packaging/kernel_figures.json"
SOURCES = ("dgfe", "dgfe_one_launch", "dgfe_backward", "channel_reweighting")
SCALING = ("scale_kernel", "gradient_kernel")

# --- machine code -----------------------------------------------------------------------------------------------------

WIDE = re.compile(r"\b(LDG|STG|LDS|STS|LD|ST)\.\S*128")
WIDE_LOAD = re.compile(r"\bLDG\.\S*128\S* R(\d+)")
NARROW = re.compile(r"\b(LDG|STG)\.\S*(U8|U16|S16)")
ARITHMETIC = re.compile(r"\b(F|H|D)(FMA|ADD|MUL|ADD2|MUL2|FMA2|MNMX|MNMX2)\b|\b(SHFL|MUFU|VIMNMX)\b")
SELECTION = re.compile(r"\bFSEL\b")
BRANCH = re.compile(r"\bBRA(?:\.\S+)? (?:!?U?P\S+, )*`?\(?(0x[0-9a-f]+)")
REGISTER = re.compile(r"\bR(\d+)(\.64)?")


@dataclass(frozen=True)
class Instruction:
    """One line of `cuobjdump -sass`."""

    address: int
    text: str  # with its predicate

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = BRANCH.search(self.text)
        return int(found[1], 16) if found else None

    @property
    def always(self) -> bool:
        return not self.text.startswith("@") and not re.search(r"\bBRA\.\S+ |\bBRA U?!?P", self.text)

    @property
    def ends(self) -> bool:
        return re.search(r"\b(EXIT|RET|BRX)\b", self.text) is not None and not self.text.startswith("@")


@dataclass
class Code:
    """The instructions of one kernel, and their basic blocks."""

    instructions: list[Instruction]

    @cached_property
    def blocks(self) -> list[list[Instruction]]:
        starts = {self.instructions[0].address}
        for k, one in enumerate(self.instructions):
            if one.target is not None or one.ends:
                if one.target is not None:
                    starts.add(one.target)
                if k + 1 < len(self.instructions):
                    starts.add(self.instructions[k + 1].address)
        blocks: list[list[Instruction]] = []
        for one in self.instructions:
            if one.address in starts:
                blocks.append([])
            blocks[-1].append(one)
        return blocks

    @cached_property
    def next(self) -> list[list[int]]:
        """The blocks that may follow each block."""
        index = {block[0].address: k for k, block in enumerate(self.blocks)}
        result = []
        for k, block in enumerate(self.blocks):
            last, follows = block[-1], []
            if last.target is not None and last.target in index:
                follows.append(index[last.target])
            goes_on = not last.ends and not (last.target is not None and last.always)
            if goes_on and k + 1 < len(self.blocks):
                follows.append(k + 1)
            result.append(follows)
        return result

    @cached_property
    def loops(self) -> list[tuple[int, set[int]]]:
        """Head and blocks of each natural loop."""
        before: list[list[int]] = [[] for _ in self.blocks]
        for k, follows in enumerate(self.next):
            for other in follows:
                before[other].append(k)
        loops: dict[int, set[int]] = {}
        for end, follows in enumerate(self.next):
            for head in (h for h in follows if h <= end):
                members, todo = {head, end}, [end]
                while todo:
                    for k in before[todo.pop()]:
                        if k not in members and k >= head:
                            members.add(k)
                            todo.append(k)
                loops.setdefault(head, set()).update(members)
        return sorted(loops.items(), key=lambda loop: len(loop[1]))

    def way_through(self) -> list[Instruction]:
        """From the kernel's beginning to its end, or to where the last block is found out."""
        return self._path(0, set(range(len(self.blocks))), to_head=False)

    def hot_path(self) -> list[Instruction]:
        """See the head of this file."""
        most, best = 0, self.way_through()
        for head, members in self.loops:  # the smallest first
            path = self._path(head, members, to_head=True)
            wide = sum(WIDE_LOAD.search(one.text) is not None for one in path)
            if wide > most:
                most, best = wide, path
        return best

    def _path(self, head: int, members: set[int], *, to_head: bool) -> list[Instruction]:
        """The best way from `head` on, within `members`: back to it, or to the end."""
        best: dict[int, tuple[int, list[int]] | None] = {}
        order = sorted(members, reverse=True)
        for k in order:
            here = sum(map(score, self.blocks[k]))
            ways: list[tuple[int, list[int]]] = []
            meets = not to_head and any("MEMBAR" in one.text for one in self.blocks[k])  # the last block alone goes on
            if (head in self.next[k]) if to_head else (meets or self.blocks[k][-1].ends):
                ways.append((here, [k]))
            for other in () if meets else self.next[k]:
                onward = best.get(other) if other > k else None
                if onward is not None:
                    ways.append((here + onward[0], [k, *onward[1]]))
            best[k] = max(ways, key=lambda way: way[0]) if ways else None
        chosen = best[head]
        return [one for k in chosen[1] for one in self.blocks[k]] if chosen else []


def score(one: Instruction) -> int:
    """How much an instruction speaks for the path that it is on."""
    if WIDE.search(one.text):
        return 1_000_000
    if NARROW.search(one.text):
        return -10_000
    if SELECTION.search(one.text):  # among the elements of a vector that are there
        return -60
    return 99 if ARITHMETIC.search(one.text) else -1


def loads_in_flight(path: list[Instruction]) -> int:
    """The most wide loads that one thread has waiting: until the first use of the oldest of them."""
    waiting: list[set[int]] = []
    most = 0
    for one in path * 2:  # a loop may load for its next round
        used = {int(r) for r, _ in REGISTER.findall(one.text)}
        loaded = WIDE_LOAD.search(one.text)
        if loaded:
            first = int(loaded[1])
            used -= set(range(first, first + 4))
        hit = [k for k, registers in enumerate(waiting) if registers & used]
        if hit:
            waiting = waiting[max(hit) + 1 :]
        if loaded:
            waiting.append(set(range(first, first + 4)))
            most = max(most, len(waiting))
    return most


@dataclass(frozen=True)
class Figures:
    """What a kernel's machine code shows."""

    instructions: int  # of the hot path
    wide_loads: int  # of them
    in_flight: int
    registers: int
    spills: int
    shared: int
    blocks: int  # of 256 threads on a multiprocessor of an H100


def cuobjdump() -> Path | None:
    """Of the CUDA toolkit, or of triton, which comes with torch."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    import importlib.util

    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return inside if inside.exists() else None


def compile_to(folder: Path, source: str, architecture: str) -> tuple[Path, str]:
    """The machine code of one file of csrc/cuda, and what ptxas reports."""
    from torch.utils import cpp_extension

    target = re.search(r'^TORCH_TARGET = "(\w+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert target
    cubin = folder / f"{source}.cubin"
    command = ["nvcc", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-cubin", "-Xptxas=-v"]
    command += [f"-DTORCH_TARGET_VERSION={target[1]}", f"-arch={architecture}", "-o", str(cubin)]
    command += [*(f"-isystem={path}" for path in cpp_extension.include_paths()), str(ROOT / f"csrc/cuda/{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nvcc cannot compile csrc/cuda/{source}.cu:\n{done.stderr}")
    return cubin, done.stderr


def short_names(names: list[str]) -> list[str]:
    """Such as `sum_pixels<BFloat16>`, of mangled names."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"\(anonymous namespace\)::|void |srtod::|c10::", "", plain)
    return [name.split("(")[0] for name in plain.splitlines()]


def figures_of(architecture: str = "sm_90") -> dict[str, Figures]:
    """Of every kernel for bfloat16 in `SOURCES`; of one that scales, for each layout."""
    tool = cuobjdump()
    if tool is None or shutil.which("nvcc") is None:
        raise SystemExit("needs nvcc and cuobjdump, both of the CUDA toolkit; triton has a cuobjdump too")
    result: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: compile_to(Path(folder), source, architecture), SOURCES)
        for cubin, report in compiled:
            listing = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
            kernels = re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]
            mangled = [kernel.split("\n", 1)[0].strip() for kernel in kernels]
            for name, kernel, long_name in zip(short_names(mangled), kernels, mangled, strict=True):
                if "BFloat16" not in name:
                    continue
                lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?) ;", kernel)
                code = Code([Instruction(int(address, 16), text.strip()) for address, text in lines])
                compiled_to = report.split(f"entry function '{long_name}'")[1]
                if name.startswith(SCALING):
                    result[f"{name} NCHW"] = _figures(code.hot_path(), compiled_to)
                    result[f"{name} channels_last"] = _figures(code.way_through(), compiled_to)
                else:
                    result[name] = _figures(code.hot_path(), compiled_to)
    return dict(sorted(result.items()))


def _figures(path: list[Instruction], report: str) -> Figures:
    registers = re.search(r"Used (\d+) registers", report)
    shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert registers
    assert spills
    of_block = -(-int(registers[1]) // 8) * 8 * 256
    shared_bytes = int(shared[1]) if shared else 0
    return Figures(
        instructions=len(path),
        wide_loads=sum(WIDE_LOAD.search(one.text) is not None for one in path),
        in_flight=loads_in_flight(path),
        registers=int(registers[1]),
        spills=int(spills[1]) + int(spills[2]),
        shared=shared_bytes,
        blocks=min(65536 // of_block, 233472 // (shared_bytes + 1024), 8),
    )


# --- the model --------------------------------------------------------------------------------------------------------

BYTES_A_SECOND = 3.0e12
MULTIPROCESSORS = 132
INSTRUCTIONS_A_SECOND = MULTIPROCESSORS * 4 * 1.755e9 * 0.8
LATENCY = 0.8e-6
FIRST_LAUNCH, NEXT_LAUNCH, ROUND_TRIP = 3e-6, 1.5e-6, 0.25e-6
SIZES = {"200x200": 200 * 200, "184x320": 184 * 320, "272x480": 272 * 480}
BATCH, CHANNELS = 2, 256


@dataclass(frozen=True)
class Launch:
    """One kernel of a pass over P2 [2, 256, h, w] in bfloat16, in its form of two launches."""

    kernel: str
    reads: int  # passes over P2
    writes: int
    beside: int = 0  # bytes for each pixel of P2, once for all its channels: of D, the filter and its gradient
    first: bool = True
    round_trips: int = 0  # of the last block, one after the other

    def seconds(self, pixels: int, figures: dict[str, Figures]) -> float:
        of_pass = BATCH * CHANNELS * pixels * 2
        f = figures[self.kernel]
        read = self.reads * of_pass
        memory = ((self.reads + self.writes) * of_pass + self.beside * BATCH * pixels) / BYTES_A_SECOND
        warp_rounds = read / (32 * 16 * max(f.wide_loads, 1))
        issue = warp_rounds * f.instructions / INSTRUCTIONS_A_SECOND
        in_flight = MULTIPROCESSORS * f.blocks * 256 * f.in_flight * 16
        latency = read * LATENCY / max(in_flight, 1)
        serial = (FIRST_LAUNCH if self.first else NEXT_LAUNCH) + self.round_trips * ROUND_TRIP
        return max(memory, issue, latency) + serial


# Round trips of the last block with 256 channels and a hidden layer of 16. Both meetings of the blocks take 3 each, a
# group's 32 parts 4, an image's groups 1. Then forward 1 for the exact index, 3 for the hidden layer and 3 for the
# weights; backward 2 for the gradient of z, 2 for the hidden layer's, 2 for the pools'.
FORWARD, BACKWARD = 3 + 4 + 3 + 1 + 7, 3 + 4 + 3 + 1 + 6
# Of a sampled row of D all sectors are read, 16 bytes for a pixel. The filter takes 4, and its gradient 4 in each
# group of channels: all 256 in channels_last, 32 in NCHW.
PASSES = {  # by name: passes over P2 that the floor counts, and the launches
    f"{direction} {layout}": (floor, launches)
    for layout, pool, sums, groups in (
        ("channels_last", "pool_pixels", "sum_pixels", 1),
        ("NCHW", "pool_planes", "sum_planes", 8),
    )
    for direction, floor, launches in (
        (
            "forward",
            3,
            [
                Launch(f"{pool}<BFloat16>", 1, 0, beside=16 + 4, round_trips=FORWARD),
                Launch(f"scale_kernel<BFloat16> {layout}", 1, 1, beside=4, first=False),
            ],
        ),
        (
            "backward",
            4,
            [
                Launch(f"{sums}<BFloat16>", 2, 0, beside=4 + 4 * groups, round_trips=BACKWARD),
                Launch(f"gradient_kernel<BFloat16> {layout}", 1, 1, beside=16 + 4 + 4 * groups, first=False),
            ],
        ),
    )
}


def predictions(figures: dict[str, Figures]) -> dict[tuple[str, str], tuple[float, float]]:
    """Of each pass and size: the floor, from bytes alone, and the predicted time, both in seconds."""
    return {
        (name, size): (
            passes * BATCH * CHANNELS * pixels * 2 / BYTES_A_SECOND,
            sum(launch.seconds(pixels, figures) for launch in launches),
        )
        for name, (passes, launches) in PASSES.items()
        for size, pixels in SIZES.items()
    }


def lines_of(figures: dict[str, Figures]) -> Iterable[str]:
    """Both tables."""
    heads = list(Figures.__dataclass_fields__)
    yield "| kernel | " + " | ".join(name.replace("_", " ") for name in heads) + " |"
    yield "|---|" + "---|" * len(heads)
    for kernel, f in figures.items():
        yield f"| {kernel} | " + " | ".join(str(value) for value in asdict(f).values()) + " |"
    yield ""
    yield "| pass | size | floor, us | predicted, us | predicted / floor |"
    yield "|---|---|---|---|---|"
    for (name, size), (floor, time) in predictions(figures).items():
        yield f"| {name} | {size} | {floor * 1e6:.0f} | {time * 1e6:.0f} | {time / floor:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints figures of the machine code of DGFE's kernels.")
    parser.add_argument("--write", action="store_true", help=f"keep them in {FIGURES.relative_to(ROOT)}")
    write = parser.parse_args().write
    figures = figures_of()
    print("\n".join(lines_of(figures)))
    if write:
        lines = ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(asdict(f))}" for kernel, f in figures.items())
        FIGURES.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
