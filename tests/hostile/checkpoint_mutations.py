"""Checkpoints with something of one file changed: bytes, tokens of its JSON, or its end; each by its number alone.

A number gives the same mutation always: its name says the layout, the file and what was done. Where a header is
changed in length, its length is told anew in half of the cases, or the reader would never come to look at it.
"""

from __future__ import annotations

import random
import re
import struct
from typing import NamedTuple

from checkpoint_files import CONFIG, Files

TOKENS = (
    b"0", b"-1", b"1e999", b"9" * 30, b"18446744073709551616", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"',
    b"NaN", b'"I16"', b'"F64"', b"[[[[[[", b'"../x"',
)  # fmt: skip
NUMBER = re.compile(rb"-?\d+")
TEXT = re.compile(rb'"[^"]{1,80}"')


class Mutation(NamedTuple):
    """What one case tries: its name, which files it starts from, and the files after it."""

    name: str
    layout: str
    target: str
    files: Files


def mutation(number: int, layouts: dict[str, Files]) -> Mutation:
    """Returns the mutation of this number; `layouts` are the good files by layout, the first of them most often."""
    drawn = random.Random(f"checkpoint {number}")
    names = list(layouts)
    layout = names[0] if drawn.random() < 0.5 else drawn.choice(names)
    good = layouts[layout]
    weights = [name for name in good if name.endswith(".safetensors")]
    others = [name for name in good if name not in weights]
    target = (
        drawn.choice(weights) if drawn.random() < 0.75 else CONFIG if drawn.random() < 0.4 else drawn.choice(others)
    )
    content, said = (in_weights if target in weights else in_text)(drawn, good[target])
    return Mutation(f"{number}: {layout} {target} {said}", layout, target, {**good, target: content})


def in_weights(drawn: random.Random, content: bytes) -> tuple[bytes, str]:
    """Changes a weight file: mostly its header, sometimes its data or its end."""
    (length,) = struct.unpack("<Q", content[:8])
    where = drawn.random()
    if where < 0.12:
        end = drawn.choice([drawn.randrange(len(content)), drawn.randrange(8 + length), len(content) - 1])
        return content[:end], f"cut at {end}"
    if where < 0.27:
        data = bytearray(content)
        place = drawn.randrange(8 + length, len(content))
        data[place] ^= 1 << drawn.randrange(8)
        return bytes(data), f"data {place} flipped"
    if where < 0.3:
        return content + drawn.randbytes(drawn.randrange(1, 9)), "something behind it"
    if where < 0.34:
        return drawn.randbytes(8) + content[8:], "another length"
    header, said = (_token if drawn.random() < 0.6 else in_bytes)(drawn, content[8 : 8 + length])
    told = len(header) if drawn.random() < 0.5 else length
    return struct.pack("<Q", told) + header + content[8 + length :], f"header {said}, length {told - length:+}"


def in_text(drawn: random.Random, content: bytes) -> tuple[bytes, str]:
    """Changes a JSON file: its tokens, its bytes or its end."""
    where = drawn.random()
    if where < 0.1:
        end = drawn.randrange(len(content))
        return content[:end], f"cut at {end}"
    return (_token if where < 0.7 else in_bytes)(drawn, content)


def _token(drawn: random.Random, content: bytes) -> tuple[bytes, str]:
    """Puts another token in the place of a number or a text."""
    found = list((NUMBER if drawn.random() < 0.5 else TEXT).finditer(content))
    if not found:
        return in_bytes(drawn, content)
    chosen = drawn.choice(found)
    other = drawn.choice(found)[0] if drawn.random() < 0.4 else drawn.choice(TOKENS)
    told = f"{chosen[0][:30]!r} at {chosen.start()} by {other[:30]!r}"
    return content[: chosen.start()] + other + content[chosen.end() :], told


def in_bytes(drawn: random.Random, content: bytes) -> tuple[bytes, str]:
    """Flips, replaces, puts in, takes out, doubles or exchanges bytes."""
    data, place = bytearray(content), drawn.randrange(len(content))
    span = drawn.choice([1, 1, 2, 8, 100])
    kind = drawn.choice(["flipped", "replaced", "put in", "taken out", "doubled", "exchanged"])
    if kind == "flipped":
        data[place] ^= 1 << drawn.randrange(8)
    elif kind == "replaced":
        data[place : place + span] = drawn.randbytes(len(data[place : place + span]))
    elif kind == "put in":
        data[place:place] = drawn.choice([drawn.randbytes(span), b"[" * 3000, b"\0" * span, b" " * span])
    elif kind == "taken out":
        del data[place : place + span]
    elif kind == "doubled":
        data[place:place] = data[place : place + span]
    else:
        other = drawn.randrange(len(content))
        data[place], data[other] = data[other], data[place]
    return bytes(data), f"{kind} at {place}, {span}"
