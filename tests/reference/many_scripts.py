"""Text in many scripts, the same in every run: what users type, and what word splits and normalizers trip over.

Characters are old enough (Unicode 9 or earlier) that every library knows their classes; lone surrogates are not text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def span(*ranges: tuple[int, int]) -> list[str]:
    """The characters of ranges of code points, both ends included."""
    return [chr(point) for low, high in ranges for point in range(low, high + 1)]


CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# name -> what a string of it is put together from
SCRIPTS: dict[str, Sequence[str]] = {
    "latin": span((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17F), (0x1E00, 0x1EFF)) + [" "] * 60,
    "words": (
        "the ", "image ", "What's ", "it's ", "I'LL ", "don'T ", "we'Ve ", "'s", "'ſ ", "'re", "y'all'd've ", "naïve ",
        "it'Spelled ", "'LLama", "Straße ", "ﬁne ", "Ångström ", "İstanbul ", "ǅ", "ª", "ⅷ ", "a.m. ", "—", "…",
        "“quoted” ", "co-op ",
    ),
    "greek": span((0x391, 0x3A1), (0x3A3, 0x3CE), (0x1F00, 0x1F07)) + [" "] * 10,
    "cyrillic": [*span((0x400, 0x45F), (0x48A, 0x4BF)), *[" "] * 20],
    "arabic": [*span((0x621, 0x63A), (0x641, 0x652), (0x660, 0x669), (0x6F0, 0x6F9)), "ﷲ", "ﻻ", "\u200f", *[" "] * 10],
    "hebrew": [*span((0x5D0, 0x5EA), (0x5B0, 0x5B9)), "יִ", "־", *[" "] * 6],
    "devanagari": [*span((0x905, 0x939), (0x93C, 0x94D), (0x958, 0x95F), (0x966, 0x96F)), "क्ष", "\u200d", *[" "] * 12],
    "thai": [*span((0xE01, 0xE3A), (0xE40, 0xE4E), (0xE50, 0xE59)), *[" "] * 6],
    "cjk": [*span((0x4E00, 0x4FFF), (0x9F00, 0x9F8F), (0xF900, 0xF9FF), (0x20000, 0x2007F)), "，", "。", "、", " "],
    "kana": [*span((0x3041, 0x3096), (0x30A1, 0x30FA), (0xFF66, 0xFF9F)), "か\u3099", "は\u309a", "ー", "・", " "],
    "hangul": [*span((0xAC00, 0xAC7F), (0xD700, 0xD7A3), (0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)), " "],
    "emoji": (
        "🙂", "👩‍👩‍👧", "👨🏽‍🚀", "🏳️‍🌈", "🇩🇪", "🇯", "❤️", "☺", "1️⃣", "👍🏿", "\u200d", "\ufe0f", "🏿", " ", "ok",
    ),
    "marks": ["e", "A", "o", "क", "ㄱ", *span((0x300, 0x315), (0x323, 0x32D)), "\u0344", "\u0f71\u0f72", "Ω", "Å", " "],
    "digits": [*span((0x30, 0x39)) * 3, *"٣४๓½Ⅻ²①", ".", ",", " ", "e", "-", "+", "0x", "%", "€", "$"],
    "spaces": [
        *" \t\n\r\v\f\u0085\u00a0\u1680\u2002\u2009\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\x1c\x1f\x00\x7f",
        "\r\n", "  ", "\n\n", " \n", "a", "!", "7",
    ],
    "code": (
        "def f(x):\n", "    ", "\t", "return ", "x", "_y", "[", "]", "{'a': ", "}", "()", ";\n", "//", "/* */", "==",
        "->", "!=", "<=", "#", "##", '"""', "\\n", "0xFF", "1e-6", "&&", "http://a.b/c?d=e&f#g", "a@b.de", "camelCase",
    ),
    "lookalikes": (
        *CONTROLS, "<|", "|>", "im_end", "<|im_end", "im_end|>", "<|im_end|", "<|IM_END|>", "< |im_end|>", "<image>",
        "</s>", "[INST]", "<|im_end|>\n", " <|im_start|>", "<|", "‹|im_end|›", "{prompt}", "system\n", "user", " ",
    ),
}  # fmt: skip


def strings(each: int = 500, mixed: int = 2500, seed: int = 0) -> dict[str, list[str]]:
    """Returns by name `each` strings of every script, and under "mixed" strings of up to four of them."""
    rng = random.Random(seed)
    found = {name: [_of(pieces, rng) for _ in range(each)] for name, pieces in SCRIPTS.items()}
    found["mixed"] = [_mixture(rng) for _ in range(mixed)]
    return found


def _of(pieces: Sequence[str], rng: random.Random, most: int = 14) -> str:
    return "".join(rng.choices(pieces, k=rng.randint(1, most)))


def _mixture(rng: random.Random) -> str:
    names = rng.sample(sorted(SCRIPTS), rng.randint(2, 4))
    return rng.choice(("", " ", "\n")).join(_of(SCRIPTS[name], rng, 6) for name in names)
