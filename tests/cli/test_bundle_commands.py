"""`fastvlm bundle` and `fastvlm verify` as they are typed: exit codes, one line for each error, the next command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typed import Run


def test_a_validated_build_becomes_a_bundle_that_verifies(validated_tiny: Path, tmp_path: Path, run: Run) -> None:
    made = run("bundle", validated_tiny, "-o", tmp_path / "tiny-256")
    assert made.exit_code == 0, made.output
    tree = made.stdout.split()[-1]
    assert f"next: fastvlm verify {tmp_path / 'tiny-256'}" in made.stderr
    found = run("verify", tmp_path / "tiny-256", "--tree", tree[:12])
    assert found.exit_code == 0
    assert f"tree hash: {tree}" in found.stdout
    assert "UNVALIDATED" not in found.stdout


def test_a_damaged_bundle_is_exit_1_and_names_the_file(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "prompts.json").write_text("{}")
    (copy / ".DS_Store").write_text("Finder")
    found = run("verify", copy)
    assert found.exit_code == 1
    assert "prompts.json: " in found.stdout
    assert ".DS_Store: macOS put it there; delete it" in found.stdout
    assert "2 problems" in found.stderr
    told = json.loads(run("verify", copy, "--json").stdout)
    assert (told["whole"], len(told["problems"])) == (False, 2)


def test_another_bundle_is_told_by_its_tree_hash(tiny_bundle: Path, run: Run) -> None:
    found = run("verify", tiny_bundle, "--tree", "0" * 64)
    assert found.exit_code == 1
    assert "it is another bundle" in found.stdout


@pytest.mark.parametrize("tree", ["", "xyz", "12", "g" * 64, "0" * 65])
def test_what_is_no_tree_hash_is_wrong_usage(tree: str, tiny_bundle: Path, run: Run) -> None:
    """An empty or short one, from a variable that was never set, would fit any bundle."""
    found = run("verify", tiny_bundle, "--tree", tree)
    assert found.exit_code == 2
    assert "--tree" in found.stderr


def test_an_unvalidated_build_is_refused_and_then_says_so(exported_tiny: Path, tmp_path: Path, run: Run) -> None:
    refused = run("bundle", exported_tiny, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "it was never validated" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert run("bundle", exported_tiny, "-o", tmp_path / "out", "--unvalidated").exit_code == 0
    found = run("verify", tmp_path / "out")
    assert found.exit_code == 0
    assert "UNVALIDATED" in found.stdout


def test_an_encoder_for_apples_app_is_no_bundle(app_build: Path, tmp_path: Path, run: Run) -> None:
    refused = run("bundle", app_build, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "Apple's sample app" in refused.stderr


def test_compiled_models_are_told_and_can_be_left_out(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    for package in list(copy.glob("models/*.mlpackage")):
        shutil.rmtree(package)
        package.with_suffix(".mlmodelc").mkdir()
        (package.with_suffix(".mlmodelc") / "coremldata.bin").write_bytes(b"compiled")
    found = run("verify", copy)
    assert found.exit_code == 1
    assert "with --compiled everything else is checked" in found.stdout
    assert run("verify", copy, "--compiled").exit_code == 0
    assert run("verify", copy, "--compiled", "--run").exit_code == 2


@pytest.mark.parametrize("command", ["inspect", "lint", "validate", "bundle"])
def test_a_bundle_in_place_of_a_build_is_told(command: str, tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    words = ("-o", tmp_path / "out") if command == "bundle" else ()
    found = run(command, tiny_bundle, *words)
    assert found.exit_code == 2
    assert "is an iOS bundle and no build folder" in found.stderr


def test_running_an_unvalidated_bundle_says_so(exported_tiny: Path, tmp_path: Path, run: Run, root: Path) -> None:
    run("bundle", exported_tiny, "-o", tmp_path / "out", "--unvalidated")
    photo = root / "fastvlm_ref/tiny/pictures/number.png"
    found = run("run", tmp_path / "out", photo, "Which number do you see?")
    assert (found.exit_code, found.stdout.strip()) == (0, "94")
    assert "note: " in found.stderr
    assert "unvalidated" in found.stderr
    assert "first piece after" in found.stderr
    assert found.stderr.rstrip().endswith(f"next: fastvlm verify {tmp_path / 'out'}"), "it has no self-test to run"


@pytest.mark.parametrize("words", [("bundle", "", "-o", "x"), ("bundle", "nowhere", "-o", "x"), ("verify", "nowhere")])
def test_what_is_not_there_is_named(
    words: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(*words)
    assert found.exit_code == 2
    assert found.stderr.startswith("Error: ")
    assert not list(tmp_path.iterdir())
