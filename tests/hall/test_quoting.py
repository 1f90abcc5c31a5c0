"""What a stranger wrote is shown short, printable, and whatever it is."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.quoting import MOST, first_line, listed, one_line, printable, quoted_json, readable, short, spelled, typed
from fastvlm.terminal import TerminalProgress, lines, new_console

ODD = [
    10**5000, -(10**5000), "a" * 10**6, "\x1b[31m\n\u202e\ud800", float("nan"), [[[[[[]]]]]] * 100,
    {"a": {"b": {"c": {}}}}, [0] * 10**6, dict.fromkeys(range(10**5)), (1,), None, True, b"\x00" * 1000,
    list(range(30)), ["x" * 100] * 3,
]  # fmt: skip


NAMES = [
    "plain", "two words", "it's", "Ünï e\u0301", "Screenshot 10.00.00\u202fAM.png", "\u2764\ufe0f", "می\u200cخواهم",
    "it's \u200d'\u200d", "a\nb\x1b[2J\\", os.fsdecode(b"caf\xe9"), "日本\u3000語",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_anything_is_short_and_printable(value: object) -> None:
    for text in (short(value), short([value]), short({"a": value})):
        assert len(text) <= MOST
        assert text.isprintable()


def test_a_command_can_be_typed_as_it_is_shown() -> None:
    """What `shlex` quotes may hold signs that nobody sees; spelled as Python does, another file was named."""
    command = typed(shlex.join(["printf", "%s\\0", *NAMES, "\udc80\ud800"]))
    assert printable(command, None) == command
    found = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    assert found == [*map(os.fsencode, NAMES), b"\x80?", b""]


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


# Weighted towards what a terminal obeys, and what nobody sees: of all characters a few hundred are
OBEYED = (
    "\x00\x07\x08\x0b\r\x1b\x7f\x84\x8d\x90\x9b\x9d\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
HIDDEN = (
    "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2064\u2065\u206a\ufeff\ufff0\ufff9\ufffb\U0001d173"
    "\U0001bca0\U000e0000\U000e0001\U000e0020\U000e0041\U000e007f\U000e0080\U000e0fff"
)
SHAPELESS = "\u034f\u115f\u1160\u17b4\u180b\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
NEEDED = "\u200c\u200d\u0600\u06dd\u070f\U000110bd"  # format characters that scripts join by, or that are seen
SIGNS = st.one_of(
    st.characters(),
    st.sampled_from(OBEYED + HIDDEN + SHAPELESS + NEEDED + "\n\t[2J;\\'\""),
    st.characters(categories=["Cs", "Cf"]),
)
FOREIGN = st.lists(st.text(SIGNS) | st.just(ENGLAND)).map("".join)


def obeyed(text: str) -> list[str]:
    """What a terminal takes as an order, or cannot be handed at all, by Unicode's own tables."""
    overrides = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return [
        sign
        for sign in text
        if unicodedata.category(sign) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(sign) in overrides
    ]


def hidden(text: str) -> list[str]:
    """What has no shape of its own: format characters, and what Unicode calls default ignorable."""
    ignored = [
        (0x2060, 0x206F),
        (0xFFF0, 0xFFF8),
        (0xE0000, 0xE0FFF),
        (0xFE00, 0xFE0F),
        (0x180B, 0x180F),
        (0x115F, 0x1160),
    ]
    ignored += [(0x17B4, 0x17B5), (0x34F, 0x34F), (0x3164, 0x3164), (0xFFA0, 0xFFA0)]
    return [
        sign
        for sign in text
        if unicodedata.category(sign) == "Cf" or any(first <= ord(sign) <= last for first, last in ignored)
    ]


@given(FOREIGN)
def test_nothing_passes_that_a_terminal_obeys(text: str) -> None:
    for said in (printable(text), printable(text, None), one_line(text), spelled(text), short(text), listed([text])):
        assert not obeyed(said)
        assert not hidden(said)
        assert said.isprintable()
    assert max(len(printable(text)), len(one_line(text)), len(spelled(text)), len(short(text))) <= MOST
    assert spelled(text).isascii()
    assert not set(obeyed(readable(text))) - {"\n", "\t"}
    assert not set(hidden(readable(text).replace(ENGLAND, ""))) - set(NEEDED) - set(SELECTORS_AND_FILLERS)


# What an answer keeps: all of it is needed to write some language
SELECTORS_AND_FILLERS = [
    chr(code)
    for first, last in (
        (0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180D), (0x180F, 0x180F), (0x3164, 0x3164),
        (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF), (0x600, 0x605), (0x890, 0x891), (0x8E2, 0x8E2),
        (0x110CD, 0x110CD),
    )
    for code in range(first, last + 1)
]  # fmt: skip


@pytest.mark.parametrize("sign", OBEYED + HIDDEN + SHAPELESS, ids=lambda sign: f"U+{ord(sign):04X}")
def test_every_sign_that_is_not_seen_is_spelled(sign: str) -> None:
    for said in (printable(f"a{sign}b"), quoted_json(json.dumps(f"a{sign}b", ensure_ascii=False))):
        assert said.isascii()
    assert (readable(f"a{sign}b") == f"a{sign}b") == (sign in NEEDED + SHAPELESS)


def test_an_answer_keeps_what_its_script_needs() -> None:
    for text in (
        f"{ENGLAND} won",
        "❤\ufe0f",
        "می\u200cخواهم",
        "葛\U000e0100",
        "\u0600\u0661",
        "नमस्ते 👩\u200d🔬",
        "a\u00a0b\u3000c",
    ):
        assert readable(text) == text
    assert readable("x\U000e0041\U000e0042") == "x\\U000e0041\\U000e0042", "a text in tags, which nobody sees"
    assert readable(ENGLAND[:-1]) != ENGLAND[:-1]


@given(FOREIGN)
def test_json_stays_the_same_document(text: str) -> None:
    shown = quoted_json(json.dumps({text: [text]}, ensure_ascii=False, indent=1))
    assert not set(obeyed(shown)) - {"\n"}
    assert not hidden(shown)
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
    assert not set(obeyed(shown.getvalue())) - {"\n"}
    assert not hidden(shown.getvalue())


@given(FOREIGN)
def test_a_line_stays_one(text: str) -> None:
    shown = io.StringIO()
    new_console(shown, 200).print(f"  name: {text}")
    assert shown.getvalue().count("\n") == 1
    assert shown.getvalue().startswith("  name: ")


def test_a_cell_that_asks_for_lines_has_them() -> None:
    from rich.table import Table

    shown = io.StringIO()
    table = Table("answer")
    table.add_row(lines("one\nError: two \x1b[2J\u200b"))
    new_console(shown, 80).print(table)
    assert [line[:1] for line in shown.getvalue().splitlines()] == list("┏┃┡││└")
    assert "│ Error: two \\x1b[2J\\u200b │" in shown.getvalue()


def test_the_suite_can_fail() -> None:
    """The same words through a console of another make are obeyed."""
    from rich.console import Console

    shown = io.StringIO()
    Console(file=shown).print("\x1b[2J\x9b")
    assert obeyed(shown.getvalue().rstrip("\n")) == ["\x1b", "\x9b"]
    assert [obeyed(sign) for sign in OBEYED] == [[sign] for sign in OBEYED]
