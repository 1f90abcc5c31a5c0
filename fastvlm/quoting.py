"""A stranger's value as a message shows it: never longer than a line, never a sign that a terminal would obey.

`repr` alone is not enough: it fails for numbers of thousands of digits and for deep nesting, and repeats megabytes.
"""

from __future__ import annotations

import reprlib

MOST = 60  # characters: enough to recognise a value by
DIGITS = 40  # of a whole number that is still written out


class _Short(reprlib.Repr):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.maxstring = self.maxother = most
        self.maxlist = self.maxtuple = self.maxdict = 10
        self.maxlevel = 3

    def repr_str(self, x: str, level: int) -> str:
        return repr(x if len(x) <= self.maxstring else f"{x[: self.maxstring]}...")

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out more than 4,300 digits, and takes long for fewer.
        return repr(x) if abs(x).bit_length() <= DIGITS * 3 else f"a whole number of {x.bit_length():,} bits"


def short(value: object, most: int = MOST) -> str:
    """Returns a value of JSON or YAML as messages show it: printable, at most `most` characters."""
    text = _Short(most).repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str, most: int = MOST) -> str:
    """Returns a text without quotes: what is no printable character as `?`, at most `most` characters."""
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def listed(names: object, most: int = 5) -> str:
    """Returns the first few names of a stranger's list, each shortened, and how many more there are."""
    found = [str(name) for name in names] if isinstance(names, (list, tuple, set, frozenset)) else [str(names)]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(short(name) for name in found[:most]) + more
