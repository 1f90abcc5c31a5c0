"""`fastvlm validate`: does this build compute what its checkpoint computes?

Order of things: the files against the manifest, the reference against the manifest's source, then the comparison.
Everything runs on one thread, because torch's convolutions give other bytes on two, and what is stored must be the
same for the same build. A verdict that is not "passed" is written too, and removes an older `selftest/`: nothing calls
that build good any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvlm import steps
from fastvlm.build import FORMATS, ONNX, SOURCE_OPTIONS, Build, read_build
from fastvlm.errors import BuildError, ExecutionError, OutputError, PackageError, UsageError
from fastvlm.hashes import sha256_file
from fastvlm.json_file import read_json
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import check_files, dump
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import remove_folder, replace_file
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.hub import fetch, hub_id, on_disk
from fastvlm_ref.checkpoint.load import read_config
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.source import differing
from fastvlm_ref.config import FastVLMConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import Sample, check_pictures, samples_in, shipped_samples
from fastvlm_ref.threads import one_thread
from fastvlm_ref.tokenizer import Tokenizer
from validation.backends import BACKENDS, check_backend
from validation.blocks import NOT_COMPARED
from validation.comparison import Comparison
from validation.coreml.units import check_units
from validation.expected_time import tell
from validation.html_report import check_place, report_of, write_report
from validation.layerwise.comparison import LayerwiseComparison
from validation.layerwise.need import needs_layerwise
from validation.other_reference import check_shape
from validation.pair import Pair
from validation.questions import score
from validation.rungs import block_rung, excused, lower_rungs
from validation.selftest import FOLDER as SELFTEST
from validation.selftest import SelfTest, is_selftest, rows_sha256, worked_example, worked_photo, write_selftest
from validation.steps import steps_for
from validation.verdict import FILE, ReferenceFiles, Verdict

MOST_BYTES = 64 << 20  # of a verdict
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
    backend = _backend_for(opened, backend)
    place = None if report is None else check_place(report, (folder, reference, checkpoint_options.get("base")))
    if opened.format == ONNX:
        check_units(backend, compute_units)
    else:
        check_backend(backend, compute_units, stateful=opened.purpose is None)
    if questions is not None and not opened.language:
        raise UsageError(f"{folder} has no language model to ask, it is an encoder alone; give --images DIR")
    samples, in_full = _samples(images, questions, opened.encoder is not None, progress)
    _check_folder(opened, progress)
    with one_thread(), _withdrawn_if_damaged(folder):
        source = _opened_reference(opened, reference, progress, checkpoint_options, other_reference)
        large = needs_layerwise(opened, source.config.text)
        if layerwise is None:
            layerwise = large and opened.format != ONNX  # onnxruntime has a graph whole or not at all
        steps = steps_for(steps, large if opened.format == ONNX else layerwise)
        if not layerwise and opened.format != ONNX:
            tell(opened, in_full, len(samples) - in_full, steps, progress)
        elif layerwise and len(samples) > in_full:
            raise UsageError(
                f"{questions} holds {len(samples)} questions; this model takes more than half of the memory and is "
                f"compared layer by layer, on {in_full} at most: nothing can be asked freely"
            )
        # a decoder that nobody runs need not be in memory, and beside a large one's graph there is no room for it
        stream = layerwise or not opened.language or large
        model, tokenizer, files = _load_reference(opened, source, progress, other_reference, stream)
        pair = Pair(opened, model)
        kind = LayerwiseComparison if layerwise else Comparison
        comparison = kind(pair, tokenizer, backend, steps, progress, compute_units)
        if isinstance(comparison, LayerwiseComparison):
            comparison.announce(samples)
        rows = lower_rungs(pair, progress) if opened.format != ONNX else []
        compared, answers = comparison.run(samples, in_full)
        inside = backend == "mil"
        blocks, findings = block_rung(pair, comparison.example(), progress) if inside else (NOT_COMPARED, [])
        rows += [*blocks.measurements, *compared]
        measured = {row.limit.key for row in rows}
        missing = tuple(key for key in pair.limits if key not in measured)
        lacking = tuple(key for key in missing if key not in excused(pair, backend, layerwise))
        verdict = Verdict(
            tuple(rows), tuple(answers), score(answers, in_full), tuple(comparison.differing_steps()), tuple(findings),
            backend, steps, in_full, missing, lacking, sha256_file(folder / MANIFEST), files, folder / FILE,
            compute_units,
        )  # fmt: skip
        _tell_of_weaker(folder, verdict, progress)
        with progress.stage("Writing the verdict"):
            verdict = _publish(verdict, folder, comparison)
        if place is not None:
            with progress.stage("Writing the report"):
                write_report(report_of(verdict, comparison, samples, blocks), place)
    return verdict


def _backend_for(build: Build, backend: str | None) -> str:
    """Who executes a build; UsageError for a backend that runs other files."""
    runs = ("onnx",) if build.format == ONNX else BACKENDS
    if backend is not None and backend not in runs:
        raise UsageError(
            f"--backend {backend} does not run {build.folder}, a build of --format {build.format}; "
            f"expected {' or '.join(runs)}"
        )
    return backend or runs[0]


def _samples(
    images: str | Path | None, questions: str | Path | None, encoder: bool, progress: Progress
) -> tuple[list[Sample], int]:
    """Returns what to compare on, and how many of these in full; refuses files that are no pictures."""
    if images is not None and questions is not None:
        raise UsageError("--images and --questions both name the pictures; give one of them")
    if questions is not None:
        samples = read_questions(Path(questions))
    else:
        samples = shipped_samples() if images is None else samples_in(Path(images))
    check_pictures(samples)
    asked = questions is not None and encoder  # without an encoder nothing is answered freely
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


@dataclass(frozen=True)
class _Source:
    """The reference before its weights are read: how the user named it, where it is, how it is read, what it is."""

    named: str | Path
    found: str | Path
    options: dict[str, Any]
    config: FastVLMConfig


def _opened_reference(
    build: Build, reference: str | Path | None, progress: Progress, options: dict[str, Any], other: bool
) -> _Source:
    """Finds the checkpoint, to be read with what was asked for at the export, and compares file sizes.

    Raises UsageError where it is another one: unless `other` allows that, and then where its shape is another.
    """
    if reference is None:
        if build.source_id != "tiny":
            raise UsageError(f"this build was made from {build.source_id}; name it: --reference CHECKPOINT")
        reference = "tiny"
    told: dict[str, Any] = {**build.source_options, **options}
    found = _on_disk(build, reference, "", progress, other)
    if told.get("base") is not None:
        told["base"] = _on_disk(build, told["base"], "base/", progress, other)
    opened = open_checkpoint(found, told.get("base"), told.get("allow_pickle", False))
    sizes = {name: path.stat().st_size for name, path in opened.source.paths.items()}
    listed = {name: row.get("bytes") for name, row in build.source_files.items() if isinstance(row, dict)}
    # before gigabytes are read and hashed
    different = _check_same(build, reference, differing(sizes, listed), other)
    config = read_config(opened, **{name: told.get(name) for name in SOURCE_OPTIONS})
    if different:
        check_shape(build, config, reference)
    return _Source(reference, found, told, config)


def _load_reference(
    build: Build, source: _Source, progress: Progress, other: bool, stream: bool
) -> tuple[FastVLM, Tokenizer, ReferenceFiles]:
    """Loads the checkpoint, `stream`: its decoder's weights when they are used; UsageError as above, by hashes."""
    model = load_checkpoint(source.found, progress=progress, stream=stream, **source.options)
    if model.source is None or model.tokenizer is None:
        raise UsageError(f"{source.named} has no source or no tokenizer")
    files = model.source.files(progress)
    different = _check_same(build, source.named, differing(files, build.source_files), other)
    if different:
        check_shape(build, model.config, source.named)
        progress.note(f"{source.named} is not what this build was made from: whatever the limits say, it cannot pass")
    recorded = files if different else build.source_files
    return model, model.tokenizer, ReferenceFiles({name: row["sha256"] for name, row in recorded.items()}, different)


def _on_disk(build: Build, reference: str | Path, part: str, progress: Progress, other: bool) -> str | Path:
    """Fetches a Hub id, `part` "base/" for a LoRA's base; UsageError before that where its files have other sizes.

    An id without a revision means the commit that the manifest records: a branch may have moved on since.
    """
    listed = {
        name.removeprefix(part): row.get("bytes")
        for name, row in build.source_files.items()
        if isinstance(row, dict) and name.startswith(part) and (part or not name.startswith("base/"))
    }

    def accept(sizes: Mapping[str, int]) -> None:
        _check_same(build, reference, differing({name: sizes.get(name) for name in listed}, listed), other)

    recorded = build.manifest["source"].get("base", {}) if part else build.manifest["source"]
    commit = recorded.get("revision") if isinstance(recorded, dict) and recorded.get("id") == reference else None
    pinned = hub_id(f"{reference}@{commit}") if commit and hub_id(reference) else None
    if pinned is None:
        return on_disk(reference, progress, accept)
    progress.note(f"{reference} is read at commit {commit}, which this build was made from")
    return fetch(pinned, progress, accept)


def _check_same(build: Build, reference: str | Path, different: list[str], other: bool) -> tuple[str, ...]:
    """Returns the names of files that differ from the build's source; UsageError unless `other` allows any."""
    if different and not other:
        raise UsageError(
            f"{reference} is not what this build was made from ({', '.join(different[:5])} differ); give the "
            f"checkpoint {build.source_id} it was exported from, export again, or compare all the same with "
            "--other-reference"
        )
    return tuple(different)


def _tell_of_weaker(build: Path, verdict: Verdict, progress: Progress) -> None:
    """Tells where a verdict on this very build, passed on more, is about to be replaced by one on less."""
    try:
        before = read_json(build / FILE, MOST_BYTES)
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
    """A passed verdict is written after its self-test, any other before the old self-test goes: neither lies."""
    if verdict.passed and verdict.answers:
        verdict = replace(verdict, selftest=write_selftest(build, _example(comparison)))
        replace_file(verdict.path, dump(verdict.as_json()))
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
