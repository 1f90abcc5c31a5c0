"""Reading a JSON file that a stranger may have written: plain, of bounded size, of values that can be written again.

A pipe or a device is never opened for long, a link never followed, and no file is read beyond its limit. NaN, infinity,
half a character and nesting without end, which JSON's readers let through, are no valid JSON here: whatever is read can
be dumped. It does not know what a file is for; who asks says what is wrong, and what to do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fastvlm.paths import open_followed, open_plain
from fastvlm.quoting import short

MOST_LISTS = 1_000_000  # each takes 64 bytes at least: 64 MB of [] would take a gigabyte
MOST_VALUES = 2_000_000  # twice the largest vocabulary; 16 million numbers take 700 MB and 12 s to be read and checked


def read_plain(path: Path, most: int) -> bytes:
    """Returns the bytes of a plain file of at most `most`; raises as `open_plain`, ValueError for a larger file."""
    with open_plain(path) as file:
        return _at_most(file, most)


def read_followed(path: str | Path, most: int) -> bytes:
    """Returns the bytes of a plain file that a path of the user leads to, as `read_plain`, by links too."""
    with open_followed(path) as file:
        return _at_most(file, most)


def _at_most(file: BinaryIO, most: int) -> bytes:
    data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def read_json(path: Path, most: int) -> Any:
    """Returns the JSON document in a file; raises as `read_plain`, and ValueError for what is no valid JSON."""
    return parse(read_plain(path, most))


def parse(data: bytes, once: bool = False) -> Any:
    """Returns the JSON document in `data`; ValueError, with a reason of one line, for what is none.

    `once`: what an object names twice is refused too, where two readers could disagree about which one counts.
    """
    try:
        pairs_hook = each_once if once else None
        content = json.loads(
            counted(data), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=pairs_hook
        )
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as problem:
        raise ValueError("it is nested without end") from problem
    except UnicodeError as problem:
        raise ValueError("it holds half a character, which is no text") from problem
    return content


def counted(data: bytes) -> bytes:
    """Returns the bytes of a document as they are; ValueError for more lists or values than are read.

    For those who read it with json itself, since a file of ours may hold what `parse` refuses, such as NaN.
    """
    if (lists := data.count(b"[") + data.count(b"{")) > MOST_LISTS:
        raise ValueError(f"it has {lists:,} lists and objects, at most {MOST_LISTS:,} are read")
    if data.count(b",") >= MOST_VALUES:
        raise ValueError(f"it has over {MOST_VALUES:,} values, no more are read")
    return data


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON, as json's `object_pairs_hook`; ValueError for a name that stands in it twice.

    Of two values one would be lost, and another reader may keep the other one.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it names {short(name)} twice")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value
