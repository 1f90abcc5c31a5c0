"""How numbers and strangers' text are written on the page: units, few digits, and no character that cannot be seen."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

COUNTED = 1e9  # below it a number is written out
_SEEN = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}


def as_float(value: Any) -> float:
    """Returns a number of the document as a float; "inf", "-inf" and "nan" are words there."""
    return float(value)


def number(value: Any) -> str:
    """Returns three digits, a count as a count, and ∞ for what no number says; powers of ten where they must be."""
    found = as_float(value)
    if math.isnan(found):
        return "no number"
    if math.isinf(found):
        return "∞" if found > 0 else "−∞"
    text = f"{found:.3g}"
    if abs(found) < COUNTED and (found.is_integer() or abs(found) >= 1000):
        return f"{found if found.is_integer() else float(text):,.0f}".replace("-", "−")
    mantissa, _, exponent = text.partition("e")
    if exponent:
        text = f"{mantissa}×10{raised(int(exponent))}"
    return text.replace("-", "−")


def raised(exponent: int) -> str:
    """Returns a whole number as an exponent."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def decibel(value: Any) -> str:
    """Returns dB with one digit behind the point; "exact" where nothing differs."""
    found = as_float(value)
    if math.isnan(found) or found == -math.inf:
        return "no number"
    if found == math.inf:
        return "exact"
    return f"{found:.1f} dB".replace("-", "−")


def loss(value: Any) -> str:
    """Returns how many dB worse something is; ∞ where nothing of it is right, which `decibel` would call exact."""
    found = as_float(value)
    return decibel(found) if math.isfinite(found) or math.isnan(found) else f"{number(found)} dB"


def either(counts: list[int]) -> str:
    """Returns numbers of which one holds: "8 or 16", "36, 48 or 64"."""
    *others, last = [str(count) for count in counts] or ["?"]
    return f"{', '.join(others)} or {last}" if others else last


def share(value: Any) -> str:
    """Returns a probability in percent."""
    found = as_float(value)
    if math.isnan(found):
        return "no number"
    return f"{100 * found:.3g} %" if found >= 1e-3 or found == 0 else "< 0.1 %"


def size(count: int) -> str:
    """Returns bytes in the unit that people read them in (1 GB = 10⁹ bytes)."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}" if count < 1000 * of else f"{count / of:,.0f} {unit}"
    return f"{count} B"


def seconds(value: Any) -> str:
    """Returns seconds, or milliseconds below one."""
    found = as_float(value)
    if not math.isfinite(found):
        return "no number"
    if found >= 1:
        return f"{found:.3g} s"
    return f"{1000 * found:.3g} ms"


def bound(row: dict[str, Any]) -> str:
    """Returns a limit as it is read: "at least 60"."""
    return f"{'at least' if row['bound'] == 'min' else 'at most'} {number(row['limit'])}"


def plain(text: str) -> str:
    """Returns text without a character that hides, or that turns what follows: those are shown by their number."""
    return "".join(sign if sign == "\n" or _is_seen(sign) else f"\\u{ord(sign):04x}" for sign in text)


def token(text: str, blanks: bool = False) -> str:
    """Returns a token's text with what cannot be seen made visible; a blank in front of a word only if `blanks`."""
    if not text.strip(" "):
        return "␣" * len(text) or "∅"
    shown = text.replace(" ", "␣") if blanks else text.removeprefix(" ")
    return plain("".join(_SEEN.get(sign, sign) for sign in shown))


def differ_by_blanks(one: str, two: str) -> bool:
    """Whether two tokens look the same without their blanks, so that these have to be shown."""
    return token(one) == token(two)


def pieces(text: str) -> list[str]:
    """Returns a name in the pieces between which a line may break: behind its joints."""
    return re.split(r"(?<=[_/:])(?=\w)|(?<=\.)(?=[A-Za-z])", plain(text))


def _is_seen(sign: str) -> bool:
    return unicodedata.category(sign) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} or sign == "\u200d"
