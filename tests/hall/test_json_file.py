"""Documents that are small on the disk and large in memory, and names that stand in an object twice."""

from __future__ import annotations

import json

import pytest

from fastvlm import json_file
from fastvlm.json_file import MOST_LISTS, MOST_VALUES, each_once, parse


def test_small_things_are_counted_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"it has 1,000,001 lists and objects, at most 1,000,000 are read"):
        parse(b"[" + b"[]," * MOST_LISTS + b"0]")
    with pytest.raises(ValueError, match=r"it has over 2,000,000 values, no more are read"):
        parse(b"[" + b"1," * MOST_VALUES + b"1]")


def test_as_many_as_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MOST_VALUES", 4)
    monkeypatch.setattr(json_file, "MOST_LISTS", 2)
    assert parse(b'[1,2,3,{"a":5}]') == [1, 2, 3, {"a": 5}]
    for more in (b"[1,2,3,4,5]", b"[[],[]]"):
        with pytest.raises(ValueError, match="read"):
            parse(more)


def test_what_is_named_twice() -> None:
    assert json.loads('{"a": {"b": 1}, "b": 2}', object_pairs_hook=each_once) == {"a": {"b": 1}, "b": 2}
    assert parse(b'{"a": 1, "a": 2}') == {"a": 2}
    for once in ('{"a": 1, "a": 1}', '{"x": [{"a": 1, "a": 2}]}'):
        with pytest.raises(ValueError, match="it names 'a' twice"):
            json.loads(once, object_pairs_hook=each_once)
        with pytest.raises(ValueError, match="it names 'a' twice"):
            parse(once.encode(), once=True)
    with pytest.raises(ValueError, match=r"^it names '\\x1b\[2Ja+\.\.\. twice$"):
        parse(
            json.dumps({"x": 0})
            .encode()
            .replace(b'"x": 0', b'"\\u001b[2J%s": 0, "\\u001b[2J%s": 0' % ((b"a" * 999,) * 2)),
            True,
        )
