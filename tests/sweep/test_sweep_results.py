"""What becomes of rows: fronts, the table, the plot; and one case that is really exported, validated and estimated."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from clerks import result
from hypothesis import given
from specs import Write

from fastvlm.build import read_build
from fastvlm.commands.sweep import cells
from fastvlm.errors import OutputError
from fastvlm.manifest import find_changes
from fastvlm.progress import Progress
from validation.fit.estimating import estimate
from validation.fit.sizes import sizes_of
from validation.sweep import working
from validation.sweep.cases import planned
from validation.sweep.front import family, front, nearest, rightest, task
from validation.sweep.plot import FILE, _Looks, panels, write_plot
from validation.sweep.rows import BUILDS, ERROR, Row, open_folder, read_row
from validation.sweep.spec import read_spec
from validation.sweep.table import COLUMNS, PARQUET, document, tabled, write_tables
from validation.sweep.working import work

PHONE = "iPhone 15 Pro"
POINTS = st.tuples(*(st.integers(1, 3),) * 3, st.sampled_from(["a", "b"]))


def _row(size: float, latency: float, kl: float | None, **more: Any) -> Row:
    row = {"images": "all", "checkpoint": "tiny", "image_size": 256, "bytes": size, "first_token": latency, "kl": kl}
    return {**row, **more}


@given(st.lists(POINTS, max_size=12))
def test_the_front_is_what_no_other_of_its_family_beats(points: list[tuple[int, int, int, str]]) -> None:
    rows = [_row(*point[:3], checkpoint=point[3]) for point in points]
    found = front(rows, nearest, family)
    for row, is_on in zip(rows, found, strict=True):
        own = (row["bytes"], row["first_token"], row["kl"])
        others = [(r["bytes"], r["first_token"], r["kl"]) for r in rows if r["checkpoint"] == row["checkpoint"]]
        beaten = [o for o in others if o != own and all(a <= b for a, b in zip(o, own, strict=True))]
        assert is_on == (not beaten)


def test_each_error_is_compared_with_what_shares_it() -> None:
    rows = [
        _row(1, 1, 0.5, wrong=0.5),
        _row(2, 2, 0.6, checkpoint="other", wrong=0.5),  # beaten by the first in wrong answers alone
        _row(2, 2, 0.6, image_size=128, wrong=0.0),
        _row(2, 2, 0.6, images="others", wrong=None),
        _row(1, 1, None, wrong=None),
    ]
    assert front(rows, nearest, family) == [True, True, True, True, False]
    assert front(rows, rightest, task) == [True, False, True, False, False]


MAKING = {
    "id": "b", "folder": "tiny-256-fp16-b", "checkpoint": "tiny", "image_size": 256, "scheme": "fp16", "target": "ane",
    "context": 2048,
}  # fmt: skip


def _case(scheme: str = "fp16", images: str = "reds", **more: Any) -> Row:
    return result({**MAKING, "scheme": scheme}, {"id": f"{scheme}-{images}", "images": images}, **more)


@pytest.fixture
def rows() -> list[Row]:
    """Three results, one of them with known answers, and a case without a result."""
    failed = {**{name: _case()[name] for name in ("schema", "checkpoint", "image_size", "target", "context", "images")},
              "case": "e", "build": "e", "scheme": "lut4", "status": ERROR, "error": "no space"}  # fmt: skip
    return [
        _case(), _case("int8", bytes=500, kl=0.2), failed,
        _case(images="task", answered=4, build_right=3, status="failed", missed=["language.kl"]),
    ]  # fmt: skip


def test_the_table_has_a_flat_row_for_each_case(rows: list[Row]) -> None:
    flat = tabled(rows, PHONE)
    assert [list(row) for row in flat] == [list(COLUMNS)] * 4
    first, small, failed, asked = flat
    assert (first["first_token"], first["memory"], first["device"], first["wrong"]) == (0.5, 10**9, PHONE, None)
    assert (first["front"], small["front"], first["task_front"]) == (True, True, False)
    assert (failed["status"], failed["error"], failed["bytes"], failed["front"]) == (ERROR, "no space", None, False)
    assert (asked["wrong"], asked["task_front"], asked["missed"]) == (0.25, True, "language.kl")


def test_the_same_table_as_json_and_as_parquet(rows: list[Row], spec: Write, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    content = document(read_spec(spec("checkpoints: [tiny]")), tabled(rows, PHONE))
    files = write_tables(tmp_path, content, True)
    assert files == [tmp_path / "table.json", tmp_path / PARQUET]
    assert json.loads(files[0].read_text())["rows"] == content["rows"]
    table = parquet.read_table(files[1])
    assert table.to_pylist() == content["rows"]
    told = json.loads(table.schema.metadata[b"fastvlm_sweep"])
    assert told["spec"]["checkpoints"] == [{"name": "tiny", "at": "tiny"}]


def test_the_plot_shows_every_result_and_is_the_same_each_time(rows: list[Row], tmp_path: Path) -> None:
    flat = tabled(rows, PHONE)
    assert [(each.title, each.error, len(each.rows)) for each in panels(flat)] == [
        ("reds", "kl", 2), ("task", "kl", 1), ("task", "wrong", 1),
    ]  # fmt: skip
    first = (write_plot(tmp_path, flat, PHONE) or tmp_path).read_bytes()
    assert (write_plot(tmp_path, flat, PHONE) or tmp_path).read_bytes() == first
    drawn = first.decode()
    for text in ("int8", "tiny at 256", f"estimated for {PHONE}", "share of wrong answers", "best: no other beats it"):
        assert text in drawn
    assert "lut4" not in drawn


def test_names_are_drawn_as_they_are_and_the_legend_takes_no_room_from_the_panels(tmp_path: Path) -> None:
    long = f"/models/{'a-long-name/' * 9}FastVLM-7B"
    odd = [_case(scheme, images=images, checkpoint=checkpoint, bytes=size)
           for size, (scheme, images, checkpoint) in enumerate((("_own.yaml", "$x^2$ $\\foo$", "_tiny"),
                                                               ("int8", "\u5199\u771f", long)), 1)]  # fmt: skip
    write_plot(tmp_path, tabled(odd, PHONE), PHONE)
    drawn = (tmp_path / FILE).read_text()
    for text in ("$x^2$ $\\foo$: 1 build<", "_own.yaml", "_tiny at 256", "\u5199\u771f", "FastVLM-7B at 256"):
        assert text in drawn
    assert long not in drawn
    panel = re.search(r'id="patch_2">\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', drawn)
    assert panel is not None
    assert float(panel[2]) - float(panel[1]) > 250  # points, of 720 that the plot is wide


def test_an_axis_of_powers_has_plain_numbers(tmp_path: Path) -> None:
    write_plot(tmp_path, tabled([_case(bytes=size * 10**6) for size in (1, 7)], PHONE), PHONE)
    assert "2<" in (tmp_path / FILE).read_text().replace("</", "<")
    assert "times" not in (tmp_path / FILE).read_text()
    assert "\u00d7" not in (tmp_path / FILE).read_text()


def test_many_models_and_schemes_look_different(tmp_path: Path) -> None:
    rows = [_case(f"s{place % 15}", checkpoint=f"m{place}", bytes=place + 1) for place in range(20)]
    looks = _Looks(rows)
    marks = [looks.mark(row) for row in rows]
    assert len({(mark["marker"], mark["fillstyle"]) for mark in marks}) == 20
    assert len({mark["color"] for mark in marks}) == 15
    write_plot(tmp_path, tabled(rows, PHONE), PHONE)


def test_a_build_whose_values_are_no_numbers_is_a_result_without_an_error(tmp_path: Path) -> None:
    (row,) = tabled([_case(status="failed", kl=None, answered=2, build_right=0)], PHONE)
    assert (row["status"], row["kl"], row["front"], row["wrong"], row["task_front"]) == ("failed", None, False, 1, True)
    assert [panel.error for panel in panels([row])] == ["wrong"]
    assert write_plot(tmp_path, [row], PHONE) == tmp_path / FILE
    assert "no number" in cells(row)


def test_without_a_result_there_is_no_plot(rows: list[Row], tmp_path: Path) -> None:
    assert write_plot(tmp_path, tabled(rows[2:3], PHONE), PHONE) is None
    assert not (tmp_path / FILE).exists()


def test_a_case_is_exported_validated_and_estimated(
    spec: Write, exported_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(*words: Any, progress: Progress, **given: Any) -> Any:
        progress.note("two lines\nwere said")
        progress.note("two lines\nwere said")
        return validate(*words, progress=progress, **given)

    validate = working.validate
    monkeypatch.setattr(working, "validate", noting)
    (making,) = planned(read_spec(spec("checkpoints: [tiny]", "images: [reds]", "steps: 2")))
    out = tmp_path / "out"
    name = open_folder(out)
    build = out / BUILDS / making.folder
    shutil.copytree(exported_tiny, build)  # as a worker left it that was killed afterwards
    identity = build.stat().st_ino
    work(str(out), name, making.as_json(), True)
    assert build.stat().st_ino == identity, "a build that was there was made again"
    row = read_row(out, making.cases[0].id)
    assert row is not None
    assert (row["status"], row["pictures"], row["steps"], row["missed"]) == ("passed", 1, 2, [])
    assert row["bytes"] == sum(path.stat().st_size for path in exported_tiny.rglob("*") if path.is_file())
    assert 0 < row["kl"] < 1e-4
    assert row["notes"].count("two lines were said") == 1
    assert (build / "validation.json").exists()
    assert working._sizes(sizes_of(build), build)["bytes"] == row["bytes"], (
        "what validation wrote counts as the build's"
    )
    assert not find_changes(build, read_build(build).manifest)
    (flat,) = tabled([row], PHONE)
    assert flat["first_token"] == estimate(sizes_of(build), PHONE).first_token
    (build / "validation.json").unlink()
    work(str(out), name, making.as_json(), True)
    assert not (build / "validation.json").exists(), "a case with a row was compared again"
    work(str(out), name, making.as_json(), False)
    assert not build.exists()
    assert list((out / BUILDS).iterdir()) == []


def test_a_worker_writes_into_no_other_sweep(spec: Write, tmp_path: Path) -> None:
    (making,) = planned(read_spec(spec("checkpoints: [tiny]", "images: [reds]")))
    open_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="is another sweep's on this machine"):
        work(str(tmp_path / "out"), "someone's", making.as_json(), False)


def test_a_build_that_cannot_be_made_gives_a_row_that_says_why(spec: Write, tmp_path: Path) -> None:
    (making,) = planned(read_spec(spec("checkpoints: [tiny]", "images: [reds]")))
    out = tmp_path / "out"
    name = open_folder(out)
    gone = {**making.as_json(), "checkpoint_at": str(tmp_path / "nowhere")}
    work(str(out), name, gone, False)
    row = read_row(out, making.cases[0].id)
    assert row is not None
    assert row["status"] == ERROR
    assert "nowhere" in row["error"]
