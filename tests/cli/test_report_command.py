"""`validate --report` and `fastvlm report`: what they write, what they say, and what they refuse before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typed import Run

from fastvlm.hashes import sha256_file


@pytest.fixture(scope="session")
def typed_report(exported_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html as the command writes it; the build lies beside it."""
    from typed import typed

    folder = tmp_path_factory.mktemp("typed")
    shutil.copytree(exported_tiny, folder / "build")
    result = typed("validate", folder / "build", "--steps", "2", "--report", folder / "report.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["verdict"] == "passed", "stdout holds the verdict alone"
    assert f"report: {folder / 'report.html'}\n" in result.stderr
    return folder / "report.html"


def test_a_page_gives_its_data(run: Run, typed_report: Path, tmp_path: Path) -> None:
    result = run("report", typed_report, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["schema"] == "0.2"
    assert result.stderr == f"next: fastvlm report {typed_report} -o FILE.html\n"
    made = run("report", typed_report, "-o", tmp_path / "report.json")
    assert made.stdout == f"report: {tmp_path / 'report.json'}\n"
    assert (tmp_path / "report.json").read_text("utf-8") == result.stdout
    again = run("report", tmp_path / "report.json", "-o", tmp_path / "again.html")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again.html").read_bytes() == typed_report.read_bytes()


def test_a_profile_is_put_into_it(run: Run, typed_report: Path, tmp_path: Path) -> None:
    stages = [{"stage": "encode", "position": None, "runs": {"median": 0.04, "count": 5}}]
    own = {"name": "on a Mac", "stages": stages, "build": {"manifest_sha256": ""}, "memory_bytes": None}
    own["build"] = {"manifest_sha256": sha256_file(typed_report.parent / "build" / "manifest.json")}
    (tmp_path / "profile.json").write_text(json.dumps({"contenders": [own]}))
    result = run("report", typed_report, "--profile", tmp_path / "profile.json", "-o", tmp_path / "made.html")
    assert result.exit_code == 0, result.stderr
    assert "on a Mac: 40 ms in all, without a first token" in (tmp_path / "made.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{report}",), "nothing is asked for; give -o FILE.html"),
        (("{report}", "-o", "no/where.html"), "-o no/where.html: expected a folder at"),
        (("{report}", "-o", "x.txt"), "-o x.txt ends in .txt, expected .html"),
        (("{report}", "--profile", "{report}", "--json"), "is no JSON"),
        (("{report}", "--profile", "missing.json", "--json"), "cannot be read (No such file or directory)"),
        (("{build}/manifest.json", "--json"), "is no report of fastvlm"),
        (("{build}", "--json"), "cannot be read (it is no plain file)"),
        (("missing.html", "--json"), "cannot be read (No such file or directory)"),
        (("", "--json"), "it is empty"),
    ],
)
def test_what_cannot_be_is_named(run: Run, typed_report: Path, words: tuple[str, ...], said: str) -> None:
    names = {"report": typed_report, "build": typed_report.parent / "build"}
    result = run("report", *(word.format(**names) for word in words))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("place", ["no/report.html", "build/report.html", "report.md", ""])
def test_a_place_that_cannot_be_is_named_before_any_work(
    run: Run, tiny_build: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.validate", lambda *_, **__: pytest.fail("it began"))
    before = sorted(tiny_build.rglob("*"))
    result = run("validate", tiny_build, "--report", place and tiny_build.parent / place)
    assert result.exit_code == 2
    assert "--report" in result.stderr
    assert sorted(tiny_build.rglob("*")) == before
