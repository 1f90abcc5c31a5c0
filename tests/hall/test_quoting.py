"""What a stranger wrote is shown short, printable, and whatever it is."""

from __future__ import annotations

import pytest

from fastvlm.quoting import MOST, listed, printable, short

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
    assert printable("a\nb\x1b" + "c" * 100) == "a?b?" + "c" * 53 + "..."
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed([str(number) for number in range(9)], 2) == "'0', '1' and 7 more"
