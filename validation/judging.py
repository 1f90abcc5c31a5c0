"""`fastvlm validate`: does this build compute what its checkpoint computes?

Order of things: the files against the manifest, the reference against the manifest's source, then the comparison.
Everything runs on one thread, because torch's convolutions give other bytes on two, and what is stored must be the
same for the same build. A verdict that is not "passed" is written too, and removes an older `selftest/`: nothing calls
that build good any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvlm import steps
from fastvlm.build import FORMATS, ONNX, Build, read_build
from fastvlm.errors import BuildError, ExecutionError, OutputError, PackageError, UsageError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import check_files, dump
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import remove_folder, replace_file, staged_file, write_whole
from fastvlm.verdict_file import read_verdict
from fastvlm_ref.config import TextConfig
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import Sample, check_pictures, samples_in, shipped_samples
from fastvlm_ref.threads import one_thread
from fastvlm_ref.tokenizer import Tokenizer
from validation.backends import BACKENDS, check_backend
from validation.blocks import NOT_COMPARED, BlockComparison, Finding
from validation.comparison import Comparison
from validation.coreml.units import check_units
from validation.expected_time import tell
from validation.html_report import check_place, report_of, write_report
from validation.layerwise.comparison import LayerwiseComparison
from validation.layerwise.need import needs_layerwise
from validation.limits import Measurement
from validation.original import load_reference, open_reference
from validation.pair import Pair
from validation.questions import AnswerRow, score
from validation.rungs import block_rung, excused, lower_rungs
from validation.selftest import FOLDER as SELFTEST
from validation.selftest import SelfTest, is_selftest, rows_sha256, staged_selftest, worked_example, worked_photo
from validation.steps import steps_for
from validation.verdict import FILE, ReferenceFiles, Verdict

IN_FULL = 4  # questions of a file that are compared step by step


def validate(
    build: str | Path,
    reference: str | Path | None = None,
    *,
    images: str | Path | None = None,
    questions: str | Path | None = None,
    other_reference: bool = False,
    backend: str | None = None,
    compute_units: str | None = None,
    steps: int | None = None,
    layerwise: bool | None = None,
    report: str | Path | None = None,
    progress: Progress = SILENT,
    **checkpoint_options: Any,
) -> Verdict:
    """Compares a build folder with its checkpoint and writes `validation.json` (and `selftest/` when it passes).

    `reference` may be left out for builds of the embedded checkpoint. `images` is a folder of pictures to use in
    place of the shipped ones, `questions` a .jsonl file (`fastvlm_ref.questions`), of which the first four are compared
    in full and of the others the answers alone. `other_reference` compares with a checkpoint that is not the build's
    source all the same: such a build cannot pass. `backend` executes the build (none: the MIL runtime, or onnxruntime
    for ONNX files), `compute_units` say where Core ML may run. `steps` greedy tokens are
    compared for each question (none: 64, or 8 layer by layer), `layerwise` says whether a layer is in memory at a time
    (none: where the weights of both sides take more than half of the memory). `report` is where a page to look at goes,
    or its data, by its ending: .html or .json (`validation.html_report`). `checkpoint_options` are what reading the
    checkpoint needs (`base`, `allow_pickle`). Raises BuildError (files missing or changed), UsageError (a reference
    that is not the build's source or of another shape, a questions file with a bad line), ImageError (pictures that are
    none), PromptError (a prompt that does not fit), OutputError (a place for the report that cannot be), and whatever
    loading the checkpoint raises.
    """
    steps_for(steps, False)  # a wrong number is refused before anything is read
    folder = Path(build)
    opened = read_build(folder, FORMATS)
    backend = _backend_for(opened, backend, compute_units)
    place = None if report is None else check_place(report, (folder, reference, checkpoint_options.get("base")))
    samples, in_full = _samples(opened, images, questions, progress)
    _check_folder(opened, progress)
    with one_thread(), _withdrawn_if_damaged(folder):
        source = open_reference(opened, reference, progress, checkpoint_options, other_reference)
        way = _way_for(opened, source.config.text, backend, compute_units, steps, layerwise)
        _foretell(opened, way, len(samples), in_full, questions, progress)
        model, tokenizer, files = load_reference(opened, source, progress, other_reference, way.stream)
        comparison = _comparison(Pair(opened, model), tokenizer, way, samples, progress)
        climbed = _climb(comparison, way, samples, in_full)
        verdict = _judged(climbed, comparison, way, files, in_full)
        _tell_of_weaker(folder, verdict, progress)
        with progress.stage("Writing the verdict"):
            verdict = _publish(verdict, folder, comparison)
        if place is not None:
            with progress.stage("Writing the report"):
                write_report(report_of(verdict, comparison, samples, climbed.blocks), place)
    return verdict


@dataclass(frozen=True)
class _Way:
    """How a build is compared: who executes it, greedy tokens for each question, what is in memory at a time."""

    backend: str
    compute_units: str | None
    steps: int
    layerwise: bool
    stream: bool  # whether the reference's decoder has its weights read when they are used


@dataclass(frozen=True)
class _Climbed:
    """What the rungs found, from constants to tokens."""

    rows: tuple[Measurement, ...]
    answers: tuple[AnswerRow, ...]
    blocks: BlockComparison
    findings: tuple[Finding, ...]


def _backend_for(build: Build, backend: str | None, compute_units: str | None) -> str:
    """Who executes a build; UsageError for a backend that runs other files, or not here, or not on these units."""
    runs = ("onnx",) if build.format == ONNX else BACKENDS
    if backend is not None and backend not in runs:
        raise UsageError(
            f"--backend {backend} does not run {build.folder}, a build of --format {build.format}; "
            f"expected {' or '.join(runs)}"
        )
    backend = backend or runs[0]
    if build.format == ONNX:
        check_units(backend, compute_units)
    else:
        check_backend(backend, compute_units, stateful=build.purpose is None)
    return backend


def _samples(
    build: Build, images: str | Path | None, questions: str | Path | None, progress: Progress
) -> tuple[list[Sample], int]:
    """Returns what to compare on, and how many of these in full; refuses files that are no pictures."""
    if questions is not None and not build.language:
        raise UsageError(f"{build.folder} has no language model to ask, it is an encoder alone; give --images DIR")
    if images is not None and questions is not None:
        raise UsageError("--images and --questions both name the pictures; give one of them")
    if questions is not None:
        samples = read_questions(Path(questions))
    else:
        samples = shipped_samples() if images is None else samples_in(Path(images))
    check_pictures(samples)
    asked = questions is not None and build.encoder is not None  # without an encoder nothing is answered freely
    in_full = min(IN_FULL, len(samples)) if asked else len(samples)
    if alone := len(samples) - in_full:
        progress.note(f"the first {in_full} questions are compared in full, of the other {alone} the answers alone")
    return samples, in_full


def _check_folder(build: Build, progress: Progress) -> None:
    """Raises before the minutes of work: OutputError where nothing can be written, BuildError for changed files.

    An older verdict on files that have changed since is taken away: it speaks of a build that is no more.
    """
    if not os.access(build.folder, os.W_OK | os.X_OK):
        raise OutputError(f"{build.folder} may not be written by this user, and the verdict goes there; copy it first")
    selftest = build.folder / SELFTEST
    if selftest.exists() and not is_selftest(selftest):
        raise OutputError(f"{selftest} was not written by fastvlm; move it away, the self-test goes there")
    try:
        check_files(build.folder, build.manifest, progress)
    except BuildError:
        _withdraw(build.folder)
        raise


@contextmanager
def _withdrawn_if_damaged(build: Path) -> Iterator[None]:
    """Takes an older verdict away where the build turns out to be damaged: it speaks of a build that is no more."""
    try:
        yield
    except (BuildError, ExecutionError, PackageError):
        _withdraw(build)
        raise


def _withdraw(build: Path) -> None:
    steps.remove(build / FILE)
    if (build / SELFTEST).is_dir():
        remove_folder(build / SELFTEST)


def _way_for(
    build: Build, text: TextConfig, backend: str, compute_units: str | None, steps: int | None, layerwise: bool | None
) -> _Way:
    """What was asked for, and where nothing was, what the memory takes."""
    onnx, large = build.format == ONNX, needs_layerwise(build, text)
    if layerwise is None:
        layerwise = large and not onnx  # onnxruntime has a graph whole or not at all
    # a decoder that nobody runs need not be in memory, and beside a large one's graph there is no room for it
    stream = layerwise or large or not build.language
    return _Way(backend, compute_units, steps_for(steps, large if onnx else layerwise), layerwise, stream)


def _foretell(
    build: Build, way: _Way, count: int, in_full: int, questions: str | Path | None, progress: Progress
) -> None:
    """Says how long it will take; UsageError for `count` questions of which some would have to be asked freely."""
    if way.layerwise and count > in_full:
        raise UsageError(
            f"{questions} holds {count} questions; this model takes more than half of the memory and is "
            f"compared layer by layer, on {in_full} at most: nothing can be asked freely"
        )
    if not way.layerwise and build.format != ONNX:
        tell(build, in_full, count - in_full, way.steps, progress)


def _comparison(
    pair: Pair, tokenizer: Tokenizer, way: _Way, samples: Sequence[Sample], progress: Progress
) -> Comparison:
    """The two sides beside each other; layer by layer, it says how long that takes."""
    if not way.layerwise:
        return Comparison(pair, tokenizer, way.backend, way.steps, progress, way.compute_units)
    comparison = LayerwiseComparison(pair, tokenizer, way.backend, way.steps, progress, way.compute_units)
    comparison.announce(samples)
    return comparison


def _climb(comparison: Comparison, way: _Way, samples: Sequence[Sample], in_full: int) -> _Climbed:
    """All rungs that can be measured: only the MIL runtime shows what is inside a package."""
    pair, progress = comparison.pair, comparison.progress
    lower = lower_rungs(pair, progress) if pair.build.format != ONNX else []
    compared, answers = comparison.run(samples, in_full)
    blocks, findings = NOT_COMPARED, list[Finding]()
    if way.backend == "mil":
        blocks, findings = block_rung(pair, comparison.example(), progress)
    rows = (*lower, *blocks.measurements, *compared)
    return _Climbed(rows, tuple(answers), blocks, tuple(findings))


def _judged(found: _Climbed, comparison: Comparison, way: _Way, files: ReferenceFiles, in_full: int) -> Verdict:
    """The verdict, which also says what was not measured, and what of that should have been."""
    pair, folder = comparison.pair, comparison.pair.build.folder
    measured = {row.limit.key for row in found.rows}
    missing = tuple(key for key in pair.limits if key not in measured)
    lacking = tuple(key for key in missing if key not in excused(pair, way.backend, way.layerwise))
    return Verdict(
        found.rows, found.answers, score(found.answers, in_full), tuple(comparison.differing_steps()), found.findings,
        way.backend, way.steps, in_full, missing, lacking, sha256_file(folder / MANIFEST), files, folder / FILE,
        way.compute_units,
    )  # fmt: skip


def _tell_of_weaker(build: Path, verdict: Verdict, progress: Progress) -> None:
    """Tells where a verdict on this very build, passed on more, is about to be replaced by one on less."""
    try:
        before = read_verdict(build)
        same, steps = before["manifest_sha256"] == verdict.manifest_sha256, (before["pictures"], before["steps"])
        stronger = (
            same
            and before["verdict"] == "passed"
            and any(a > b for a, b in zip(steps, (verdict.pictures, verdict.steps), strict=True))
        )
    except (OSError, ValueError, LookupError, TypeError):  # none, or one that nobody can read
        return
    if stronger:
        progress.note(
            f"the verdict that was there compared {steps[0]} pictures and {steps[1]} steps, this one "
            f"{verdict.pictures} and {verdict.steps}: that is what a bundle will tell its users"
        )


def _publish(verdict: Verdict, build: Path, comparison: Comparison) -> Verdict:
    """A passed verdict takes its name after its self-test, any other before the old self-test goes: neither lies.

    Both are written before either has its name, so that a full disk costs nothing. One that dies between them leaves
    a pair that does not belong together, which nobody calls passed (`fastvlm.verdict_file`).
    """
    if verdict.passed and verdict.answers:
        test = _example(comparison)
        with staged_file(verdict.path) as stage, staged_selftest(build, test) as hashes:
            verdict = replace(verdict, selftest=hashes)
            write_whole(stage, dump(verdict.as_json()))
            steps.sync(stage)
        return verdict
    replace_file(verdict.path, dump(verdict.as_json()))
    if (build / SELFTEST).is_dir():
        remove_folder(build / SELFTEST)
    return verdict


def _example(comparison: Comparison) -> SelfTest:
    """Always the first shipped picture: a user's own photo must not travel with the build."""
    sample = shipped_samples()[0]
    encoded, transcript = comparison.work_out(sample)
    ids, limits = comparison.ids(sample.prompt), comparison.pair.limits
    build = comparison.pair.build
    told = (worked_photo(build), rows_sha256(build, ids))
    return worked_example(sample.prompt, encoded, transcript, ids, comparison.stop_ids, *told, limits)
