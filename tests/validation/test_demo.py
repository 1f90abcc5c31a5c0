"""`make demo`: what it types, what it shows, and that a miss does not end well. The export is the session's, copied."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastvlm.manifest import read_manifest, write_manifest
from fastvlm_ref.samples import shipped_samples
from validation import demo, validate
from validation.limits import TABLE


@pytest.fixture
def exported(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Makes `fastvlm export` copy the session's build and pass it through a change."""

    def put(change: Callable[[Path], None]) -> None:
        def export(checkpoint: str, output: str, **options: Any) -> Path:
            assert checkpoint == "tiny"
            assert options["overwrite"]
            shutil.copytree(exported_tiny, output)
            change(Path(output))
            return Path(output)

        monkeypatch.setattr("export.export", export)

    return put


def mislead(build: Path) -> None:
    """A stop id that the checkpoint does not have."""
    manifest = read_manifest(build)
    manifest["prompt"]["stop_ids"] = [5]
    write_manifest(build / "manifest.json", manifest)


def test_the_demo_shows_commands_answers_limits_and_paths(
    tmp_path: Path, exported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(lambda _: None)
    folder, sample = tmp_path / "tiny", shipped_samples()[0]
    assert demo.main(str(folder)) == 0
    shown = capsys.readouterr().out
    for words in ("scan tiny", f"export tiny -o {folder}", f"validate {folder}", f"run {folder}"):
        assert f"$ fastvlm {words}" in shown
    stored = json.loads((folder / "validation.json").read_text("utf-8"))
    assert len(stored["answers"]) >= 3
    report = html.unescape(Path(f"{folder}-report.html").read_text("utf-8")).replace("<wbr>", "")
    for row in stored["answers"]:
        assert row["coreml"] in shown
        assert row["coreml"] in report
    for limit in TABLE:
        assert limit.key in shown
        assert limit.key in report
    assert "Passed: every limit holds" in report
    assert "3 pictures, 64 steps each" in report
    answer = next(row["coreml"] for row in stored["answers"] if row["prompt"] == sample.prompt)
    asked = shown[shown.index("$ fastvlm run") :]
    assert answer in asked
    assert f"\nmil: {answer}\n" in asked[asked.index("$ fastvlm verify") :], "the bundle says the same, by another host"
    paths = f"build folder: {folder}\niOS bundle:   {folder}-bundle\nreport:       {folder}-report.html\n"
    assert asked.endswith(paths)


def test_a_missed_limit_ends_the_demo_with_1(
    tmp_path: Path, exported: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(mislead)
    monkeypatch.setattr("validation.validate", partial(validate, steps=1))  # seconds instead of half a minute
    folder = tmp_path / "tiny"
    assert demo.main(str(folder)) == 1
    shown = capsys.readouterr().out
    assert "$ fastvlm run" not in shown, "nothing is asked of a build that was not found good"
    assert "\nreport: " not in shown
    report = Path(f"{folder}-report.html").read_text("utf-8")
    assert "Failed: at least one limit is missed" in report
    assert 'class="missed"' in report


def test_a_failed_export_ends_the_demo_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert demo.main(str(tmp_path / "file" / "tiny")) == 2
    assert "$ fastvlm validate" not in capsys.readouterr().out
