"""What a result depends on, as an id: two cases of one id have one result, whoever measures it and when.

A checkpoint counts by its files: name, size, time of change, and the bytes of small files and of samples of large ones
(hashing 15 GB takes longer than asking; file systems that give every file one time are why time and size alone are not
taken). Pictures and recipes count by their bytes, and with them image size, target, context, steps, and the code.

Whoever works on a case asks again before the result counts: what changed meanwhile has another id.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.compression.recipe import FP16, NAMES
from export.parts_key import LIBRARIES, code_digest
from fastvlm import __version__
from fastvlm.errors import CheckpointError
from fastvlm.hashes import sha256_bytes, sha256_file
from fastvlm.paths import open_followed
from fastvlm_ref.checkpoint.opening import folder_of
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import Sample, check_pictures, samples_in, shipped_samples
from validation.sweep.spec import QUESTIONS

if TYPE_CHECKING:
    from validation.sweep.cases import Case, Making

ID = 16  # hex digits
ROOMS = ("fastvlm", "fastvlm_ref", "export", "validation")
SAMPLES, SAMPLE = 16, 1 << 16  # how many of a file, and their bytes; a file that they would cover is read whole


def id_of(content: Any) -> str:
    """Returns the id of plain data."""
    return sha256_bytes(json.dumps(content).encode())[:ID]


@cache
def code() -> str:
    """Returns what stands for this project's code and the libraries that compute, as they were at the first call."""
    return id_of([__version__, code_digest(ROOMS), {name: version(name) for name in LIBRARIES}])


def checkpoint_digest(at: str) -> str:
    """Returns what stands for the files of a checkpoint's folder; CheckpointError where they cannot be read."""
    try:
        files = sorted(path for path in folder_of(at).iterdir() if path.is_file())
        return id_of([[path.name, *_sampled(path)] for path in files])
    except OSError as problem:
        raise CheckpointError(f"{problem.filename or at}: {problem.strerror}; the checkpoint's files are needed") from (
            problem
        )


def _sampled(file: Path) -> tuple[int, int, str]:
    """Size, time of change in ns, and the hash of samples that are spread evenly, from the first byte to the last."""
    with open_followed(file) as handle:
        status, digest = os.fstat(handle.fileno()), hashlib.sha256()
        last = status.st_size - SAMPLE
        spread = [place * last // (SAMPLES - 1) for place in range(SAMPLES)]
        for place in spread if last > SAMPLE * (SAMPLES - 1) else range(0, status.st_size, SAMPLE):
            handle.seek(place)
            digest.update(handle.read(SAMPLE))
    return status.st_size, status.st_mtime_ns, digest.hexdigest()


def scheme_digest(at: str) -> str:
    """Returns what stands for a scheme: its name, or the recipe's bytes."""
    return at if at in (*NAMES, FP16) else sha256_file(at)


def samples_at(at: str | None) -> list[Sample]:
    """Returns the pictures and questions of a set: a folder's, a .jsonl file's, or (None) the shipped ones."""
    if at is None:
        return shipped_samples()
    path = Path(at)
    return read_questions(path, "entry") if path.suffix == QUESTIONS else samples_in(path, "entry")


def pictures_digest(at: str | None) -> str:
    """Returns what stands for a set: names and bytes of pictures, questions and answers; ImageError for no pictures."""
    samples = samples_at(at)
    check_pictures(samples)
    seen = {picture: sha256_file(picture) for picture in dict.fromkeys(sample.picture for sample in samples)}
    return id_of([[sample.name, seen[sample.picture], sample.prompt, sample.answer] for sample in samples])


def build_id(code: str, checkpoint: str, image_size: int, scheme: str, target: str, context: int) -> str:
    """Returns the id of a build; checkpoint and scheme are their digests."""
    return id_of([code, checkpoint, image_size, scheme, target, context])


def case_id(build: str, pictures: str, steps: int | None) -> str:
    """Returns the id of a case of the build with that id; pictures is their digest."""
    return id_of([build, pictures, steps])


def what_changed(making: Making, case: Case) -> str | None:
    """Returns which of a case's inputs is no longer what its id was made of, None where all are; errors as planning."""
    checkpoint, scheme = checkpoint_digest(making.checkpoint_at), scheme_digest(making.scheme_at)
    made_of = (making.code, checkpoint, making.image_size, scheme, making.target, making.context)
    if build_id(*made_of) != making.id:
        recipe = "" if scheme == making.scheme_at else f" or the recipe {making.scheme_at}"
        return f"the checkpoint {making.checkpoint_at}{recipe}"
    if case_id(making.id, pictures_digest(case.at), case.steps) != case.id:
        return f"the pictures of {case.images}"
    return None
