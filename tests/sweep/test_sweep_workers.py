"""Workers that die, refuse or are interrupted: every case ends in one row, and none is measured twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from clerks import DEADLY, EARLY, PATIENT, TOLD, result
from specs import Write
from typed import Run

from fastvlm.errors import OutputError
from fastvlm.progress import Progress
from validation.sweep import sweep
from validation.sweep.rows import ERROR, ROWS, SWEEP, measured, name_of, open_folder, read_row, write_row

LINES = ("checkpoints: [tiny]", "schemes: [fp16, int8]", "images: [reds, blues]")

pytestmark = pytest.mark.usefixtures("clerks")


def _attempts(place: Path, scheme: str) -> int:
    return (place / TOLD).read_text().count(scheme)


def _statuses(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    rows = document["rows"]
    found = {(row["scheme"], row["images"]): row["status"] for row in rows}
    assert len(found) == len(rows), "a case stands twice in the table"
    return found


def test_every_case_has_one_row(spec: Write, tmp_path: Path) -> None:
    swept = sweep(spec(*LINES), tmp_path / "out", workers=2)
    assert _statuses(swept.document) == {
        (scheme, images): "passed" for scheme in ("fp16", "int8") for images in ("reds", "blues")
    }
    assert len(list((tmp_path / "out" / ROWS).iterdir())) == 4
    assert [file.name for file in swept.files] == ["table.json", "pareto.svg"]


def test_a_worker_that_is_killed_is_started_anew_and_nothing_is_lost_or_counted_twice(
    spec: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    open_folder(out)
    (out / f"fp16{DEADLY}").write_text("2")  # once after each of its rows
    swept = sweep(spec(*LINES), out, workers=2)
    assert set(_statuses(swept.document).values()) == {"passed"}
    assert len(list((out / ROWS).iterdir())) == 4
    assert (_attempts(out, "fp16"), _attempts(out, "int8")) == (3, 1)


def test_a_build_that_ends_every_worker_gets_rows_that_say_so_and_the_next_run_tries_again(
    spec: Write, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    open_folder(out)
    (out / f"fp16{EARLY}").write_text("3")
    result = run("sweep", spec(*LINES), "-o", out, "--workers", "2")
    assert result.exit_code == 1
    assert "Error: 2 of 4 cases could not be measured" in result.stderr
    assert "tiny at 256, fp16, reds: a worker ended by itself (SIGKILL) at stage start" in result.stdout
    assert (_attempts(out, "fp16"), _attempts(out, "int8")) == (3, 1)
    assert run("sweep", spec(*LINES), "-o", out).exit_code == 0
    assert (_attempts(out, "fp16"), _attempts(out, "int8")) == (4, 1)


def test_an_error_is_a_row_the_others_go_on_and_it_is_measured_again(spec: Write, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = ("checkpoints: [tiny]", "schemes: [lut6, fp16]", "images: [reds]")
    result = run("sweep", spec(*lines), "-o", out)
    assert result.exit_code == 1
    assert "Error: 1 of 2 cases could not be measured" in result.stderr
    assert "tiny at 256, lut6, reds: no space left" in result.stdout
    assert _statuses(json.loads((out / "table.json").read_text())) == {
        ("lut6", "reds"): ERROR,
        ("fp16", "reds"): "passed",
    }
    run("sweep", spec(*lines), "-o", out)
    assert (_attempts(out, "lut6"), _attempts(out, "fp16")) == (2, 1)


def test_a_second_run_measures_what_was_added_and_takes_the_rest(spec: Write, heard: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(spec(*LINES), out)
    again = sweep(spec(*LINES), out, progress=heard)
    assert again.taken == 4
    assert "4 of 4 cases were measured by an earlier run" in heard.notes
    assert not [note for note in heard.notes if "passed" in note], "told of as if it were measured now"
    more = sweep(spec("checkpoints: [tiny]", "schemes: [int8, lut4]", "images: [reds, blues]"), out)
    assert more.taken == 2
    assert _statuses(more.document).keys() == {(s, i) for s in ("int8", "lut4") for i in ("reds", "blues")}
    assert [_attempts(out, scheme) for scheme in ("fp16", "int8", "lut4")] == [1, 1, 1]


def test_a_damaged_row_is_measured_again(spec: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(spec(*LINES), out)
    row = sorted((out / ROWS).iterdir())[0]
    row.write_bytes(row.read_bytes()[:50])
    assert sweep(spec(*LINES), out).taken == 3
    assert set(_statuses(json.loads((out / "table.json").read_text())).values()) == {"passed"}


class Impatient(Progress):
    """Somebody who types Ctrl-C when the first build is told of."""

    def note(self, text: str) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_ends_all_workers_and_keeps_the_rows(spec: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_folder(out)
    (out / f"int8{PATIENT}").touch()
    with pytest.raises(KeyboardInterrupt) as caught:
        sweep(spec(*LINES), out, workers=2, progress=Impatient())
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"[234] of 4 cases are measured; the same command goes on with the rest", note)
    (out / f"int8{PATIENT}").unlink()
    assert sweep(spec(*LINES), out, workers=2).taken >= 2
    assert _attempts(out, "fp16") == 1


def test_a_folder_of_something_else_is_left_alone(spec: Write, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear all")
    result = run("sweep", spec(*LINES), "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "holds other things than a sweep" in result.stderr
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    result = run("sweep", spec(*LINES), "-o", tmp_path / "sweep.yaml")
    assert "is a file" in result.stderr


@pytest.mark.parametrize(
    ("words", "missing", "said"),
    [
        (("--ray", "auto"), "ray", "--ray needs Ray, which is not installed; pip install 'fastvlm-coreml[ray]'"),
        (("--parquet",), "pyarrow", "--parquet needs pyarrow, which is not installed"),
        (("--workers", "0"), None, "--workers is 0; at least one is needed"),
        (("--workers", "2", "--ray", "auto"), None, "leave one of them out"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    words: tuple[str, ...], missing: str | None, said: str, spec: Write, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if missing is not None:
        for module in ("cluster", "table"):
            monkeypatch.setattr(f"validation.sweep.{module}.importlib.util.find_spec", lambda name: None)
    result = run("sweep", spec(*LINES), "-o", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_told_before_any_work(
    spec: Write, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    asked: list[Any] = []

    def refuse(place: tuple[str, int], patience: float) -> None:
        asked.append(place)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    result = run("sweep", spec(*LINES), "-o", tmp_path / "out", "--ray", "head:6379")
    assert result.exit_code == 2
    assert "no Ray cluster answers at --ray head:6379 ([Errno 111] Connection refused); `ray start" in result.stderr
    assert asked == [("head", 6379)]
    assert not (tmp_path / "out").exists()


def _result(case: str, **more: Any) -> dict[str, Any]:
    making = {"folder": "b", "checkpoint": "tiny", "image_size": 256, "scheme": "fp16", "target": "ane", "context": 64}
    return result(making, {"id": case, "images": "reds"}, **more)


def test_a_row_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(tmp_path)
    write_row(tmp_path, _result("aa", kl=1))
    write_row(tmp_path, _result("aa", kl=2))
    assert [entry.name for entry in (tmp_path / ROWS).iterdir()] == ["aa.json"]
    monkeypatch.setattr("fastvlm.steps.rename", _full)
    with pytest.raises(OutputError):
        write_row(tmp_path, _result("aa", kl=3))
    row = read_row(tmp_path, "aa")
    assert row is not None
    assert row["kl"] == 2
    assert [entry.name for entry in (tmp_path / ROWS).iterdir()] == ["aa.json"]


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_is_no_result_and_a_row_under_another_name_none_of_this_case(tmp_path: Path) -> None:
    open_folder(tmp_path)
    write_row(tmp_path, _result("aa", status=ERROR, error="no space"))
    write_row(tmp_path, _result("bb", status="failed"))
    (tmp_path / ROWS / "cc.json").write_bytes((tmp_path / ROWS / "bb.json").read_bytes())
    assert measured(tmp_path, ["aa", "bb", "cc", "dd"]).keys() == {"bb"}


def test_a_worker_that_sees_another_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="every worker must see the folder"):
        name_of(tmp_path)
    (tmp_path / SWEEP).write_text("[]")
    with pytest.raises(OutputError, match="is damaged"):
        name_of(tmp_path)
