"""What a stranger wrote is shown short, printable, and whatever it is."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.quoting import MOST, first_line, listed, one_line, printable, quoted_json, readable, short, spelled
from fastvlm.terminal import TerminalProgress, new_console

ODD = [
    10**5000, -(10**5000), "a" * 10**6, "\x1b[31m\n\u202e\ud800", float("nan"), [[[[[[]]]]]] * 100,
    {"a": {"b": {"c": {}}}}, [0] * 10**6, dict.fromkeys(range(10**5)), (1,), None, True, b"\x00" * 1000,
    list(range(30)), ["x" * 100] * 3,
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_anything_is_short_and_printable(value: object) -> None:
    for text in (short(value), short([value]), short({"a": value})):
        assert len(text) <= MOST
        assert text.isprintable()


def test_nesting_without_end() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert short(deep) == "[[[[...]]]]"
    while deep:  # or the interpreter recurses when it lets go of them
        deep = deep.pop()  # type: ignore[assignment]


def test_what_is_short_is_shown_as_it_is() -> None:
    assert [short(value) for value in ("a", 17, -0.5, [1, "b"], {"k": None})] == [
        "'a'",
        "17",
        "-0.5",
        "[1, 'b']",
        "{'k': None}",
    ]
    assert short("a" * 61) == "'" + "a" * 56 + "..."
    assert short(10**300) == "a whole number of 997 bits"
    assert short("<|im_end|>") == "'<|im_end|>'"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed([str(number) for number in range(9)], 2) == "'0', '1' and 7 more"


def test_what_is_no_printable_character_is_spelled() -> None:
    assert printable("a\nb\x1b" + "c" * 100) == "a\\nb\\x1b" + "c" * 49 + "..."
    assert printable("c" * 100, None) == "c" * 100
    assert printable("\ud800\u202eé▁") == "\\ud800\\u202eé▁"
    assert one_line("  it\nfailed \x1b[2J\r\n") == "it failed \\x1b[2J"
    assert first_line(ValueError("\n bad \x07 thing\nand a page more")) == "ValueError: bad \\x07 thing"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert spelled("é.bin") != spelled("e\u0301.bin") == "e\\u0301.bin"
    assert readable("two\n\tlines, \x1b[2J\u202e नमस्ते 👩\u200d🔬") == "two\n\tlines, \\x1b[2J\\u202e नमस्ते 👩\u200d🔬"


# Weighted towards what a terminal obeys: of all characters a few dozen are
OBEYED = (
    "\x00\x07\x08\x0b\r\x1b\x7f\x84\x8d\x90\x9b\x9d\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
FOREIGN = st.text(
    st.one_of(st.characters(), st.sampled_from(OBEYED + "\n\t[2J;\\'\""), st.characters(categories=["Cs"]))
)


def obeyed(text: str) -> list[str]:
    """What a terminal takes as an order, or cannot be handed at all, by Unicode's own tables."""
    overrides = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return [
        sign
        for sign in text
        if unicodedata.category(sign) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(sign) in overrides
    ]


@given(FOREIGN)
def test_nothing_passes_that_a_terminal_obeys(text: str) -> None:
    for said in (printable(text), printable(text, None), one_line(text), spelled(text), short(text), listed([text])):
        assert not obeyed(said)
        assert said.isprintable()
    assert max(len(printable(text)), len(one_line(text)), len(spelled(text)), len(short(text))) <= MOST
    assert spelled(text).isascii()
    assert not set(obeyed(readable(text))) - {"\n", "\t"}


@given(FOREIGN)
def test_json_stays_the_same_document(text: str) -> None:
    shown = quoted_json(json.dumps({text: [text]}, ensure_ascii=False, indent=1))
    assert not set(obeyed(shown)) - {"\n"}
    assert json.loads(shown) == {text: [text]}


@given(st.lists(FOREIGN, min_size=1, max_size=4))
def test_nothing_passes_through_notes_and_tables(cells: list[str]) -> None:
    from rich.table import Table

    shown = io.StringIO()
    TerminalProgress(shown).note(cells[0])
    assert not obeyed(shown.getvalue().removesuffix("\n"))
    table = Table(*cells, title=cells[0])
    table.add_row(*cells)
    console = new_console(shown, 200)
    console.print(table)
    console.print(cells[0])
    assert not set(obeyed(shown.getvalue())) - {"\n", "\t"}


def test_the_suite_can_fail() -> None:
    """The same words through a console of another make are obeyed."""
    from rich.console import Console

    shown = io.StringIO()
    Console(file=shown).print("\x1b[2J\x9b")
    assert obeyed(shown.getvalue().rstrip("\n")) == ["\x1b", "\x9b"]
    assert [obeyed(sign) for sign in OBEYED] == [[sign] for sign in OBEYED]
