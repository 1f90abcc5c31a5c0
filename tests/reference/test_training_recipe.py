"""The whole recipe through the command, every stage for one step of two scenes: the folder it leaves, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from training_rows import train

from fastvlm.hashes import list_tree
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.training import batches, loop, recipe
from fastvlm_ref.training.stages import RECIPE
from fastvlm_ref.training.vocabulary import write_vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the recipe's stages one step each, of two scenes; returns the stages whose steps are really made."""
    short = [replace(stage, steps=1, pictures=2, questions=2, ends_at=None) for stage in RECIPE]
    monkeypatch.setattr(recipe, "RECIPE", tuple(short))
    made, source = [], batches.batches

    def foreground(*given: Any, background: bool) -> Any:
        for parts in source(*given, background=False):
            made.append(given[1].name)
            yield parts

    monkeypatch.setattr(loop, "batches", foreground)
    monkeypatch.setattr(recipe, "write_vocabulary", trained_once())
    return made


def trained_once() -> Callable[[Path], None]:
    """Returns `write_vocabulary`, whose seconds are spent in the first call; later ones write the same files again."""
    files: dict[str, bytes] = {}

    def write(folder: Path) -> None:
        if not files:
            write_vocabulary(folder)
            files.update({file.name: file.read_bytes() for file in folder.iterdir()})
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def test_all_stages_leave_the_folder_and_a_second_call_trains_nothing(
    steps: list[str], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = train("-o", out)
    assert done.exit_code == 0, done.output
    assert steps == ["encoder", "language", "stage1", "stage2", "stage2b", "stage2c"]
    lines = (tmp_path / "out.work" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == steps

    files = list_tree(tiny)
    assert list_tree(out) == files
    for name in files:
        if name != "model.safetensors":
            assert (out / name).read_bytes() == (tiny / name).read_bytes(), name
    assert entries(out) == entries(tiny)
    load_checkpoint(out)

    first = (out / "model.safetensors").read_bytes()
    again = train("-o", out, "--overwrite")
    assert again.exit_code == 0, again.output
    assert len(steps) == len(RECIPE)
    assert (out / "model.safetensors").read_bytes() == first


def entries(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Returns type and shape of every tensor."""
    with safe_open(folder / "model.safetensors", "pt") as weights:  # type: ignore[no-untyped-call]
        slices = {name: weights.get_slice(name) for name in weights.keys()}
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
