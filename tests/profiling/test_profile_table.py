"""The table that `fastvlm profile` prints: every cell of it, from figures that are made up."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fastvlm.build import Build, read_build
from fastvlm.commands.profile import show_profile
from validation.machine import Machine
from validation.profiling.contender import Contender
from validation.profiling.result import Profile, Result, Stage
from validation.profiling.spread import Spread
from validation.profiling.workload import workload_of

MACHINE = Machine("Mac14,2", "Apple M2", "macOS 15.5", "arm64", 8, 16.0)


@pytest.fixture
def build(exported_tiny: Path) -> Build:
    return read_build(exported_tiny)


def result(name: str, build: Build, times: dict[tuple[str, int | None], list[float]], memory: int) -> Result:
    """Of each stage the first time, then the runs."""
    stages = tuple(Stage(*key, first, Spread.of(runs) if runs else None) for key, (first, *runs) in times.items())
    peaks = {"before_load": memory, "peak": 2 * memory}
    return Result(Contender(name, build, "mil", None, None, workload_of(build)), stages, peaks)


def lines(*results: Result, runs: int = 4) -> list[str]:
    """The printed lines, blanks folded."""
    console = Console(file=StringIO(), width=200, soft_wrap=True)
    show_profile(Profile(MACHINE, runs, 0.0, results, ()), console)
    assert isinstance(console.file, StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_every_cell(build: Build) -> None:
    one = result("one", build, {
        ("load_language", None): [9.0, 0.2, 0.3, 0.4], ("encode", None): [3.0, 1.0, 2.0, 4.0, 8.0],
        ("decode", 512): [0.05, 0.01, 0.02, 0.04, 0.08],
    }, 100_000_000)  # fmt: skip
    two = result("two", build, {("encode", None): [7.0, 4.5, 4.5, 4.5, 4.5], ("decode", 512): [0.05]}, 300_000_000)
    assert lines(one, two) == [
        "Apple M2, Mac14,2, macOS 15.5, 8 cores, 16 GB",
        "A one: image 256, prompt 40 of context 2048",
        "B two: image 256, prompt 40 of context 2048",
        "stage of median of 4 quartiles first time × A",
        "load language A 300 ms (of 3) 250–350 9 s",
        "encode A 3 s 1.75–5 3 s",
        "B 4.5 s 4.5–4.5 7 s (1.50)",
        "decode at 512 A 30 ms 17.5–50 50 ms",
        "B 50 ms",
        "peak memory A 200 MB",
        "B 600 MB",
        "memory before loading A 100 MB",
        "B 300 MB",
        "× A in brackets: the middle halves of the runs overlap, so no difference is shown",
    ]


def test_stages_stand_in_the_order_of_an_answer_whoever_has_them(build: Build) -> None:
    """And a build of one part says so."""
    encoder = result("one", replace(build, language=()), {("encode", None): [1.0, 1.0]}, 1)
    whole = result("two", build, {("load_language", None): [1.0, 1.0], ("decode", 40): [1.0, 1.0]}, 1)
    shown = lines(encoder, whole, runs=1)
    assert [line.split()[:3] for line in shown[4:7]] == [
        ["load", "language", "B"], ["encode", "A", "1"], ["decode", "at", "40"],
    ]  # fmt: skip
    assert shown[1] == "A one: image 256"
    assert shown[-1] == "one: the build has no language part"


def test_a_ratio_that_the_runs_show_stands_without_brackets(build: Build) -> None:
    one = result("one", build, {("encode", None): [3.0, 1.0, 1.1, 1.2]}, 1)
    two = result("two", build, {("encode", None): [3.0, 2.0, 2.2, 2.4]}, 1)
    assert "B 2.2 s 2.1–2.3 3 s 2.00" in lines(one, two, runs=3)
    assert not [line for line in lines(one, runs=3) if "brackets" in line]
