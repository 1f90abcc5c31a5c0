"""What a stranger wrote as a terminal may show it: the one place that says how. It never obeys what is shown here.

Which of these is right depends on what is shown:
- `printable`: a name or another short text that stands without quotes, in a line of ours;
- `one_line`: a library's message, of as many lines as it likes; `first_line`: an error of one that tells too much;
- `spelled`: a name that may look like another one, or like none: in ASCII alone;
- `short`, `listed`: a value of JSON or YAML, as Python would write it;
- `readable`: a text of many lines, a model's answer above all; `quoted_json`: a whole document of JSON.
`repr` alone is not enough: it fails for numbers of thousands of digits and for deep nesting, and repeats megabytes.
"""

from __future__ import annotations

import json
import re
import reprlib

MOST = 60  # characters: enough to recognise a value by
DIGITS = 40  # of a whole number that is still written out
# C0 without tab and line feed, C1, separators of lines and paragraphs, overrides of direction, lone surrogates
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


def printable(text: str, most: int | None = MOST) -> str:
    """Returns a text for one line of a terminal, without quotes and of at most `most` characters.

    Whatever `str.isprintable` takes for no printable character is spelled as Python spells it (`\\x1b`, `\\u202e`):
    control characters and line breaks, overrides of direction and all else that is invisible, lone surrogates, which
    have no bytes, and what Unicode has not assigned. None for `most`: the text is made of parts that are short.
    """
    begin = text if most is None else text[: most + 1]
    safe = begin if begin.isprintable() else "".join(map(_spelling, begin))
    return safe if most is None or len(safe) <= most else f"{safe[: most - 3]}..."


def one_line(text: str, most: int = MOST) -> str:
    """As `printable`, for a message of a library: its lines become one."""
    return printable(" ".join(text.split()), most)


def first_line(error: BaseException, most: int = 200) -> str:
    """Returns a library's error by its type and the first line of what it says, as `printable` does."""
    said = str(error).strip().splitlines()
    return printable(f"{type(error).__name__}: {said[0]}" if said else type(error).__name__, most)


def spelled(name: str, most: int = MOST) -> str:
    """As `printable`, in ASCII: of two names that look alike, both are then told apart."""
    return printable(ascii(name[: most + 1])[1:-1], most)


def readable(text: str) -> str:
    """Returns a text of many lines of which a terminal obeys nothing; joiners stay, as scripts need them."""
    return _OBEYED.sub(lambda found: _spelling(found[0]), text)


def quoted_json(text: str) -> str:
    """Returns the text of the same JSON document, in which what a terminal obeys is spelled as JSON spells it."""
    return _OBEYED.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _spelling(sign: str) -> str:
    return sign if sign.isprintable() else repr(sign)[1:-1]


def listed(names: object, most: int = 5) -> str:
    """Returns the first few names of a stranger's list, each shortened, and how many more there are."""
    found = [str(name) for name in names] if isinstance(names, (list, tuple, set, frozenset)) else [str(names)]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(short(name) for name in found[:most]) + more
