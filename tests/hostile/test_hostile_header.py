"""Every lie of a safetensors header has its sentence, at once; and a fuzzer that looks for more of them.

`REDS` takes the checks away one by one and shows that the suite sees it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from header_lies import LIES
from hypothesis import given, settings
from hypothesis import strategies as st
from ordeal import Case, in_lines, size, tally, try_all
from safetensors import deserialize

from fastvlm.errors import CheckpointError
from fastvlm_ref.checkpoint import header
from fastvlm_ref.checkpoint.header import Entry, read_header

CORPUS = Path(__file__).parent / "corpus"


def refused(file: Path, content: bytes, sentence: str) -> None:
    file.write_bytes(content)
    try:
        read_header(file)
    except CheckpointError as error:
        said = str(error)
        assert sentence in said, said[:300]
        assert str(file) in said
        assert len(said) < 500
        assert said.isprintable()
        raise
    raise AssertionError("it was taken")


def cases(folder: Path, names: list[str] | None = None) -> list[Case]:
    def case(name: str) -> Callable[[], object]:
        content, sentence = LIES[name]
        return lambda: refused(folder / "it.safetensors", content, sentence)

    return [(name, case(name)) for name in names or LIES]


def test_every_lie_is_named_at_once(tmp_path: Path) -> None:
    assert len(LIES) >= 60
    outcomes = try_all(cases(tmp_path), seconds=2.0)
    assert tally("header lies", outcomes) == [], in_lines([one for one in outcomes if not one.held])
    assert {outcome.kind for outcome in outcomes} == {"named"}


REDS: dict[str, tuple[str, Any, str]] = {
    "layout": ("_check_layout", lambda *_: None, "a hole"),
    "trailing bytes": ("_check_layout", lambda *_: None, "a programme and no tensor"),
    "metadata": ("_check_metadata", lambda *_: None, "metadata that is a number"),
    "names": ("is_name", lambda _: True, "a name that a terminal obeys"),
    "count": ("TENSOR_LIMIT", 10**9, "tensors by the ten thousand"),
    "64 bits": ("SIZE_LIMIT", 10**5000, "an axis of 64 bits beside a 0"),
    "rank": ("RANK_LIMIT", 99, "nine axes"),
    "length": ("HEADER_LIMIT", 1 << 64, "a length of all ones"),
    "whole numbers": ("_whole", lambda _: True, "an axis that is a truth"),
}


@pytest.mark.parametrize("red", REDS)
def test_without_its_check_a_lie_passes(red: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead, lie = REDS[red]
    assert try_all(cases(tmp_path, [lie]), seconds=2.0)[0].held
    monkeypatch.setattr(header, name, instead)
    assert not try_all(cases(tmp_path, [lie]), seconds=2.0)[0].held


def judged(content: bytes, file: Path) -> list[Entry] | None:
    """Returns the entries of a file, None where it is refused; whoever takes it, takes it as the library does."""
    file.write_bytes(content)
    begun = time.monotonic()
    try:
        entries = read_header(file)
    except CheckpointError:
        entries = None
    assert time.monotonic() - begun < 2
    if entries is None:
        return None
    theirs = dict(deserialize(content))  # the library takes whatever we take
    assert {entry.name: list(entry.shape) for entry in entries} == {name: it["shape"] for name, it in theirs.items()}
    for entry in entries:
        assert content[entry.begin : entry.end] == bytes(theirs[entry.name]["data"])
    return entries


numbers = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30]), st.booleans(), st.floats(),
    st.none(),
)  # fmt: skip
shapes = st.one_of(st.lists(st.integers(0, 3), max_size=3), st.lists(numbers, max_size=10), numbers)
offsets = st.one_of(st.tuples(st.integers(0, 24), st.integers(0, 24)), st.lists(numbers, max_size=3), numbers)
claims = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["U8", "F32", "BF16", "I64", "F12"]), st.text(max_size=4), numbers),
        "shape": shapes, "data_offsets": offsets, "more": numbers,
    },
)  # fmt: skip
headers = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=6)), claims, max_size=4
)
tails = st.binary(max_size=24)


@given(head=headers, data=tails, off=st.sampled_from([0, 0, 0, 0, -1, 1, 7, 2**40]), pad=st.integers(0, 3))
@settings(max_examples=size(400, 20_000))
def test_any_header_is_refused_or_read_as_the_library_reads_it(
    head: dict[str, Any], data: bytes, off: int, pad: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = json.dumps(head).encode() + b" " * pad
    content = max(len(written) + off, 0).to_bytes(8, "little") + written + data
    judged(content, tmp_path_factory.getbasetemp() / "fuzzed.safetensors")


@st.composite
def true_files(draw: st.DrawFn) -> bytes:
    """A true file of up to four tensors, then a few of its bytes replaced."""
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), unique=True, max_size=4))
    found: dict[str, Any] = {}
    at = 0
    for name in names:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, item = draw(st.sampled_from([("U8", 1), ("BF16", 2), ("F32", 4)]))
        count = item
        for side in shape:
            count *= side
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(found).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + bytes(at))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3)):
        content[place] = value
    return bytes(content)


@given(content=true_files())
@settings(max_examples=size(400, 20_000))
def test_a_true_file_with_bytes_replaced(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    judged(content, tmp_path_factory.getbasetemp() / "fuzzed.safetensors")


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.safetensors")), ids=lambda path: path.name)
def test_what_was_found_stays_found(file: Path, tmp_path: Path) -> None:
    assert judged(file.read_bytes(), tmp_path / "it.safetensors") is None
