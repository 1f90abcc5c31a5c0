"""Which regular expressions of a stranger's tokenizer are run: the public decoders', and rows that cannot backtrack."""

from __future__ import annotations

import pytest

from fastvlm.tokenizer_steps import MOST_GROWTH, PATTERNS, Unfit, check_decoder, check_normalizer, check_splitter

PLAIN = [r"\s+", "[0-9][0-9][0-9]", r" {2,}", r"\p{N}{1,3}", r"[一-龥]+", r"\s?[A-Z]+", "a|b+", r"\r\n", r" ?\p{L}+"]
BACKTRACK = [
    "(a+)+$",
    "a?a?b",
    r"\s+x",
    ".*",
    "",
    "a{0,5}",
    "a+b",
    r"\1",
    r"\bx",
    "(?=a)",
    "a*",
    "[a&&b]",
    "[",
    "a++",
    "|",
]


def split(pattern: str) -> float:
    return check_splitter({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"})


@pytest.mark.parametrize("pattern", sorted([*PATTERNS, *PLAIN]))
def test_patterns_whose_time_is_known(pattern: str) -> None:
    assert split(pattern) == 1


@pytest.mark.parametrize("pattern", BACKTRACK)
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(Unfit, match="neither a public decoder's"):
        split(pattern)


@pytest.mark.parametrize(
    "pattern", ["[" + r"\p{L}" * 39, "a?a" * 60, "a|" * 99, "[a]" * 66, "a?[b]{2}|" * 20, "\\" * 199]
)
def test_the_check_itself_does_not_backtrack(pattern: str) -> None:
    """The first of them would take 2⁴⁰ steps where a class could be read in two ways."""
    with pytest.raises(Unfit):
        split(pattern)


def test_growth_multiplies() -> None:
    wide = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 8}
    assert check_normalizer({"type": "Sequence", "normalizers": [wide, wide]}) == 64 == MOST_GROWTH
    for part, check, key in (("normalizer", check_normalizer, "normalizers"), ("decoder", check_decoder, "decoders")):
        with pytest.raises(Unfit, match=f"its {part} can make a text 512 times as long, at most 64 times"):
            check({"type": "Sequence", key: [wide] * 3})
    llama = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    assert check_normalizer({"type": "Sequence", "normalizers": llama}) == 3
