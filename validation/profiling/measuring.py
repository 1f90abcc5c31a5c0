"""`profile`: builds on backends, measured stage by stage in turn, with Core ML's compute plan where it runs there.

Everything that can be refused is refused before the first process starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from fastvlm.build import ONNX, Build
from fastvlm.errors import FastVLMError, ProcessError, UsageError
from fastvlm.progress import SILENT, Progress
from validation.coreml.placement import FunctionPlan, OpPlace
from validation.coreml.plan import plans_of
from validation.encoder_form import form_of
from validation.expected_time import in_words, seconds_of
from validation.machine import BUSY, memory_bytes, this_machine
from validation.profiling.contender import Asked, Contender, contenders_of
from validation.profiling.result import Failure, Profile, Result, stages_of
from validation.profiling.rounds import LOADS, Measured, run_rounds, started
from validation.profiling.workload import TOKENS

STARTING = 3.0  # seconds for a process and its libraries
LOADING = 1.0  # seconds; the MIL runtime maps a package's weights
WORTH_SAYING = 20.0
MOST_RUNS = 10_000


def profile(
    builds: Sequence[str | Path],
    *,
    backends: Sequence[str] = (),
    compute_units: Sequence[str] = (),
    runs: int = 5,
    image_size: int | None = None,
    device_udid: str | None = None,
    team: str | None = None,
    progress: Progress = SILENT,
) -> Profile:
    """Measures every build on every backend, each in a process of its own, one run of each in turn.

    `backends` none: Core ML on a Mac, the MIL runtime elsewhere, or the device alone where `device_udid` names one that
    is connected to this Mac (`team` is the developer team that signs the app for it). `compute_units` are Core ML's
    (none: every choice), `image_size` is one of the build's (None: its first), `runs` are 1 to MOST_RUNS. Raises
    UsageError (runs, size, units), MissingDependency (a backend that this machine lacks), BuildError and PromptError
    before anything starts. A contender that fails later is in `failures`, and the others go on; where none is left, the
    first error is raised, and `progress` is told the others.
    """
    if not 1 <= runs <= MOST_RUNS:
        raise UsageError(f"--runs is {runs}; expected 1 to {MOST_RUNS}")
    contenders = contenders_of(builds, Asked(backends, compute_units, image_size, device_udid, team))
    announce(contenders, runs, progress)
    load = load_told(progress)
    with started(contenders, progress) as race:
        run_rounds(race, runs, progress)
    return profile_of(race.all, runs, load, progress)


def load_told(progress: Progress) -> float:
    """Returns the load average of the last minute, and tells a listener where it is too high to measure."""
    load = os.getloadavg()[0]
    if load > BUSY:
        progress.note(
            f"this machine is busy (load {load:.1f}): times will be longer than on one that is idle, and how two "
            "contenders compare is uncertain"
        )
    return load


def profile_of(measured: Sequence[Measured], runs: int, load: float, progress: Progress) -> Profile:
    """Returns what was measured with Core ML's plans beside it; raises as `profile` where all have failed."""
    failures = [Failure.of(each.contender.name, each.stage, each.error) for each in measured if each.error]
    if len(failures) == len(measured):
        for failure in failures[1:]:
            progress.note(failure.told)
        raise next(each.error for each in measured if each.error)
    results = []
    for each in measured:
        plan = None
        if each.contender.device is not None:
            plan = tuple(
                FunctionPlan(package, function, tuple(OpPlace(*row) for row in rows))
                for package, function, rows in each.plan
            )
        elif each.contender.backend == "coreml" and each.error is None:
            plan = _plan(each.contender, failures, progress)
        results.append(Result(each.contender, stages_of(each), each.memory, plan))
    return Profile(this_machine(), runs, load, tuple(results), tuple(failures))


def _plan(contender: Contender, failures: list[Failure], progress: Progress) -> tuple[FunctionPlan, ...] | None:
    """Core ML's plan of every function that the contender calls; None, and a failure, where there is none."""
    plans: list[FunctionPlan] = []
    assert contender.compute_units is not None
    with progress.stage(f"Reading the plan of {contender.name}"):
        for package, functions in functions_of(contender.build, contender.work.side):
            try:
                plans += plans_of(package, functions, contender.compute_units)
            except FastVLMError as error:
                stage = error.stage if isinstance(error, ProcessError) else f"planning {package.name}"
                failures.append(Failure.of(contender.name, stage, error))
                return None
    return tuple(plans)


def functions_of(build: Build, side: int) -> list[tuple[Path, list[str]]]:
    """Returns every package with the functions of it that an answer to a picture of N = `side` calls."""
    found = [(build.encoder, [form_of(build).function(side)])] if build.encoder is not None else []
    for stage in build.language:
        found.append((stage.package, ["prefill", "decode"] if stage.prefill else ["decode"]))
    return found


def announce(contenders: Sequence[Contender], runs: int, progress: Progress) -> None:
    """Tells a listener how long it will take, of the MIL runtime alone, and whether all fit into memory together."""
    mil = [contender for contender in contenders if contender.backend == "mil"]
    seconds = sum(_seconds(contender, runs) for contender in mil)
    if seconds > WORTH_SAYING:
        progress.note(f"this takes up to {in_words(seconds)} on the MIL runtime, reckoned from the builds' operations")
    if any(contender.backend == "coreml" and contender.device is None for contender in contenders):
        progress.note("the first load by Core ML compiles for this Mac, which can take minutes for a large build")
    together = sum(map(_weights, contenders))
    if len(contenders) > 1 and together > memory_bytes() / 2:
        progress.note(
            f"all contenders are loaded at once, about {together / 1e9:.1f} GB of weights, and the memory is "
            f"{memory_bytes() / 1e9:.1f} GB; a machine that swaps measures its disk, so name fewer at a time"
        )


def _seconds(contender: Contender, runs: int) -> float:
    each, work, build = seconds_of(contender.build), contender.work, contender.build
    chunks = ceil(work.prompt / build.query)
    run = each.encode + chunks * each.prefill + (1 + TOKENS * len(work.positions)) * each.decode
    return STARTING + (1 + min(runs, LOADS)) * LOADING + (runs + 1) * run


def _weights(contender: Contender) -> int:
    """Bytes of the packages' files, of a build that holds them."""
    if contender.build.format == ONNX:
        return sum(file.stat().st_size for file in contender.build.folder.glob("*.onnx*"))
    packages = [package for package, _ in functions_of(contender.build, contender.work.side)]
    return sum(file.stat().st_size for package in packages for file in package.rglob("*") if file.is_file())
