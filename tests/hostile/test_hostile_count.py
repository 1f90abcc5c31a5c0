"""The real exports of the hostile suites are counted, wherever they are made, and the ninth of the short form fails."""

from __future__ import annotations

from pathlib import Path

from ordeal import try_all
from real_exports import MOST, SHARED, Count


def nothing(model: object, output: Path, **_: object) -> Path:
    return output


def test_the_ninth_is_one_too_many(tmp_path: Path) -> None:
    count = Count(tmp_path / "exports", MOST)
    export = count.around(nothing)
    assert count.around(export) is export
    outcomes = try_all([(str(number), lambda: export(None, tmp_path)) for number in range(MOST - SHARED + 1)])
    assert [outcome.kind for outcome in outcomes] == ["passed"] * (MOST - SHARED) + ["crash"]
    assert "real export 9, 8 have room in all" in outcomes[-1].detail
    assert int(count) == MOST + 1


def test_what_all_tests_share_is_counted_once(tmp_path: Path) -> None:
    count = Count(tmp_path / "exports", MOST)
    count.around(nothing)(None, tmp_path / "exported" / "made" / "tiny")
    assert int(count) == SHARED


def test_the_suites_are_counted_by_it(real_exports: Count) -> None:
    from export import api

    assert api.export_model.counts is real_exports  # type: ignore[attr-defined]
    assert real_exports.most is None or int(real_exports) <= MOST == real_exports.most
