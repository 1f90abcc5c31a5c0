"""What a worker of a sweep does, wherever it runs: one build, and a row for each set of pictures on it.

A build that is there is whole, because `export` publishes nothing else, and is taken as it is: so what a killed worker
had made is not made again. Errors that a user or a file can cause become rows. Whatever ends the worker itself leaves
no row, and whoever started it tries again. Inputs that changed meanwhile give an error in place of a result: it would
stand under an id of what is no more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export import export
from fastvlm import __version__
from fastvlm.build import read_build
from fastvlm.errors import FastVLMError, OutputError, UsageError
from fastvlm.manifest import NAME, is_build, significant
from fastvlm.progress import Progress
from fastvlm.quoting import one_line
from validation import validate
from validation.fit.advice import classes
from validation.fit.estimating import estimate
from validation.fit.sizes import Sizes, sizes_of
from validation.sweep.builds import build_at, remove
from validation.sweep.cases import Case, Making, making_of
from validation.sweep.identity import what_changed
from validation.sweep.rows import ERROR, SCHEMA, Row, measured, name_of, write_error, write_row
from validation.sweep.spec import QUESTIONS
from validation.verdict import Verdict

ERRORS = (("answer", "kl"), ("language", "kl"))  # of pixels to tokens; of a model that is compared layer by layer
TEXT = 1000  # characters of an error that a row keeps
NOTES = 20  # notes that a row keeps, each as long as an error at most


def work(place: str, sweep: str, making: dict[str, Any], keep: bool, tell: Callable[[str], None] | None = None) -> None:
    """Makes a build under `place` and writes a row for each of its cases that has none.

    sweep: the name that the folder must have; making: `Making.as_json`; keep: whether the build stays. `tell` is called
    with the name of each stage. Raises OutputError where this machine does not see the sweep's folder.
    """
    tell, folder, todo = tell or (lambda stage: None), Path(place), making_of(making)
    if name_of(folder) != sweep:
        raise OutputError(f"{folder} is another sweep's on this machine; every worker must see the same folder")
    done = measured(folder, (case.id for case in todo.cases))
    missing = [case for case in todo.cases if case.id not in done]
    build = build_at(folder, todo.folder)
    if missing:
        _measure(folder, build, todo, missing, tell)
    if not keep:
        remove(build)


class _Heard(Progress):
    """What an export or a comparison has to say, which nobody watches: it goes into the row."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        line = one_line(text, TEXT)
        if line not in self.notes and len(self.notes) < NOTES:
            self.notes.append(line)


def _measure(folder: Path, build: Path, todo: Making, missing: list[Case], tell: Callable[[str], None]) -> None:
    """An unforeseen error of one case is its row's too: the other cases of the build are not lost by it."""
    heard = _Heard()
    try:
        tell("export")
        started = time.perf_counter()
        _check_same(todo, missing[0])
        if not is_build(build):
            _export(todo, build, heard)
        seconds = time.perf_counter() - started
        sizes = sizes_of(build)
        about = {**_sizes(sizes, build), "estimates": _estimates(sizes), "export_seconds": round(seconds, 2)}
    except FastVLMError as problem:
        for case in missing:
            write_error(folder, error_row(todo, case, problem))
        return
    for case in missing:
        tell(f"validate on {case.images}")
        try:
            row = {**labels(todo, case), **about, **_compared(todo, case, build, heard.notes)}
            _check_same(todo, case)
        except FastVLMError as problem:
            write_error(folder, error_row(todo, case, problem))
        except Exception as fault:
            named = FastVLMError(f"internal error ({type(fault).__name__}: {fault}); a fault of fastvlm: report it")
            write_error(folder, error_row(todo, case, named))
        else:
            write_row(folder, row)


def _check_same(todo: Making, case: Case) -> None:
    """Raises UsageError where what a case's id was made of is no longer there, or not on this machine."""
    changed = what_changed(todo, case)
    if changed is not None:
        raise UsageError(f"{changed} changed since the sweep began; type the same command again")


def _export(todo: Making, build: Path, progress: Progress) -> None:
    export(
        todo.checkpoint_at, build, image_sizes=(todo.image_size,), context=todo.context, target=todo.target,
        quantize=todo.scheme_at, overwrite=True, progress=progress,
    )  # fmt: skip


def _compared(todo: Making, case: Case, build: Path, noted: list[str]) -> Row:
    """What validation gives: the verdict, how far apart the tokens are, how the questions were answered."""
    asked: dict[str, Any] = {"questions" if case.at and case.at.endswith(QUESTIONS) else "images": case.at}
    started, heard = time.perf_counter(), _Heard()
    heard.notes += noted
    verdict = validate(build, todo.checkpoint_at, steps=case.steps, progress=heard, **asked)
    score = verdict.score
    of, kl = _error(verdict)
    return {
        "status": verdict.word, "pictures": verdict.pictures, "steps": verdict.steps,
        "missed": [row.limit.key for row in verdict.rows if not row.passed], "lacking": list(verdict.lacking),
        "kl": kl, "kl_of": of, "questions": score.count, "agree": score.agree, "answered": score.answered,
        "build_right": score.build_right, "reference_right": score.reference_right,
        "validate_seconds": round(time.perf_counter() - started, 2), "notes": heard.notes,
    }  # fmt: skip


def _error(verdict: Verdict) -> tuple[str | None, float | None]:
    """Of which run of the decoder, and the mean KL divergence of its tokens in nats; None where there is no number."""
    found = {(row.limit.quantity, row.limit.metric): row.value for row in verdict.rows}
    key = next((key for key in ERRORS if key in found), None)
    if key is None:
        return None, None
    return key[0], significant(found[key]) if math.isfinite(found[key]) else None


def _sizes(sizes: Sizes, build: Path) -> Row:
    """Bytes of the build as it was exported: what an earlier comparison wrote into it does not count."""
    assert sizes.built is not None
    files = sizes.built.files
    listed = read_build(build).manifest["files"].values()
    total = sum(int(each["bytes"]) for each in listed) + (build / NAME).stat().st_size
    return {
        "bytes": total, "encoder_bytes": files.encoder, "language_bytes": sum(files.language),
        "embeddings_bytes": files.embeddings,
    }  # fmt: skip


def _estimates(sizes: Sizes) -> list[Row]:
    """What the build would be on every device of the table, from its own files and ops; alike devices once."""
    found = []
    for group in classes():
        one = estimate(sizes, group[0])
        found.append({
            "devices": [device.name for device in group], "first_token": one.first_token,
            "tokens_per_second": one.tokens_per_second, "memory": one.memory.need, "fits_memory": one.memory.verdict,
            "fits_app": one.fits_app,
        })  # fmt: skip
    return found


def labels(todo: Making, case: Case) -> Row:
    """Returns what a row says of its case, in the words of the spec."""
    return {
        "schema": SCHEMA, "case": case.id, "build": todo.folder, "checkpoint": todo.checkpoint,
        "image_size": todo.image_size, "scheme": todo.scheme, "target": todo.target, "context": todo.context,
        "images": case.images, "fastvlm_version": __version__,
    }  # fmt: skip


def error_row(todo: Making, case: Case, problem: Exception) -> Row:
    """Returns the row of a case that could not be measured."""
    return {**labels(todo, case), "status": ERROR, "error": one_line(str(problem), TEXT)}
