"""Which steps of a tokenizer.json are run: kinds whose cost is known, with numbers and patterns in their ranges.

The tokenizers library runs whatever the file asks for: a pattern that backtracks for ever, a replacement that makes a
gigabyte of a line. So there is a list of kinds, those of Qwen2, Llama, GPT-2 and what converts SentencePiece, and
- a normalizer, splitter or decoder may make a text at most `MOST_GROWTH` times as long, all its steps together, of
  which there are at most `MOST_STEPS` or `MOST_SPLITS`; how long a text may then be, `tokenizer_room` says;
- a regular expression is one of `PATTERNS`, or plain: alternatives of characters and classes in a row, of which the
  last alone may be repeated. No place of a text is then looked at more often than the pattern has characters.
It does not know vocabularies, nor the library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fastvlm.quoting import short

MOST_STEPS = 16  # in all sequences of a part together, and of a template; Qwen2 has two
MOST_SPLITS = 8  # of a splitter; each one costs what the first does, and DeepSeek's has six
MOST_NESTED = 4
STEPS = ("normalizers", "pretokenizers", "decoders", "processors")  # what a sequence calls its steps
MOST_GROWTH = 64  # NFKC makes 33 bytes of 3 once, "▁" of a space is three times as long
SHORT = 64  # bytes of what is put before a text, in place of a match, behind a word
# Public patterns of decoders: GPT-2's (in ByteLevel too), Qwen2's, that of Llama 3 and cl100k, that of o200k
_TAILS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = frozenset({
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_SHORTENED}|{_FRONT}\p{{L}}+|\p{{N}}|{_TAILS}",
    rf"{_SHORTENED}|{_FRONT}\p{{L}}+|\p{{N}}{{1,3}}|{_TAILS}",
    rf"{_FRONT}{_UPPER}*{_LOWER}+{_SHORTENED}?|{_FRONT}{_UPPER}+{_LOWER}*{_SHORTENED}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
})  # fmt: skip
_ESCAPE = r"\\[pP]\{\^?\w{1,20}\}|\\[sSdDwWnrt]|\\[^\w\s]"
_ATOM = rf"(?:{_ESCAPE}|[^\\\[\](){{}}*+?|.^$]|\[\^?+(?:{_ESCAPE}|[^\\\[\]&])++\])"
# Possessive, so that a hostile pattern does not keep this check itself busy
_BRANCH = rf"(?:{_ATOM}\?)?+(?:{_ATOM}){{1,9}}+(?:\+|\{{[1-9]\d?(?:,\d{{0,2}})?\}})?+"
PLAIN = re.compile(rf"{_BRANCH}(?:\|{_BRANCH}){{0,15}}+")
PLAIN_LENGTH = 200

Check = Callable[[Mapping[str, Any], int], float]


class Unfit(ValueError):
    """A part of a tokenizer.json that is not run; the message says which, in a few words."""


def check_normalizer(step: Any, nested: int = 0) -> float:
    """Returns how many times as long a text can become; raises Unfit."""
    return _check("normalizer", step, NORMALIZERS, nested)


def check_splitter(step: Any, nested: int = 0) -> float:
    """Returns how many times as long its pieces can be together; raises Unfit unless time grows as the text does."""
    return _check("pre_tokenizer", step, SPLITTERS, nested)


def check_decoder(step: Any, nested: int = 0) -> float:
    """Returns how many times as long a text can become; raises Unfit."""
    return _check("decoder", step, DECODERS, nested)


def check_ends(step: Any, nested: int = 0) -> float:
    """Raises Unfit unless a post_processor is of a kind that is run and names tokens that it holds."""
    return _check("post_processor", step, ENDS, nested)


def _check(part: str, step: Any, kinds: Mapping[str, Check], nested: int) -> float:
    if step is None:
        return 1.0
    most = MOST_SPLITS if kinds is SPLITTERS else MOST_STEPS
    if nested == 0 and _count(step) > most:
        raise Unfit(f"its {part} has more steps in all its sequences than are run, at most {most}")
    kind = step.get("type") if isinstance(step, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise Unfit(f"its {part} is {short(kind)}, known are {', '.join(sorted(kinds))}")
    growth = kinds[kind](step, nested)
    if growth > MOST_GROWTH:
        raise Unfit(f"its {part} can make a text {growth:.0f} times as long, at most {MOST_GROWTH} times is run")
    return growth


def _count(step: Any, nested: int = 0) -> int:
    """Steps in all sequences of a part together: sequences inside each other would multiply theirs."""
    if not isinstance(step, dict) or step.get("type") != "Sequence" or nested > MOST_NESTED:
        return 1
    lists = [step[key] for key in STEPS if isinstance(step.get(key), list)]
    return sum(_count(inner, nested + 1) for inners in lists for inner in inners[: MOST_STEPS + 1])


def _nothing(step: Mapping[str, Any], nested: int) -> float:
    return 1.0


def _grows(times: float) -> Check:
    return lambda step, nested: times


def _all_of(key: str, check: Callable[[Any, int], float]) -> Check:
    """A sequence of further steps: their growths multiply."""

    def run(step: Mapping[str, Any], nested: int) -> float:
        steps = step.get(key)
        if not isinstance(steps, list) or len(steps) > MOST_STEPS or nested >= MOST_NESTED:
            raise Unfit(f"its {key} are no list of at most {MOST_STEPS}, {MOST_NESTED} deep")
        growth = 1.0
        for inner in steps:
            growth *= check(inner, nested + 1)
        return growth

    return run


def _short(*keys: str) -> Check:
    """Fields that are texts of a few bytes, where they are there."""

    def run(step: Mapping[str, Any], nested: int) -> float:
        for key in keys:
            _bytes(step.get(key, ""), key)
        return 1.0

    return run


def _metaspace(step: Mapping[str, Any], nested: int) -> float:
    """The mark in place of each blank; behind another step also in front of each piece, which may be one byte."""
    mark = max(_bytes(step.get(key, ""), key) for key in ("replacement", "str_rep"))
    return max(1.0, mark) + (nested > 0)


def _byte_level(step: Mapping[str, Any], nested: int) -> float:
    """Two bytes for each; behind another step also for a blank in front of each piece, which may be one byte."""
    return 4.0 if nested > 0 and step.get("add_prefix_space", True) else 2.0


def _replace(step: Mapping[str, Any], nested: int) -> float:
    put = _bytes(step.get("content"), "content")
    return max(1.0, put / _pattern(step.get("pattern")))


def _split(step: Mapping[str, Any], nested: int) -> float:
    _pattern(step.get("pattern"))
    return 1.0


def _strip(step: Mapping[str, Any], nested: int) -> float:
    _bytes(step.get("content"), "content")
    for key in ("start", "stop"):
        if type(step.get(key)) is not int or not 0 <= step[key] <= SHORT:
            raise Unfit(f"its decoder strips {key} {short(step.get(key))}, expected 0 to {SHORT}")
    return 1.0


def _template(step: Mapping[str, Any], nested: int) -> float:
    """A TemplateProcessing: what it puts around a text must be among its own special tokens."""
    tokens = step.get("special_tokens")
    if not isinstance(tokens, dict) or len(tokens) > MOST_STEPS:
        raise Unfit(f"its post_processor has no object of at most {MOST_STEPS} special_tokens")
    for token in tokens.values():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or len(ids) > MOST_STEPS:
            raise Unfit(f"its post_processor has a special token without at most {MOST_STEPS} ids")
    for key in ("single", "pair"):
        pieces = step.get(key)
        if not isinstance(pieces, list) or len(pieces) > MOST_STEPS:
            raise Unfit(f"its post_processor's {key} is no list of at most {MOST_STEPS}")
        for piece in pieces:
            named = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if isinstance(named, dict) and str(named.get("id")) not in tokens:
                raise Unfit(f"its post_processor names {short(named.get('id'))}, which its special_tokens lack")
    return 1.0


def _bytes(value: Any, key: str) -> int:
    """Length in bytes of a short text."""
    if not isinstance(value, str) or (length := len(value.encode("utf-8", "replace"))) > SHORT:
        raise Unfit(f"its {key} is {short(value)}, expected a text of at most {SHORT} bytes")
    return length


def _pattern(found: Any) -> int:
    """Returns the least number of bytes that a match has."""
    kind, text = next(iter(found.items())) if isinstance(found, dict) and len(found) == 1 else ("", None)
    if kind == "String" and isinstance(text, str) and text:
        return _bytes(text, "pattern")
    if kind == "Regex" and isinstance(text, str) and (text in PATTERNS or _is_plain(text)):
        return 1
    raise Unfit(
        f"its pattern {short(text)} is neither a public decoder's (GPT-2, Qwen2, Llama 3, o200k) nor a plain row of "
        "characters and classes, whose time is known"
    )


def _is_plain(pattern: str) -> bool:
    return len(pattern) <= PLAIN_LENGTH and PLAIN.fullmatch(pattern) is not None


NORMALIZERS: dict[str, Check] = {
    "Sequence": _all_of("normalizers", check_normalizer), "NFC": _grows(3), "NFD": _grows(4), "NFKC": _grows(11),
    "NFKD": _grows(11), "Lowercase": _grows(2), "Strip": _nothing, "StripAccents": _nothing, "Nmt": _nothing,
    "ByteLevel": _grows(2), "Prepend": _short("prepend"), "Replace": _replace,
}  # fmt: skip
SPLITTERS: dict[str, Check] = {
    "Sequence": _all_of("pretokenizers", check_splitter), "Split": _split, "ByteLevel": _byte_level,
    "Metaspace": _metaspace, "Digits": _nothing, "Punctuation": _nothing,
    "Whitespace": _nothing, "WhitespaceSplit": _nothing,
}  # fmt: skip
DECODERS: dict[str, Check] = {
    "Sequence": _all_of("decoders", check_decoder), "ByteLevel": _nothing, "ByteFallback": _nothing, "Fuse": _nothing,
    "Metaspace": _short("replacement", "str_rep"), "Replace": _replace, "Strip": _strip,
    "BPEDecoder": _short("suffix"),
}  # fmt: skip
ENDS: dict[str, Check] = {
    "Sequence": _all_of("processors", check_ends), "ByteLevel": _nothing, "TemplateProcessing": _template,
    "RobertaProcessing": _nothing, "BertProcessing": _nothing,
}  # fmt: skip
