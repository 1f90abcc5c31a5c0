"""Where two JSON values differ, in words: what a manifest says beside what it should say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NOTHING = "nothing"


def different(path: str, told: Any, wanted: Any) -> Iterator[str]:
    """Gives every place where `told` is otherwise than `wanted`: "prompt.stop_ids is [2], expected [2, 5]"."""
    if isinstance(told, dict) and isinstance(wanted, dict):
        for key in sorted(told.keys() | wanted.keys()):
            yield from different(f"{path}.{key}", told.get(key, NOTHING), wanted.get(key, NOTHING))
    elif isinstance(told, list) and isinstance(wanted, list) and len(told) == len(wanted) and _of_objects(wanted):
        for index, (mine, theirs) in enumerate(zip(told, wanted, strict=True)):
            yield from different(f"{path}.{index}", mine, theirs)
    elif told != wanted:
        yield f"{path} is {short(told)}, expected {short(wanted)}"


def _of_objects(value: list[Any]) -> bool:
    """Whether a list holds objects, of which each is looked into; a list of numbers is told whole."""
    return any(isinstance(item, dict) for item in value)


def short(value: Any) -> str:
    """Returns a value as a message shows it."""
    return str(value)[:60]
