"""What a spec file says: checkpoints, image sizes, schemes, pictures, and what holds for all cases.

    checkpoints: [tiny, ../FastVLM-0.5B, apple/FastVLM-1.5B]
    image_sizes: [512, 1024]        # default: each checkpoint's own
    schemes: [fp16, int8, my.yaml]  # default: fp16; names or recipes (docs/compression.md)
    images: [photos, task.jsonl]    # folders of pictures, or questions; default: the three that are shipped
    device: iPhone 15 Pro           # whose latency and memory the table estimates

Names of files count from the spec's own folder, as in a questions file. Every mistake is told at once.
It reads no checkpoint and no picture: `cases` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from export.compression.recipe import FP16, NAMES
from export.compression.recipe_text import load_mapping, read_text
from export.plan import CONTEXT
from fastvlm.build import TARGETS
from fastvlm.devices import device as named_device
from fastvlm.errors import UsageError
from fastvlm.quoting import short
from fastvlm_ref.checkpoint.source import EMBEDDED
from validation.steps import MOST

DEVICE = "iPhone 15 Pro"
LISTS = ("checkpoints", "image_sizes", "schemes", "images")
KEYS = (*LISTS, "target", "context", "steps", "device", "keep_builds")
QUESTIONS = ".jsonl"
LONGEST = 1 << 20  # positions: no model reads more, and a number without end is told before any work


@dataclass(frozen=True)
class Named:
    """An entry as the spec names it, which is how rows call it, and where that leads: a path, or a word such as `tiny`.

    at None: the pictures that are shipped.
    """

    name: str
    at: str | None


@dataclass(frozen=True)
class Spec:
    """A spec's values, defaults filled in.

    image_sizes: none is each checkpoint's own; target: "ane", "gpu", or None for what each scheme is for; steps: greedy
    tokens that are compared, None for what `validate` takes; keep_builds: whether builds stay when they are measured.
    """

    checkpoints: tuple[Named, ...]
    image_sizes: tuple[int, ...] = ()
    schemes: tuple[Named, ...] = (Named(FP16, FP16),)
    images: tuple[Named, ...] = (Named("shipped", None),)
    target: str | None = None
    context: int = CONTEXT
    steps: int | None = None
    device: str = DEVICE
    keep_builds: bool = False


def read_spec(path: str | Path) -> Spec:
    """Returns what the file says; UsageError, with everything that is wrong, for one that says nothing to be done."""
    file = Path(path)
    found = load_mapping(read_text(file, "sweep"), f"sweep {file}", "checkpoints: [tiny]")
    problems = [*_unknown(found), *_wrong(found)]
    if problems:
        raise UsageError(f"sweep {file}: {'; '.join(problems)}")
    folder = file.resolve().parent
    if str(folder).encode("utf-8", "replace").decode() != str(folder):
        raise UsageError(f"sweep {file}: its folder's name is not UTF-8, and the table names it; rename the folder")
    given = {key: value for key, value in found.items() if key not in LISTS}
    if "device" in given:
        given["device"] = named_device(given["device"]).name
    if "image_sizes" in found:
        given["image_sizes"] = tuple(found["image_sizes"])
    for key, known in (("checkpoints", (EMBEDDED,)), ("schemes", (*NAMES, FP16)), ("images", ())):
        if key in found:
            given[key] = tuple(_named(word, folder, known) for word in found[key])
    return Spec(**given)


def _named(word: str, folder: Path, known: tuple[str, ...]) -> Named:
    """Where an entry leads: a known word to itself, what lies beside the spec to its path, any other word to itself.

    What is not there, while the current folder has something of that name, leads to where it was looked for: the spec
    would mean something else in every folder.
    """
    if word in known:
        return Named(word, word)
    place = folder / os.path.expanduser(word)  # an unknown ~user stays as it is
    return Named(word, str(place) if os.path.lexists(place) or os.path.lexists(word) else word)


def _unknown(found: Mapping[Any, Any]) -> Iterator[str]:
    for key in found:
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, 1)
            meant = f", perhaps {near[0]} is meant" if near else ""
            yield f"unknown key {short(key)}{meant}; known: {', '.join(KEYS)}"


def _wrong(found: Mapping[Any, Any]) -> Iterator[str]:
    if "checkpoints" not in found:
        yield "checkpoints: it is missing, expected a list such as [tiny]"
    for key, value in found.items():
        if key in LISTS:
            yield from _wrong_list(key, value, _is_count if key == "image_sizes" else _is_word)
    yield from (
        f"{key}: {short(found[key])}, expected {expected}"
        for key, is_right, expected in SCALARS
        if key in found and not is_right(found[key])
    )
    if _is_word(found.get("device")):
        try:
            named_device(found["device"])
        except UsageError as problem:
            yield f"device: {str(problem).removeprefix('--device ')}"


def _wrong_list(key: str, value: Any, is_right: Callable[[Any], bool]) -> Iterator[str]:
    kind = "whole numbers" if key == "image_sizes" else "names"
    if not isinstance(value, list) or not value or not all(map(is_right, value)):
        yield f"{key}: {short(value)}, expected a list of {kind} in [brackets]"
        return
    twice = sorted({str(each) for each in value if value.count(each) > 1})
    if twice:
        yield f"{key}: {', '.join(twice)} stands twice"


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


SCALARS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("target", lambda value: value in TARGETS, " or ".join(TARGETS)),
    ("context", lambda value: _is_count(value) and value <= LONGEST, f"a positive whole number up to {LONGEST}"),
    ("steps", lambda value: _is_count(value) and value <= MOST, f"a whole number from 1 to {MOST}"),
    ("device", _is_word, "a device's name"),
    ("keep_builds", lambda value: isinstance(value, bool), "true or false"),
)
