"""Where a report may be written, what it may replace, and that it comes back as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fastvlm.errors import FastVLMError, OutputError, ReportError, UsageError
from validation import validate
from validation.html_report import check_place, read_report, write_report


@pytest.mark.parametrize("name", ["report.html", "report.json", "REPORT.HTML"])
def test_a_report_comes_back_as_it_was(whole: dict[str, Any], name: str, tmp_path: Path) -> None:
    file = write_report(whole, tmp_path / name)
    assert read_report(file) == whole
    first = file.read_bytes()
    assert write_report(read_report(file), file).read_bytes() == first, "and is the same bytes again"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("missing/report.html", OutputError, "expected a folder at .*missing, found nothing there"),
        ("file/report.html", OutputError, "found a file there"),
        ("report.pdf", UsageError, r"ends in .pdf, expected .html \(a page\) or .json"),
        ("report", UsageError, "ends in nothing"),
        ("folder.html", OutputError, "is a folder"),
        ("mine.html", OutputError, "is a file that is no report of fastvlm"),
        ("mine.json", OutputError, "is a file that is no report of fastvlm"),
        ("build/report.html", OutputError, "lie in each other; choose another place with --report"),
        ("build/tokenizer/report.html", OutputError, "lie in each other"),
        ("link/report.html", OutputError, "lie in each other"),
    ],
)
def test_a_place_that_cannot_be_is_named(place: str, error: type[FastVLMError], words: str, tmp_path: Path) -> None:
    (tmp_path / "build" / "tokenizer").mkdir(parents=True)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link").symlink_to("build")
    for name in ("file", "mine.html", "mine.json"):
        (tmp_path / name).write_text('{"schema": "0.1"}')
    with pytest.raises(error, match=words):
        check_place(tmp_path / place, (tmp_path / "build", None, "apple/FastVLM-0.5B"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may not be written"):
        check_place(tmp_path / "report.html")


def test_nothing_is_computed_before_the_place_is_checked(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validation.judging.check_files", lambda *_: pytest.fail("it began"))
    for place in (exported_tiny / "report.html", exported_tiny / "no" / "report.html"):
        with pytest.raises(OutputError):
            validate(exported_tiny, report=place)


def test_a_report_of_any_schema_may_be_replaced(whole: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text('{"schema": "7.0", "tool": {"name": "fastvlm"}}')
    write_report(whole, file)
    assert read_report(file) == whole


def test_an_interrupted_writing_leaves_the_older_one(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_report(whole, tmp_path / "report.json")
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left on device")))
    with pytest.raises(OutputError, match="no space left"):
        write_report(whole | {"steps": 1}, file)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "<html></html>", "<script id=fastvlm-report>{</script>", "[" * 100_000, "\x00", '"x"']
)
@pytest.mark.parametrize("name", ["it.html", "it.json"])
def test_what_is_no_report_is_named(content: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ReportError, match="is no report of fastvlm"):
        read_report(tmp_path / name)


def test_what_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(tmp_path / "report.html")
    (tmp_path / "report.html").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReportError, match="is no report"):
        read_report(tmp_path / "report.html")
