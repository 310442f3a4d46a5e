"""scripts/kernel_report.py: how it reads machine code, and that no kernel's got worse unnoticed."""

from __future__ import annotations

import json
import shutil

import kernel_report as report
import pytest


def code(text: str) -> report.Code:
    """Of one instruction a line, 16 bytes each."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return report.Code([report.Instruction(16 * k, line) for k, line in enumerate(lines)])


# A loop that loads two vectors, with a side road for odd sizes, behind a loop of the prologue.
LOOP = code("""
    S2R R0, SR_TID.X
    IADD3 R1, R1, 0x1, RZ
    @P0 BRA 0x10
    @P1 BRA 0x60
    LDG.E.128.CONSTANT R4, desc[UR4][R2.64]
    BRA 0x80
    LDG.E.U16 R4, desc[UR4][R2.64]
    LDG.E.U16 R5, desc[UR4][R2.64+0x2]
    LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10]
    FADD R20, R4, R8
    @!P2 BRA 0x30
    STG.E desc[UR4][R2.64], R20
    EXIT
""")


def texts(path: list[report.Instruction]) -> list[str]:
    return [one.text.split()[0] for one in path if not one.text.startswith("@")]


def test_the_hot_path_is_that_of_the_wide_accesses_in_their_loop() -> None:
    path = LOOP.hot_path()
    assert texts(path) == ["LDG.E.128.CONSTANT", "BRA", "LDG.E.128.CONSTANT", "FADD"]
    assert len(path) == 6  # with both branches that were not taken, or back
    assert texts(LOOP.way_through())[-2:] == ["STG.E", "EXIT"]


def test_loads_are_in_flight_until_the_first_use() -> None:
    assert report.loads_in_flight(LOOP.hot_path()) == 2
    one_by_one = code("""
        LDG.E.128 R4, desc[UR4][R2.64]
        FADD R20, R4, R5
        LDG.E.128 R8, desc[UR4][R2.64]
        FADD R20, R20, R8
        EXIT
    """)
    assert report.loads_in_flight(one_by_one.hot_path()) == 1


def test_a_prediction_is_the_longest_of_the_models_times() -> None:
    launch = report.Launch("a", 1, 1, round_trips=4)
    good = report.Figures(100, wide_loads=4, in_flight=4, registers=64, spills=0, shared=0, blocks=4)
    of_pass = 2 * 256 * 40000 * 2
    serial = report.FIRST_LAUNCH + 4 * report.ROUND_TRIP
    assert launch.seconds(40000, {"a": good}) == pytest.approx(2 * of_pass / 3e12 + serial)
    long_winded = report.Figures(4000, wide_loads=4, in_flight=4, registers=64, spills=0, shared=0, blocks=4)
    issue = of_pass / 512 * 1000 / report.INSTRUCTIONS_A_SECOND
    assert launch.seconds(40000, {"a": long_winded}) == pytest.approx(issue + serial)
    waiting = report.Figures(100, wide_loads=4, in_flight=1, registers=64, spills=0, shared=0, blocks=1)
    latency = of_pass * 0.8e-6 / (132 * 256 * 16)
    assert launch.seconds(40000, {"a": waiting}) == pytest.approx(latency + serial)


@pytest.fixture(scope="module")
def figures() -> dict[str, report.Figures]:
    if shutil.which("nvcc") is None or report.cuobjdump() is None:
        pytest.skip("needs nvcc and cuobjdump")
    return report.figures_of()


@pytest.mark.slow
def test_no_kernel_got_worse_unnoticed(figures: dict[str, report.Figures]) -> None:
    """`python scripts/kernel_report.py --write` keeps new figures, where they are meant."""
    kept = {name: report.Figures(**of_one) for name, of_one in json.loads(report.FIGURES.read_text()).items()}
    print("\n".join(report.lines_of(figures)))
    assert set(figures) == set(kept)
    worse = [
        f"{name}: {before} -> {after}"
        for name, before in kept.items()
        if (after := figures[name]).instructions > 1.1 * before.instructions
        or after.blocks < before.blocks
        or after.in_flight < before.in_flight
        or after.wide_loads < before.wide_loads
        or after.spills > 0
    ]
    assert not worse, "\n".join(worse)


@pytest.mark.slow
def test_the_backward_pass_is_predicted_near_its_floor(figures: dict[str, report.Figures]) -> None:
    for (name, size), (floor, seconds) in report.predictions(figures).items():
        if name.startswith("backward"):
            assert seconds <= 1.35 * floor, (name, size)
