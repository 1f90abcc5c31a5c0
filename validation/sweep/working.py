"""What a worker of a sweep does, wherever it runs: one build, and a row for each set of pictures on it.

A build that is there is whole, because `export` publishes nothing else, and is taken as it is: so what a killed worker
had made is not made again. Errors that a user or a file can cause become rows. Whatever ends the worker itself leaves
no row, and whoever started it tries again.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export import export
from fastvlm import __version__
from fastvlm.errors import FastVLMError, OutputError
from fastvlm.manifest import is_build, significant
from validation import validate
from validation.fit.advice import classes
from validation.fit.estimating import estimate
from validation.fit.sizes import Sizes, sizes_of
from validation.sweep.cases import Case, Making, making_of
from validation.sweep.rows import BUILDS, ERROR, SCHEMA, Row, measured, name_of, write_row
from validation.sweep.spec import QUESTIONS
from validation.verdict import Verdict

ERRORS = (("answer", "kl"), ("language", "kl"))  # of pixels to tokens; of a model that is compared layer by layer
TEXT = 1000  # characters of an error that a row keeps


class Worker:
    """The object that a process of its own serves (`validation.children`)."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def work(self, **given: Any) -> None:
        """As `work`."""
        work(tell=self._tell, **given)


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
    build = folder / BUILDS / todo.folder
    if missing:
        _measure(folder, build, todo, missing, tell)
    if not keep:
        _remove(build)


def _measure(folder: Path, build: Path, todo: Making, missing: list[Case], tell: Callable[[str], None]) -> None:
    try:
        tell("export")
        started = time.perf_counter()
        if not is_build(build):
            _export(todo, build)
        seconds = time.perf_counter() - started
        sizes = sizes_of(build)
        about = {**_sizes(sizes), "estimates": _estimates(sizes), "export_seconds": round(seconds, 2)}
    except FastVLMError as problem:
        for case in missing:
            write_row(folder, error_row(todo, case, problem))
        return
    for case in missing:
        tell(f"validate on {case.images}")
        try:
            row = {**_row(todo, case), **about, **_compared(todo, case, build)}
        except FastVLMError as problem:
            row = error_row(todo, case, problem)
        write_row(folder, row)


def _export(todo: Making, build: Path) -> None:
    export(
        todo.checkpoint_at, build, image_sizes=(todo.image_size,), context=todo.context, target=todo.target,
        quantize=todo.scheme_at, overwrite=True,
    )  # fmt: skip


def _compared(todo: Making, case: Case, build: Path) -> Row:
    """What validation gives: the verdict, how far apart the tokens are, how the questions were answered."""
    asked: dict[str, Any] = {"questions" if case.at and case.at.endswith(QUESTIONS) else "images": case.at}
    started = time.perf_counter()
    verdict = validate(build, todo.checkpoint_at, steps=case.steps, **asked)
    score = verdict.score
    of, kl = _error(verdict)
    return {
        "status": verdict.word, "pictures": verdict.pictures, "steps": verdict.steps,
        "missed": [row.limit.key for row in verdict.rows if not row.passed], "lacking": list(verdict.lacking),
        "kl": kl, "kl_of": of, "questions": score.count, "agree": score.agree, "answered": score.answered,
        "build_right": score.build_right, "reference_right": score.reference_right,
        "validate_seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def _error(verdict: Verdict) -> tuple[str, float | None]:
    """Of which run of the decoder, and the mean KL divergence of its tokens in nats; None where that is no number."""
    found = {(row.limit.quantity, row.limit.metric): row.value for row in verdict.rows}
    key = next(key for key in ERRORS if key in found)
    return key[0], significant(found[key]) if math.isfinite(found[key]) else None


def _sizes(sizes: Sizes) -> Row:
    assert sizes.built is not None
    files = sizes.built.files
    return {
        "bytes": files.total, "encoder_bytes": files.encoder, "language_bytes": sum(files.language),
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


def _row(todo: Making, case: Case) -> Row:
    return {
        "schema": SCHEMA, "case": case.id, "build": todo.folder, "checkpoint": todo.checkpoint,
        "image_size": todo.image_size, "scheme": todo.scheme, "target": todo.target, "context": todo.context,
        "images": case.images, "fastvlm_version": __version__,
    }  # fmt: skip


def error_row(todo: Making, case: Case, problem: Exception) -> Row:
    """Returns the row of a case that could not be measured."""
    return {**_row(todo, case), "status": ERROR, "error": " ".join(str(problem).split())[:TEXT]}


def _remove(build: Path) -> None:
    """Takes a build away under another name first: what a killed removal leaves must not be taken for a build."""
    if build.is_dir():
        gone = build.parent / f".{build.name}.gone-{secrets.token_hex(4)}"
        os.rename(build, gone)
        shutil.rmtree(gone, ignore_errors=True)
