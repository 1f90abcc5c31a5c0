"""`fastvlm validate`: does this build compute what its checkpoint computes?

Order of things: the files against the manifest, the reference against the manifest's source, then the comparison.
Everything runs on one thread, because torch's convolutions give other bytes on two, and what is stored must be the
same for the same build. A failed verdict is written too, and removes an older `selftest/`: nothing calls that build
good any more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvlm.build import Build, read_build
from fastvlm.errors import BuildError, OutputError, UsageError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import check_files, dump
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import replace_file
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.hub import fetch, hub_id, on_disk
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.source import differing
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import samples_in, shipped_samples
from fastvlm_ref.threads import one_thread
from fastvlm_ref.tokenizer import Tokenizer
from validation.comparison import Comparison
from validation.selftest import FOLDER as SELFTEST
from validation.selftest import SelfTest, is_selftest, worked_example, write_selftest
from validation.verdict import FILE, Verdict

STEPS = 32


def validate(
    build: str | Path,
    reference: str | Path | None = None,
    *,
    images: str | Path | None = None,
    backend: str = "mil",
    steps: int = STEPS,
    progress: Progress = SILENT,
    **checkpoint_options: Any,
) -> Verdict:
    """Compares a build folder with its checkpoint and writes `validation.json` (and `selftest/` when it passes).

    `reference` may be left out for builds of the embedded checkpoint. `images` is a folder of pictures to use in
    place of the shipped ones; `checkpoint_options` are what reading the checkpoint needs (`base`, `allow_pickle`).
    Raises BuildError (files missing or changed), UsageError (a reference that is not the build's source), and
    whatever loading the checkpoint raises.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}, expected at least 1")
    folder = Path(build)
    opened = read_build(folder)
    _check_folder(opened, progress)
    samples = shipped_samples() if images is None else samples_in(Path(images))
    with one_thread():
        model, tokenizer = _load_reference(opened, reference, progress, checkpoint_options)
        comparison = Comparison(opened, model, tokenizer, backend, steps, progress)
        rows, answers = comparison.run(samples)
        measured = {row.limit.key for row in rows}
        missing = tuple(key for key in comparison.limits if key not in measured)
        hashes = {name: row["sha256"] for name, row in opened.source_files.items()}
        manifest_hash = sha256_file(folder / MANIFEST)
        verdict = Verdict(rows, answers, backend, steps, missing, manifest_hash, hashes, folder / FILE)
        with progress.stage("Writing the verdict"):
            _publish(verdict, folder, comparison)
    return verdict


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
        (build.folder / FILE).unlink(missing_ok=True)
        if selftest.is_dir():
            shutil.rmtree(selftest)
        raise


def _load_reference(
    build: Build, reference: str | Path | None, progress: Progress, options: dict[str, Any]
) -> tuple[FastVLM, Tokenizer]:
    """Loads the checkpoint with what was asked for at the export; raises UsageError where it is another one."""
    if reference is None:
        if build.source_id != "tiny":
            raise UsageError(f"this build was made from {build.source_id}; name it: --reference CHECKPOINT")
        reference = "tiny"
    told: dict[str, Any] = {**build.source_options, **options}
    found = _on_disk(build, reference, "", progress)
    if told.get("base") is not None:
        told["base"] = _on_disk(build, told["base"], "base/", progress)
    source = open_checkpoint(found, told.get("base"), told.get("allow_pickle", False)).source
    sizes = {name: path.stat().st_size for name, path in source.paths.items()}
    listed = {name: row.get("bytes") for name, row in build.source_files.items() if isinstance(row, dict)}
    _check_same(build, reference, differing(sizes, listed))  # before gigabytes are read and hashed
    model = load_checkpoint(found, progress=progress, **told)
    if model.source is None or model.tokenizer is None:
        raise UsageError(f"{reference} has no source or no tokenizer")
    _check_same(build, reference, differing(model.source.files(progress), build.source_files))
    return model, model.tokenizer


def _on_disk(build: Build, reference: str | Path, part: str, progress: Progress) -> str | Path:
    """Fetches a Hub id, `part` "base/" for a LoRA's base; UsageError before that where its files have other sizes.

    An id without a revision means the commit that the manifest records: a branch may have moved on since.
    """
    listed = {
        name.removeprefix(part): row.get("bytes")
        for name, row in build.source_files.items()
        if isinstance(row, dict) and name.startswith(part) and (part or not name.startswith("base/"))
    }

    def accept(sizes: Mapping[str, int]) -> None:
        _check_same(build, reference, differing({name: sizes.get(name) for name in listed}, listed))

    recorded = build.manifest["source"].get("base", {}) if part else build.manifest["source"]
    commit = recorded.get("revision") if isinstance(recorded, dict) and recorded.get("id") == reference else None
    pinned = hub_id(f"{reference}@{commit}") if commit and hub_id(reference) else None
    if pinned is None:
        return on_disk(reference, progress, accept)
    progress.note(f"{reference} is read at commit {commit}, which this build was made from")
    return fetch(pinned, progress, accept)


def _check_same(build: Build, reference: str | Path, different: list[str]) -> None:
    if different:
        raise UsageError(
            f"{reference} is not what this build was made from ({', '.join(different[:5])} differ); "
            f"give the checkpoint {build.source_id} it was exported from, or export again"
        )


def _publish(verdict: Verdict, build: Path, comparison: Comparison) -> None:
    """A passed verdict is written after its self-test, a failed one before the old self-test goes: neither lies."""
    if verdict.passed and verdict.answers:
        write_selftest(build, _example(comparison))
        replace_file(verdict.path, dump(verdict.as_json()))
        return
    replace_file(verdict.path, dump(verdict.as_json()))
    if (build / SELFTEST).is_dir():
        shutil.rmtree(build / SELFTEST)


def _example(comparison: Comparison) -> SelfTest:
    """Always the first shipped picture: a user's own photo must not travel with the build."""
    sample = shipped_samples()[0]
    encoded, transcript = comparison.work_out(sample)
    ids, limits = comparison.ids(sample.prompt), comparison.limits
    return worked_example(sample.prompt, encoded, transcript, ids, comparison.stop_ids, limits)
