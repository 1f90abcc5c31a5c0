"""What a stranger wrote as a terminal may show it: the one place that says how. It never obeys what is shown here.

Which of these is right depends on what is shown:
- `printable`: a name or another short text that stands without quotes, in a line of ours;
- `one_line`: a library's message, of as many lines as it likes; `first_line`: an error of one that tells too much;
- `spelled`: a name that may look like another one, or like none: in ASCII alone;
- `typed`: a command, which is the same one when it is copied and typed;
- `short`, `listed`: a value of JSON or YAML, as Python would write it;
- `readable`: a model's answer, of many lines and in any script; `quoted_json`: a whole document of JSON.
`repr` alone is not enough: it fails for numbers of thousands of digits and for deep nesting, and repeats megabytes.
Nor is `str.isprintable`: letters and marks that have no shape, fillers and selectors, are printable to it.
"""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Callable

MOST = 60  # characters: enough to recognise a value by
DIGITS = 40  # of a whole number that is still written out
# Letters and marks that Unicode calls default ignorable: joiner, fillers, selectors of a variant. What else is so
# called is a control, a format character or unassigned.
_SHAPELESS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_NOT_ASCII = re.compile("[^\x20-\x7e]")
# Of an answer: what is not to be looked at sign by sign, and format characters that are seen or that scripts need
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"  # of a region: England's
_OF_ANSWERS = re.compile(f"({_FLAG})|[^\x20-\x7e\n\t]")
_JOINERS = frozenset("\u200c\u200d")
_SEEN = frozenset(map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)))
_IGNORED = re.compile("[\u2065\ufff0-\ufff8\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]")  # assigned or not yet


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
    text = _all_spelled(_Short(most).repr(value))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str, most: int | None = MOST) -> str:
    """Returns a text for one line of a terminal, without quotes and of at most `most` characters.

    Whatever `str.isprintable` takes for no printable character is spelled as Python spells it (`\\x1b`, `\\u202e`):
    control characters and line breaks, overrides and marks of direction, joiners, tags and all else that is invisible,
    lone surrogates, which have no bytes, and what Unicode has not assigned. None for `most`: the text is made of parts
    that are short.
    """
    safe = _all_spelled(text if most is None else text[: most + 1])
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


def typed(command: str) -> str:
    """As `printable`, for a command whose words `shlex` has quoted: a shell reads the same words out of it.

    A word with a sign that is not shown stands in single quotes then. They end before the sign and begin anew behind
    it, and its bytes stand in the $'\\x1b' of bash and zsh: a screenshot of macOS has U+202F in its name.
    """
    return "".join(sign if _is_seen(sign) else f"'$'{_in_bytes(sign)}''" for sign in command)


def readable(text: str) -> str:
    """Returns a model's answer of which a terminal obeys nothing, and nothing hides: lines and tabs stay.

    Of what has no shape of its own stays what scripts need: joiners, selectors of a variant, fillers of Hangul, and the
    tags of a region's flag where all of them are in this text.
    """
    return _OF_ANSWERS.sub(lambda found: found[0] if found[1] else _spelling_in_answer(found[0]), text)


def quoted_json(text: str, encoding: str = "utf-8") -> str:
    """Returns the text of the same JSON document, in which what is obeyed or invisible is spelled as JSON spells it.

    So is every sign beyond ASCII where `encoding` lacks one of them.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return _NOT_ASCII.sub(lambda found: found[0] if found[0] == "\n" else _in_json(found[0]), text)
    return _NOT_ASCII.sub(lambda found: found[0] if found[0] == "\n" else _spelling(found[0], _in_json), text)


def _all_spelled(text: str) -> str:
    return text if _is_seen(text) else "".join(map(_spelling, text))


def _is_seen(text: str) -> bool:
    return text.isprintable() and not _SHAPELESS.search(text)


def _in_python(sign: str) -> str:
    return ascii(sign)[1:-1]


def _in_bytes(sign: str) -> str:
    """As shells write the bytes of a sign; those of a path that are no UTF-8 are lone surrogates."""
    how = "surrogateescape" if "\udc80" <= sign <= "\udcff" else "replace"
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", how))


def _in_json(sign: str) -> str:
    return json.dumps(sign)[1:-1]


def _spelling(sign: str, spell: Callable[[str], str] = _in_python) -> str:
    return sign if _is_seen(sign) else spell(sign)


def _spelling_in_answer(sign: str) -> str:
    hidden = unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or _IGNORED.match(sign)
    return _in_python(sign) if hidden and sign not in _JOINERS and sign not in _SEEN else sign


def listed(names: object, most: int = 5) -> str:
    """Returns the first few names of a stranger's list, each shortened, and how many more there are."""
    found = [str(name) for name in names] if isinstance(names, (list, tuple, set, frozenset)) else [str(names)]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(short(name) for name in found[:most]) + more
