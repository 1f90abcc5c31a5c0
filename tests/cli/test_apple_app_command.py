"""What a user types and reads on the way to Apple's sample app, and what the other commands make of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typed import Run

PACKAGE = "fastvithd.mlpackage"


def test_export_ends_with_what_to_do(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "for apple"
    result = run("export", "tiny", "-o", out, "--for", "apple-app")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"build folder: {out}\n"
    assert sorted(path.name for path in out.iterdir() if path.name != "licence") == [PACKAGE, "manifest.json"]
    lines = result.stderr.splitlines()
    assert lines[-1] == f"next: fastvlm validate '{out}'"
    told = "\n".join(lines)
    for words in (
        "note: Apple's app as it is stops at this encoder",
        "app/get_pretrained_mlx_model.sh --model 0.5b --dest app/FastVLM/model",
        "--only-llm",
        f"cp -R '{out / PACKAGE}' app/FastVLM/model/",
        "docs/apple-app.md",
    ):
        assert words in told


def test_validate_proves_it_and_names_where_it_goes(run: Run, app_build: Path) -> None:
    result = run("validate", app_build)
    assert result.exit_code == 0, result.output
    assert f"verdict: passed, 3 pictures ({app_build}/validation.json)" in result.stdout
    assert result.stderr.splitlines()[-1].startswith(f"next: cp -R {app_build / PACKAGE} app/FastVLM/model/")


def test_run_says_what_it_is(run: Run, exported_app: Path, picture: Path) -> None:
    result = run("run", exported_app, picture, "What?")
    assert result.exit_code == 2
    assert f"Error: {exported_app} is a vision encoder for Apple's sample app, without" in result.stderr


def test_inspect_and_lint_read_it(run: Run, exported_app: Path) -> None:
    shown = run("inspect", exported_app)
    assert shown.exit_code == 0
    for words in ("made for     apple-app", f"{PACKAGE}: iOS 16, macOS 13 and later, default function main", "CoreML6"):
        assert words in shown.stdout
    report = run("lint", exported_app, "--json", "--min-resident", "99")
    assert report.exit_code == 0, report.output
    (package,) = json.loads(report.stdout)["packages"]
    assert package["name"] == PACKAGE


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--for", "android"), "'android' is not 'apple-app'"),
        (("--for", "apple-app", "--only", "encoder", "--context", "2048"), "leave out --only, --context"),
        (("--for", "apple-app", "--target", "gpu", "--quantize", "int4"), "leave out --target gpu, --quantize int4"),
        (("--for", "apple-app", "--image-size", "512"), "--image-size is 512"),
    ],
)
def test_what_does_not_go_with_it(run: Run, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = run("export", tmp_path / "no such checkpoint", "-o", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "out").exists()
