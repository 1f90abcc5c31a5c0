"""`--quantize`, `--calibration` and `--max-file-size`: what cannot be is told at once, before anything is fetched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typed import Run

from fastvlm.errors import UsageError
from fastvlm.hashes import hash_tree

Refused = Callable[..., None]
ALIASES = "language: &a lut4\nencoder: *a\n"


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Refused:
    """Types an export that must be refused with one line, nothing left behind."""

    def check(checkpoint: object, *words: object, says: str) -> None:
        before = hash_tree(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}
        result = run("export", checkpoint, "-o", tmp_path / "parent" / "out", *words)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, lines
        assert lines[0].startswith("Error: ")
        assert says in lines[0]
        assert (result.exit_code, result.stdout) == (2, "")
        assert (hash_tree(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}) == before

    return check


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe's file."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--quantize", "nosuch"), "'nosuch' is no scheme and no file; known: int8, int4, lut6, lut4, mixed"),
        (("--quantize", "missing.yaml"), "recipe missing.yaml: no such file; expected a YAML file"),
        (("--quantize", ""), "it is empty, expected a name"),
        (("--quantize", "int4"), "language: int4 blocks run on gpu only"),
        (("--quantize", "int4", "--target", "ane"), "use --target gpu, or lut6 or int8 on ane"),
        (("--quantize", "int8", "--target", "x"), "'x' is not one of 'ane', 'gpu'"),
        (("--calibration", "missing"), "--calibration missing is not a folder"),
        (("--max-file-size", "large"), "'large' is no size, expected a number with B, kB, MB, GB or GiB"),
        (("--max-file-size", "0.5B"), "--max-file-size is 0, expected a positive number of bytes"),
        (("--max-file-size", "-1"), "is no size"),
        (("--quantize", "nosuch", "--context", "100"), "--context is 100, expected a multiple"),
    ],
)
def test_what_needs_no_checkpoint_is_told_before_it_is_looked_for(
    refused: Refused, words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id would be fetched, and the network refused; all problems are told at once."""
    monkeypatch.setattr("export.api.on_disk", lambda *_: pytest.fail("something was fetched"))
    refused("owner/name", *words, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("language: lut5", "language: 'lut5' is none of"),
        (ALIASES, "line 1: anchors and aliases (& and *) are not taken"),
        ("language: mixed\nbudget: {bits: 2}", "budget: bits is 2, expected a number from 4 to 16"),
        ("language: mixed\nbudget: {bits: 5, snr_db: 20}", "expected one of bits and snr_db"),
        ("language: lut4\nbudget: {bits: 5}", "budget: needs `language: mixed`"),
        ("layers: {language.lm_head: int4}", "layers: language.lm_head: int4 blocks run on gpu only"),
        ("#" * 5_000_000, "larger than 65,536 bytes"),
        ("language: [", "recipe.yaml: line 1"),
    ],
    ids=["scheme", "aliases", "budget", "two budgets", "no mixed", "target", "5 MB", "no YAML"],
)
def test_a_bad_recipe_is_told_before_a_checkpoint_is_looked_for(
    refused: Refused, recipe: Callable[[str], Path], text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.api.on_disk", lambda *_: pytest.fail("something was fetched"))
    refused("owner/name", "--quantize", recipe(text), says=says)


@pytest.mark.parametrize("asked", [{"quantize": "nosuch"}, {"quantize": "int4"}, {"calibration": "missing"}])
def test_the_library_refuses_as_early(asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import export

    monkeypatch.setattr("export.api.on_disk", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(UsageError):
        export("owner/name", tmp_path / "out", **asked)
    assert list(tmp_path.iterdir()) == []


def test_folders_without_pictures(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    says = "pictures holds no picture; known endings are"
    refused("owner/name", "--quantize", "lut4", "--calibration", tmp_path / "pictures", says=says)
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    refused("owner/name", "--quantize", "lut4", "--calibration", tmp_path / "pictures", says=says)
    (tmp_path / "pictures" / "no.png").write_bytes(b"no picture")
    refused("tiny", "--quantize", "lut4", "--calibration", tmp_path / "pictures", says="no.png")


def test_torch_is_not_loaded_for_that(root: Path, tmp_path: Path) -> None:
    statement = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'coremltools' in sys.modules))\n"
        "from fastvlm.cli import cli\n"
        f"cli.main(['export', 'owner/name', '-o', {str(tmp_path / 'out')!r}, '--quantize', 'nosuch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", statement], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "False False\n"
    assert done.stderr.startswith("Error: 'nosuch' is no scheme")


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        ("layers: {language.layers.99.*: int8}", (), "'language.layers.99.*' fits no layer; there are language."),
        ("layers: {encoder.nosuch: int8}", (), "'encoder.nosuch' fits no layer; there are encoder."),
        ("layers: {embeddings.weight: int8}", (), "is no layer; write `embeddings: int8` on a line of its own"),
        ("language: int8", ("--max-file-size", "10kB"), "--max-file-size is 10,000 bytes, and one decoder layer takes"),
        ("language: mixed\nbudget: {snr_db: 60}", (), "the quality budget is snr_db 60; this model reaches"),
        pytest.param(  # as the row before, once it is measured
            "language: mixed\nbudget: {bits: 4.0}", (),
            "the size budget is 4 bits a weight, tables included; this model",
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_what_the_checkpoint_cannot_have(
    refused: Refused, recipe: Callable[[str], Path], text: str, words: tuple[str, ...], says: str
) -> None:
    refused("tiny", "--quantize", recipe(text), *words, says=says)
