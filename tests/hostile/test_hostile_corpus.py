"""The seeds of tests/hostile/corpus: a small file for each failure that was found and each class of attack.

Each folder has one kind of file, and `whole` files that are read; corpus/ends.json says of every seed how it must end:
"reads", or the words of its error. A new seed is put there with its end, and a reader's fuzzer may begin with all of
them. Pictures and safetensors headers lie beside (test_hostile_header.py), with suites of their own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from manifest_attacks import built
from ordeal import Outcome, in_lines, try_all
from package_attacks import package
from package_cases import ran as ran_package
from stand_in import whole as whole_build
from stranger_onnx import NAME
from stranger_onnx import ran as ran_onnx
from stranger_packages import MANIFEST, MODEL, WEIGHTS

from fastvlm_ref.checkpoint import pickled
from fastvlm_ref.checkpoint.pickled import read_pickle
from fastvlm_ref.tokenizer import load_tokenizer

CORPUS = Path(__file__).parent / "corpus"
ENDS: dict[str, dict[str, str]] = json.loads((CORPUS / "ends.json").read_text("utf-8"))
READS = "reads"
MOST = 1_000_000  # bytes of the whole corpus, pictures and headers included


def of_package(part: str, seed: Path, folder: Path) -> None:
    """The seed in the place of one file of a package that is whole; the package is run once."""
    made = package(folder)
    shutil.copy(seed, made / part)
    ran_package(made)


def of_onnx(seed: Path, folder: Path) -> None:
    """A model, with data of its own or those of the whole one; opened, loaded and run."""
    data = seed.with_name(f"{seed.name}.data")
    shutil.copy(seed, folder / NAME)
    shutil.copy(data if data.exists() else seed.with_name("whole.onnx.data"), folder / f"{NAME}.data")
    ran_onnx(folder / NAME)


def of_manifest(seed: Path, folder: Path) -> None:
    made = built(folder)
    shutil.copy(seed, made / "manifest.json")
    whole_build(made)


def of_tokenizer(seed: Path, folder: Path) -> None:
    shutil.copy(seed, folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder, 1000)
    tokenizer.decode(tokenizer.encode("ab aab"))


def of_pickle(seed: Path, folder: Path) -> None:
    """Whatever a pickle of the corpus runs, it leaves a file in the current folder and does nothing else."""
    place = folder / "pickle.bin"
    shutil.copy(seed, place)
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    try:
        read_pickle(place)
    finally:
        assert os.listdir(folder / "here") == [], "it ran"


READERS: dict[str, Callable[[Path, Path], None]] = {
    "package-manifest": partial(of_package, MANIFEST),
    "package-model": partial(of_package, MODEL),
    "package-weights": partial(of_package, WEIGHTS),
    "onnx": of_onnx,
    "manifest": of_manifest,
    "tokenizer": of_tokenizer,
    "pickle": of_pickle,
}


def tried(kind: str, folder: Path, only: str = "") -> list[Outcome]:
    """How every seed of a kind ended."""

    def case(seed: Path) -> Callable[[], None]:
        place = folder / f"{kind} {seed.name}"
        place.mkdir()
        return lambda: READERS[kind](seed, place)

    names = [name for name in ENDS[kind] if only in name]
    return try_all([(name, case(CORPUS / kind / name)) for name in names], seconds=5)


def as_told(kind: str, outcome: Outcome) -> bool:
    """Whether a seed ended as ends.json says."""
    end = ENDS[kind][outcome.name]
    return outcome.kind == "passed" if end == READS else outcome.kind == "named" and end in outcome.detail


@pytest.mark.parametrize("kind", READERS)
def test_every_seed_ends_as_is_told(kind: str, tmp_path: Path) -> None:
    wrong = [outcome for outcome in tried(kind, tmp_path) if not as_told(kind, outcome)]
    assert not wrong, in_lines(wrong)


def test_every_seed_has_its_end() -> None:
    for kind in READERS:
        assert set(ENDS[kind]) == {path.name for path in (CORPUS / kind).iterdir() if path.suffix != ".data"}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST


def test_without_the_checks_of_pickles_a_seed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "_check_ops", lambda _: None)
    monkeypatch.delattr(pickled._Reader, "find_class")
    (outcome,) = tried("pickle", tmp_path, "os-system.pth")
    assert "it ran" in outcome.detail, outcome
