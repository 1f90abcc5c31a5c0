"""The check itself: a build on the MIL runtime and on every choice of compute units, timed, asked and planned."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from export import export
from fastvlm.build import Build, read_build
from fastvlm.devices import DEVICES
from fastvlm.errors import FastVLMError
from fastvlm.progress import Progress
from validation.judging import validate
from validation.mac_check.answers import SERVES, STEPS, Difference, difference, selftest
from validation.mac_check.beside_lint import TELLING, beside_lint, engine_ops
from validation.mac_check.report import Checked
from validation.machine import Machine
from validation.profiling.contender import Asked, contenders_of
from validation.profiling.measuring import announce, functions_of, load_told, profile_of
from validation.profiling.rounds import Race, run_rounds, started

RUNS = 5
AGAIN = 1  # times that everything is opened once more: each compiles for the Neural Engine, and ten minutes are all
ASKED = Asked(backends=("mil", "coreml"))


def validated_tiny(folder: Path, progress: Progress) -> Path:
    """Exports the embedded checkpoint into `folder` and validates it by the MIL runtime; returns the build."""
    build = export("tiny", folder / "tiny", progress=progress)
    verdict = validate(build, steps=STEPS, progress=progress)
    if not verdict.passed:
        missed = ", ".join(row.limit.key for row in verdict.rows if not row.passed)
        raise FastVLMError(f"the embedded checkpoint fails its own validation here ({missed}); report it")
    return build


def check_build(folder: str | Path) -> None:
    """Raises what `checked` would for this build, before the minutes that the embedded checkpoint takes."""
    contenders_of([folder], ASKED)
    selftest(read_build(folder))


def checked(folder: str | Path, machine: Machine, progress: Progress) -> Checked:
    """Checks one build.

    Raises as `contenders_of`, BuildError for a damaged self-test, and the first error where nothing could be measured.
    """
    build = read_build(folder)
    contenders = [replace(each, serves=SERVES) for each in contenders_of([folder], ASKED)]
    announce(contenders, RUNS, progress)
    load = load_told(progress)
    with tempfile.TemporaryDirectory() as answers, started(contenders, progress) as race:
        run_rounds(race, RUNS, progress, AGAIN)
        differences = _differences(race, build, Path(answers), progress)
    profile = profile_of(race.all, RUNS, load, progress)
    plans = [
        plan for result in profile.results if result.contender.compute_units == TELLING for plan in result.plan or ()
    ]
    packages = [package for package, _ in functions_of(build, contenders[0].work.side)]
    judged = lint_device(machine)
    rules, edge = beside_lint(packages, plans, judged)
    return Checked(build, profile, differences, rules, edge, judged, engine_ops(plans))


def _differences(race: Race, build: Build, folder: Path, progress: Progress) -> dict[str, Difference]:
    """What each choice of compute units answers beside the MIL runtime, by the name of the choice.

    The self-test's ids lead all of them, or else those of the first that answers.
    """
    known = selftest(build)
    led: list[int] | None = known["greedy_ids"] if known else None
    files: dict[str, tuple[Path, list[int]]] = {}
    with progress.stage("Answering", len(race.all)) as advance:
        for index, measured in enumerate(race.all):
            key = measured.contender.compute_units or "mil"
            file = folder / f"{index}.npz"
            best = race.ask_one(index, "answer", file=str(file), ids=led)
            if best is not None:
                files[key], led = (file, best), best if led is None else led
            advance(1)
    if "mil" not in files:
        return {}
    mil = files.pop("mil")
    return {units: difference(mil[0], file, mil[1], best) for units, (file, best) in files.items()}


def lint_device(machine: Machine) -> str | None:
    """Returns a Mac of the table with this machine's chip, whose limits the linter then judges by; None for none."""
    chip = machine.chip.removeprefix("Apple ")
    return next((device.name for device in DEVICES if device.kind == "mac" and device.chip.name == chip), None)
