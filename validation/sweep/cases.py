"""What is to be done: builds to make, and on each of them cases to measure, with ids that say when two are the same.

Every build is held against checkpoint, target and sizes before the first is made, as `fit` does it, and every picture's
header is read. It starts nothing. What an id is made of, `identity` knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from export.compression.recipe import MIXED, requested
from fastvlm.errors import FastVLMError, UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.hub import hub_id, on_disk
from validation.fit.estimating import estimate, target_of
from validation.fit.sizes import Sizes, sizes_of
from validation.sweep.identity import build_id, case_id, checkpoint_digest, code, pictures_digest, scheme_digest
from validation.sweep.spec import Named, Spec


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
    code: str  # what stands for the code that the id was made with
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
    """Returns every build of a spec with its cases, in the spec's order; Hub ids are fetched, when all else is right.

    Raises UsageError that tells everything that cannot be: a checkpoint that is none, a scheme that target or shapes
    cannot have, an image without room for text, pictures that are none, two entries that mean the same.
    """
    problems: list[str] = []
    schemes, pictures = [], []
    for scheme in spec.schemes:
        with _told(problems, "schemes"):
            schemes.append(_scheme(scheme, spec.target))
    for named in spec.images:
        with _told(problems, "images"):
            pictures.append((named, pictures_digest(named.at)))
    made: dict[Named, list[Making]] = {}
    for far in (False, True):  # nobody waits for gigabytes to hear of a misspelt word
        for named in spec.checkpoints:
            if far == (hub_id(_word(named)) is not None):
                with _told(problems, "checkpoints"):
                    checkpoint = _checkpoint(named, progress)
                    made[named] = list(_makings(spec, checkpoint, schemes, pictures, problems))
        _refuse(problems)
    makings = [making for named in spec.checkpoints for making in made[named]]
    _refuse([*_same(makings)])
    return makings


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UsageError(f"sweep: {'; '.join(dict.fromkeys(problems))}")


def in_keys(text: str) -> str:
    """Returns a message of the commands in a spec's words: it has keys where they have options."""
    for option, key in (("--image-size", "image_sizes"), ("--quantize", "schemes")):
        text = text.replace(option, key)
    return re.sub(r"--(context|target|device)\b", r"\1", text)


@contextmanager
def _told(problems: list[str], of: str) -> Iterator[None]:
    """Adds what is wrong inside the block to the problems."""
    try:
        yield
    except FastVLMError as problem:
        problems.append(f"{of}: {in_keys(str(problem))}")
    except OSError as problem:  # a name that is too long, a file that may not be read
        problems.append(f"{of}: {problem.filename}: {problem.strerror}; check the name and its permissions")


def _word(named: Named) -> str:
    assert named.at is not None
    return named.at


@dataclass(frozen=True)
class _Scheme:
    named: Named
    target: str
    is_measured: bool  # chosen by measuring: there is nothing to estimate, the sizes count
    digest: str


def _scheme(named: Named, target: str | None) -> _Scheme:
    where = _word(named)
    target = target or target_of(where)
    return _Scheme(named, target, MIXED in asdict(requested(where, target)).values(), scheme_digest(where))


@dataclass(frozen=True)
class _Checkpoint:
    named: Named
    at: str
    sizes: Sizes
    digest: str


def _checkpoint(named: Named, progress: Progress) -> _Checkpoint:
    at = str(on_disk(_word(named), progress))
    sizes = sizes_of(at)
    if sizes.kind != "checkpoint":
        raise UsageError(f"{at} is a {sizes.kind}, expected a checkpoint's folder, `tiny`, or a Hub id")
    return _Checkpoint(named, at, sizes, checkpoint_digest(at))


def _makings(
    spec: Spec, checkpoint: _Checkpoint, schemes: list[_Scheme], pictures: list[tuple[Named, str]], problems: list[str]
) -> Iterator[Making]:
    """The builds of a checkpoint that can be made; the others are told."""
    for side, scheme in product(spec.image_sizes or (checkpoint.sizes.vision.image_size,), schemes):
        with _told(problems, f"{checkpoint.named.name} at {side}, {scheme.named.name}"):
            asked = None if scheme.is_measured else _word(scheme.named)
            estimate(checkpoint.sizes, spec.device, asked, side, spec.context, target=scheme.target)
            yield _making(spec, checkpoint, side, scheme, pictures)


def _making(
    spec: Spec, checkpoint: _Checkpoint, side: int, scheme: _Scheme, pictures: list[tuple[Named, str]]
) -> Making:  # fmt: skip
    own = build_id(code(), checkpoint.digest, side, scheme.digest, scheme.target, spec.context)
    cases = tuple(
        Case(case_id(own, digest, spec.steps), images.name, images.at, spec.steps) for images, digest in pictures
    )
    folder = "-".join((_plain(checkpoint.named.name), str(side), _plain(scheme.named.name), own[:8]))
    return Making(
        own, code(), folder, checkpoint.named.name, checkpoint.at, side, scheme.named.name, _word(scheme.named),
        scheme.target, spec.context, cases,
    )  # fmt: skip


def _same(makings: list[Making]) -> Iterator[str]:
    """Entries of a spec that have two names and lead to the same: one result would stand in the table twice."""
    first: dict[str, str] = {}
    for making in makings:
        for case in making.cases:
            name = f"{making.checkpoint} at {making.image_size}, {making.scheme}, {case.images}"
            if case.id in first:
                yield f"{first[case.id]} and {name} are the same; leave one out"
            first.setdefault(case.id, name)


def _plain(name: str) -> str:
    """A name as part of a folder's: its last component, letters and digits."""
    last = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name.removesuffix(".yaml")).strip("-.")
    return last[:40] or "x"
