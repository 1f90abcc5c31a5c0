"""Qwen2's tokenizer once more, slowly and in plain Python, to hold the fast one against: no line of it is shared.

Unicode's classes come from the standard library, the split into words is a scanner where the fast one has a regular
expression, and merges are looked up in merges.txt. What transformers had as its slow tokenizer until version 4.
It knows no added tokens: whatever text spells is spelled out.
"""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

SHORTENED = ("s", "t", "re", "ve", "m", "ll", "d")  # what stands behind an apostrophe, in either case
SPACES = {*"\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))}


@cache
def kind(sign: str) -> str:
    """Returns L for a letter, N for a number, S for white space, and - for anything else."""
    if sign in SPACES:
        return "S"
    category = unicodedata.category(sign)[0]
    return category if category in "LN" else "-"


def words(text: str) -> list[str]:
    """Cuts text at the places where no merge may cross."""
    found, start = [], 0
    while start < len(text):
        end = _end(text, start)
        found.append(text[start:end])
        start = end
    return found


def _end(text: str, start: int) -> int:
    """Where the word ends that begins at `start`."""
    if text[start] == "'":
        for short in SHORTENED:
            if text[start + 1 : start + 1 + len(short)].casefold() == short:
                return start + 1 + len(short)
    first, second = kind(text[start]), kind(text[start + 1]) if start + 1 < len(text) else ""
    if first == "L" or (second == "L" and first != "N" and text[start] not in "\r\n"):
        return _while(text, start + 1, "L")
    if first == "N":
        return start + 1
    if first == "-" or (text[start] == " " and second == "-"):
        end = _while(text, start + 1, "-")
        while end < len(text) and text[end] in "\r\n":
            end += 1
        return end
    return _spaces(text, start)


def _while(text: str, start: int, wanted: str) -> int:
    while start < len(text) and kind(text[start]) == wanted:
        start += 1
    return start


def _spaces(text: str, start: int) -> int:
    """White space: up to its last line break; without one all but the last, which belongs to what follows."""
    end = _while(text, start, "S")
    breaks = [place for place in range(start, end) if text[place] in "\r\n"]
    if breaks:
        return breaks[-1] + 1
    return end if end == len(text) or end == start + 1 else end - 1


def letters() -> list[str]:
    """Returns the letter that stands for each byte: itself where it can be printed, else one from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


LETTERS = letters()


class SlowQwen2:
    """The tokenizer of a folder's vocab.json and merges.txt."""

    def __init__(self, folder: Path) -> None:
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of text."""
        return [id_ for word in self.words(text) for id_ in self._word(word)]

    def words(self, text: str) -> list[str]:
        """Returns the words of text, a letter for each byte."""
        cut = words(unicodedata.normalize("NFC", text))
        return ["".join(LETTERS[byte] for byte in word.encode()) for word in cut]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = list(word)
            while (best := min(pairwise(parts), key=self._rank, default=None)) in self._ranks:
                parts = _joined(parts, best)
            self._known[word] = [self._ids[part] for part in parts]
        return self._known[word]

    def _rank(self, pair: tuple[str, str]) -> int:
        return self._ranks.get(pair, len(self._ranks))


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Joins every place of the pair, from the left."""
    found, place = [], 0
    while place < len(parts):
        step = 2 if tuple(parts[place : place + 2]) == pair else 1
        found.append("".join(parts[place : place + step]))
        place += step
    return found
