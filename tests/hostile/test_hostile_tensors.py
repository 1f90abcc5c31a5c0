"""One tensor that is not what the model needs is named, whichever it is and whatever is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from checkpoint_files import WEIGHTS, Files, files_of, folder_of, header_of, micro_files
from ordeal import LONG, Case, in_lines, tally, try_all
from tensor_changes import KINDS, Tensors, changes, tensors_of, write

from fastvlm.errors import CheckpointError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import load
from fastvlm_ref.checkpoint.layouts import own_names


def judged(folder: Path, tensors: Tensors, name: str, ours: str) -> None:
    write(folder / WEIGHTS, tensors)
    try:
        load_checkpoint(folder)
    except CheckpointError as error:
        said = str(error)
        assert name in said or ours in said, f"{name} is not in {said[:400]}"
        raise
    raise AssertionError("it was taken")


def cases(folder: Path, tensors: Tensors) -> tuple[list[Case], Counter[str]]:
    """Returns the cases, and of each kind how many changes cannot be told."""

    names = own_names(list(tensors))  # timm's stages are counted, so all of them at once

    def case(changed: Tensors, name: str) -> Callable[[], object]:
        return lambda: judged(folder, changed, name, names[name])

    found, untold = [], Counter[str]()
    for kind, name, changed in changes(tensors):
        if changed is None:
            untold[kind] += 1
        else:
            found.append((f"{name} {kind}", case(changed, name)))
    return found, untold


def described(files: Files) -> tuple[Files, Tensors]:
    header, _ = header_of(files[WEIGHTS])
    header.pop("__metadata__", None)
    return {name: content for name, content in files.items() if name != WEIGHTS}, tensors_of(header)


@pytest.fixture(scope="module")
def embedded(tiny: Path) -> Iterator[tuple[Path, Tensors]]:
    beside, tensors = described(files_of(tiny))
    with folder_of(beside) as folder:
        write(folder / WEIGHTS, tensors)
        load_checkpoint(folder)  # unchanged it is taken, all zeros as it is
        yield folder, tensors


def test_every_tensor_of_the_embedded_checkpoint(
    embedded: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = embedded
    monkeypatch.setattr(load, "FastVLM", lru_cache(load.FastVLM))  # without memory, and nothing is ever filled in
    tried, untold = cases(folder, tensors)
    assert len(tried) + sum(untold.values()) == len(tensors) * len(KINDS)
    print(f"{len(tensors)} tensors, {len(tried)} changes, that cannot be told: {dict(untold)}")
    outcomes = try_all(tried)
    row = "each tensor transposed, ±1, dropped, renamed, retyped"
    bad = tally(row, outcomes, tensors=len(tensors), untold=sum(untold.values()))
    assert bad == [], in_lines(bad)
    assert {outcome.kind for outcome in outcomes} == {"named"}


@pytest.mark.skipif(not LONG, reason="make torture")
@pytest.mark.parametrize("layout", ["hf", "mlx"])
def test_every_tensor_of_the_other_layouts(layout: str) -> None:
    beside, tensors = described(micro_files(layout))
    with folder_of(beside) as folder:
        tried, _ = cases(folder, tensors)
        if layout == "mlx":  # its vectors of three axes are the same bytes in either order, and are taken in both
            tried = [case for case in tried if not ("layer_scale" in case[0] and case[0].endswith("transposed"))]
        bad = tally(f"each tensor changed, {layout}", try_all(tried))
        assert bad == [], in_lines(bad)


SOME = ("model.norm.weight", "model.vision_tower.vision_tower.model.network.0.0.convffn.fc1.weight", "lm_head.weight")


def test_without_the_comparison_a_change_passes(
    embedded: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = embedded
    some = [case for case in cases(folder, tensors)[0] if case[0].startswith(SOME)]
    assert all(outcome.held for outcome in try_all(some))
    monkeypatch.setattr(load, "check_tensors", lambda *_: None)
    assert sum(not outcome.held for outcome in try_all(some)) >= len(some) // 2


def test_an_error_that_does_not_say_which_is_seen(
    embedded: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vague(*_: object) -> None:
        raise CheckpointError("something does not fit")

    folder, tensors = embedded
    some = [case for case in cases(folder, tensors)[0] if case[0] == "model.norm.weight one more"]
    monkeypatch.setattr(load, "check_tensors", vague)
    (outcome,) = try_all(some)
    assert "model.norm.weight is not in" in outcome.detail
