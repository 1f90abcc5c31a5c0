"""What is to be done: builds to make, and on each of them cases to measure, with ids that say when two are the same.

An id is made of all that a result depends on: the checkpoint's files by name, size and time of change (hashing 15 GB
takes longer than asking), image size, scheme or the recipe's text, target, context, the pictures' and questions' bytes,
steps, and the code. A row under a case's id is that case's result, whoever measured it and when.

Every build is held against checkpoint, target and sizes before the first is made, as `fit` does it, and every picture's
header is read. It starts nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from export.compression.recipe import FP16, MIXED, NAMES, requested
from export.parts_key import code_digest
from fastvlm import __version__
from fastvlm.errors import FastVLMError, UsageError
from fastvlm.hashes import sha256_bytes, sha256_file
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.hub import on_disk
from fastvlm_ref.checkpoint.opening import folder_of
from fastvlm_ref.questions import read_questions
from fastvlm_ref.samples import Sample, check_pictures, samples_in, shipped_samples
from validation.fit.estimating import estimate, target_of
from validation.fit.sizes import Sizes, sizes_of
from validation.sweep.spec import QUESTIONS, Named, Spec

ID = 16  # hex digits


@dataclass(frozen=True)
class Case:
    """One set of pictures for a build: its name in the spec, where it lies (None: the shipped ones), how many steps."""

    id: str
    images: str
    at: str | None
    steps: int | None


@dataclass(frozen=True)
class Making:
    """One build: what `export` is to be told, as the spec names it and where that leads; cases are measured on it."""

    id: str
    folder: str  # name of the build's folder
    checkpoint: str
    checkpoint_at: str
    image_size: int
    scheme: str
    scheme_at: str
    target: str
    context: int
    cases: tuple[Case, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, which travels to a worker."""
        return asdict(self)


def making_of(content: dict[str, Any]) -> Making:
    """Returns what `Making.as_json` gave."""
    return Making(**{**content, "cases": tuple(Case(**case) for case in content["cases"])})


def planned(spec: Spec, progress: Progress = SILENT) -> list[Making]:
    """Returns every build of a spec with its cases, in the spec's order; Hub ids are fetched.

    Raises UsageError that tells everything that cannot be: a checkpoint that is none, a scheme that target or shapes
    cannot have, an image without room for text, pictures that are none, two entries that mean the same.
    """
    problems: list[str] = []
    checkpoints, pictures, makings = [], [], []
    for named in spec.checkpoints:
        with _told(problems, "checkpoints"):
            at = str(on_disk(_word(named), progress))
            checkpoints.append((named, at, _checkpoint(at)))
    for named in spec.images:
        with _told(problems, "images"):
            pictures.append((named, _pictures_digest(named.at)))
    for named, at, sizes in checkpoints:
        for side, scheme in product(spec.image_sizes or (sizes.vision.image_size,), spec.schemes):
            with _told(problems, f"{named.name} at {side}, {scheme.name}"):
                makings.append(_making(spec, pictures, named, at, sizes, side, scheme))
    problems += _same(makings)
    if problems:
        raise UsageError(f"sweep: {'; '.join(dict.fromkeys(problems))}")
    return makings


@contextmanager
def _told(problems: list[str], of: str) -> Iterator[None]:
    """Adds what is wrong inside the block to the problems."""
    try:
        yield
    except FastVLMError as problem:
        problems.append(f"{of}: {problem}")


def _word(named: Named) -> str:
    assert named.at is not None
    return named.at


def _checkpoint(at: str) -> Sizes:
    sizes = sizes_of(at)
    if sizes.kind != "checkpoint":
        raise UsageError(f"{at} is a {sizes.kind}, expected a checkpoint's folder, `tiny`, or a Hub id")
    return sizes


def _making(
    spec: Spec, pictures: list[tuple[Named, str]], named: Named, at: str, sizes: Sizes, side: int, scheme: Named
) -> Making:  # fmt: skip
    where = _word(scheme)
    target = spec.target or target_of(where)
    chosen_by_measuring = MIXED in asdict(requested(where, target)).values()  # nothing to estimate, the sizes count
    estimate(sizes, spec.device, None if chosen_by_measuring else where, side, spec.context, target=target)
    content = [__version__, code_digest(), _files(at), side, _scheme_digest(where), target, spec.context]
    making = _id(content)
    cases = tuple(
        Case(_id([making, digest, spec.steps]), images.name, images.at, spec.steps) for images, digest in pictures
    )
    folder = "-".join((_plain(named.name), str(side), _plain(scheme.name), making[:8]))
    return Making(making, folder, named.name, at, side, scheme.name, where, target, spec.context, cases)


def _files(at: str) -> list[list[Any]]:
    """Name, size and time of change of every file of a checkpoint's folder."""
    found = sorted((path.name, path.stat()) for path in folder_of(at).iterdir() if path.is_file())
    return [[name, status.st_size, status.st_mtime_ns] for name, status in found]


def _scheme_digest(at: str) -> str:
    return at if at in (*NAMES, FP16) else sha256_file(at)


def samples_at(at: str | None) -> list[Sample]:
    """Returns the pictures and questions of a set: a folder's, a .jsonl file's, or (None) the shipped ones."""
    if at is None:
        return shipped_samples()
    path = Path(at)
    return read_questions(path, "entry") if path.suffix == QUESTIONS else samples_in(path, "entry")


def _pictures_digest(at: str | None) -> str:
    samples = samples_at(at)
    check_pictures(samples)
    seen = {picture: sha256_file(picture) for picture in dict.fromkeys(sample.picture for sample in samples)}
    return _id([[sample.name, seen[sample.picture], sample.prompt, sample.answer] for sample in samples])


def _same(makings: list[Making]) -> Iterator[str]:
    """Entries of a spec that have two names and lead to the same."""
    first: dict[str, tuple[str, str]] = {}
    for making in makings:
        for case in making.cases:
            known = first.setdefault(case.id, (making.checkpoint, case.images))
            if known != (making.checkpoint, case.images):
                yield f"{' with '.join(known)} and {making.checkpoint} with {case.images} are the same; leave one out"
        if len({case.id for case in making.cases}) < len(making.cases):
            yield f"images: {', '.join(case.images for case in making.cases)} hold the same pictures; leave some out"


def _id(content: Any) -> str:
    return sha256_bytes(json.dumps(content).encode())[:ID]


def _plain(name: str) -> str:
    """A name as part of a folder's: its last component, letters and digits."""
    last = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name.removesuffix(".yaml")).strip("-.")
    return last[:40] or "x"
