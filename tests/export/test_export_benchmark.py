"""`benchmarks/export.py`: its processes on the embedded checkpoint, and how it judges what they gave."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "export.py"
sys.path.append(str(BENCHMARK.parent))  # last: there is an export.py in it

from export_report import HEAD, Figures, Measured, as_json, missed, ratio, table  # noqa: E402
from export_targets import SCHEMES, TARGETS, TITLES, Row, judged, rows_of  # noqa: E402

DRAWS = importlib.util.find_spec("matplotlib") is not None
PARTS = {"encoder": 250, "language": 1000, "embeddings": 270}


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does, with this checkout's packages."""
    command = [sys.executable, "-P", str(BENCHMARK), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of one run over two rows; the table lies beside it."""
    folder = tmp_path_factory.mktemp("figures")
    wanted = ("--schemes", "fp16,int8", "--only-rows", "everything", "--no-stock", "--json", folder / "figures.json")
    done = benchmark("rows", "tiny", *wanted, *(("--plot", folder / "plot.svg") if DRAWS else ()))
    assert done.returncode == 0, done.stderr
    (folder / "table.txt").write_text(done.stdout, "utf-8")
    return folder / "figures.json"


@pytest.mark.long
def test_rows_are_measured(figures: Path) -> None:
    (record,) = json.loads(figures.read_text("utf-8"))["checkpoints"]
    assert (record["name"], record["size"]) == ("tiny", None)
    plain, int8 = record["rows"]
    assert [plain["scheme"], int8["scheme"]] == ["fp16", "int8"]
    assert plain["weights"] == int8["weights"] == sum(record["weights"].values())
    for row in (plain, int8):
        assert row["failed"] is row["stock"] is row["left_out"] is row["to_stock"] is None
        assert row["targets"] == []  # the design sets none for tiny
        assert 0.5 < row["ours"]["cpu"]
        assert 0.5 < row["ours"]["seconds"] < 600
        assert 0.2e9 < row["ours"]["memory"] < 2e9
    assert plain["to_fp16"] is None
    assert int8["to_fp16"] == pytest.approx(int8["ours"]["seconds"] / plain["ours"]["seconds"])
    assert 0.9 < plain["ours"]["disk"] / plain["weights"] < 1.6  # programs and tokenizer count, of tiny they are a part
    assert int8["ours"]["disk"] < plain["ours"]["disk"] - 1e6


@pytest.mark.long
def test_the_table_holds_what_the_json_holds(figures: Path) -> None:
    (record,) = json.loads(figures.read_text("utf-8"))["checkpoints"]
    printed = figures.with_name("table.txt").read_text("utf-8")
    assert printed == f"{table(record)}\nno target met, none missed\n"
    title, head, *rows = table(record).splitlines()
    assert (title[:5], head) == ("tiny:", HEAD)
    for line, row in zip(rows, record["rows"], strict=True):
        name, (route, *numbers) = line[:30].strip(), line[30:].split()
        assert (name, route) == (row["title"], "ours")
        assert float(numbers[0]) == pytest.approx(row["ours"]["seconds"], abs=0.06)


@pytest.mark.skipif(not DRAWS, reason="matplotlib is not installed")
@pytest.mark.long
def test_the_plot_is_written_and_drawn_again_to_the_same_bytes(figures: Path, tmp_path: Path) -> None:
    plot = figures.with_name("plot.svg")
    words = {element.text for element in ElementTree.fromstring(plot.read_bytes()).iter() if element.text}
    assert {"tiny", "fp16", "int8", "seconds, elapsed", "peak memory, GB"} <= words
    assert benchmark("plot", figures, tmp_path / "again.svg").returncode == 0
    assert (tmp_path / "again.svg").read_bytes() == plot.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tiny", "--schemes", "int3"), "int3; known are fp16, int8"),
        (("tiny", "--only-rows", ""), "nothing; known are encoder-one"),
        (("tiny", "--rounds", "0"), "'0' is not a positive number"),
        (("tiny", "--json", "no/such/folder/a.json"), "there is no folder"),
        (("no-such-folder", "--only-rows", "language"), "no-such-folder"),
    ],
)
def test_bad_words_are_one_line(arguments: tuple[str, ...], says: str) -> None:
    done = benchmark("rows", *arguments)
    assert done.returncode in (1, 2)
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_rows_in_order() -> None:
    rows = rows_of(tuple(TITLES), SCHEMES)
    assert [(row.key, row.scheme) for row in rows[:4]] == [(key, "fp16") for key in TITLES]
    assert [row.scheme for row in rows[3:]] == list(SCHEMES)
    assert [row.weights(PARTS) for row in rows[:4]] == [250, 250, 1270, 1520]
    assert rows_of(("encoder-two", "everything"), ("int4",)) == [Row("encoder-two"), Row("everything", "int4")]


@pytest.mark.parametrize(
    ("row", "size", "found", "missing"),
    [
        (Row("encoder-one"), "7b", {"seconds": 15.0, "memory": 1.5e9}, []),  # a limit itself is met
        (Row("encoder-one"), "7b", {"seconds": 15.01, "memory": 1.51e9}, ["seconds", "memory"]),
        (Row("encoder-two"), "0.5b", {"seconds": 29.0, "memory": 1.0e9}, []),
        (Row("language"), "0.5b", {"seconds": 21.0, "memory": 2.0e9}, ["seconds"]),
        (Row("everything"), "0.5b", {"seconds": 61.0, "memory": 2.6e9, "disk": 1.5e9}, ["seconds", "memory"]),
        (Row("everything", "int8"), "0.5b", {"seconds": 90.0, "ratio": 1.51, "disk": 0.93e9}, ["ratio", "disk"]),
        (Row("everything", "int8"), "0.5b", {"ratio": None, "disk": 0.9e9}, []),
        (Row("everything", "lut6"), "0.5b", {"seconds": 301.0, "memory": 9e9}, ["seconds"]),
        (Row("everything", "mixed"), "7b", {"seconds": 9999.0, "memory": 4.1e9}, ["memory"]),
        (Row("everything", "int4"), "vicuna-7b", {"seconds": 481.0, "memory": 3.9e9}, ["seconds"]),
        (Row("everything"), None, {"seconds": 9999.0, "memory": 9e12, "disk": 9e12}, []),
    ],
)
def test_what_is_missed(row: Row, size: str | None, found: dict[str, float | None], missing: list[str]) -> None:
    assert [judgement.target.metric for judgement in judged(row, size, found) if not judgement.met] == missing


def test_a_number_that_is_none_is_missed() -> None:
    assert [judgement.met for judgement in judged(Row("language"), "7b", {"memory": float("nan")})] == [False]


def test_every_target_speaks_of_a_row_that_there_is() -> None:
    rows = rows_of(tuple(TITLES), SCHEMES)
    for target in TARGETS:
        assert any(target.holds_for(row, size) for row in rows for size in target.sizes), target


def test_ratios_are_of_the_same_round() -> None:
    slow, fast = [Figures(seconds, 1, 1, 1) for seconds in (10, 40, 12)], [Figures(s, 1, 1, 1) for s in (5, 10, 6)]
    assert ratio(slow, fast) == 2
    assert ratio(slow[:2], fast) is None
    assert ratio([], []) is None


def test_missed_and_failed_are_listed() -> None:
    results = [
        Measured(Row("everything"), 1520, ours=[Figures(30, 25, 1e9, 1.5e9)]),
        Measured(Row("everything", "int8"), 1520, ours=[Figures(60, 45, 1e9, 0.9e9)], left_out="left out: too large"),
        Measured(Row("everything", "lut4"), 1520, failed="ended with 1: no room"),
    ]
    record = as_json("half", {"size": "0.5b", "weights": PARTS}, results)
    assert missed([record]).splitlines() == [
        "3 targets met; missed:",
        "  half, everything, int8: 2.00 × fp16, target ≤ 1.5 × fp16 (45.0 CPU s)",
        "  half, everything, lut4: failed, ended with 1: no room",
    ]
    printed = table(record)
    for words in ("≤ 60 s ok", "≤ 1.5 × fp16 MISSED", "left out: too large", "FAILED: ended with 1: no room"):
        assert words in printed
    assert ("2.00" in printed) == (record["rows"][1]["to_fp16"] == 2)


@pytest.fixture
def command() -> Any:
    """The command's module, under a name that hides no package."""
    spec = importlib.util.spec_from_file_location("export_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stock_route_is_left_out_with_a_reason(command: Any) -> None:
    rows = rows_of(tuple(TITLES), SCHEMES)
    wide = {"narrowest": 896, "weights": {"language": 0.99e9}}
    reasons = {(row.key, row.scheme): command.left_out(row, wide, 8e9, False) for row in rows}
    assert reasons["encoder-two", "fp16"] is None
    assert reasons["everything", "mixed"] == "coremltools has no such scheme"
    assert reasons["language", "fp16"] == "left out: needs about 8.2 GB of memory, 8.0 GB are free"
    assert all(command.left_out(row, wide, 9e9, False) is None for row in rows[:-1])
    narrow = wide | {"narrowest": 192}
    assert command.left_out(Row("everything", "lut4"), narrow, 9e9, False) == "not measured: scikit-learn missing"
    assert command.left_out(Row("everything", "lut4"), narrow, 9e9, True) is None


def test_routes_take_turns_and_what_failed_is_not_tried_again(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def measured(route: str, row: Row, checkpoint: str, seconds: float | None = None) -> Figures:
        calls.append(f"{route} {row.scheme}")
        if calls[-1] in ("ours int8", "stock fp16") and len(calls) > 2:
            raise RuntimeError("no room")
        return Figures(len(calls), 1, 1, 1)

    monkeypatch.setattr(command, "measured", measured)
    monkeypatch.setattr(command, "child", lambda *_: {"size": None, "weights": PARTS, "narrowest": 896})
    words = ["export.py", "rows", "half", "--only-rows", "everything", "--schemes", "fp16,int8", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / "figures.json")])
    assert command.main() == 1
    assert calls == [
        "ours fp16", "stock fp16", "ours int8", "stock int8", "ours fp16", "stock fp16", "stock int8", "ours fp16",
        "stock int8",
    ]  # fmt: skip
    plain, int8 = json.loads((tmp_path / "figures.json").read_text("utf-8"))["checkpoints"][0]["rows"]
    assert (plain["ours"]["seconds"], plain["left_out"], plain["to_stock"]) == (5, "no room", None)
    assert (int8["ours"], int8["failed"], int8["to_fp16"]) == (None, "no room", None)
    assert "half, everything, int8: failed, no room" in capsys.readouterr().out
