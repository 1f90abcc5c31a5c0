"""A checkpoint that was damaged anywhere is refused by name, or it loads as what its bytes now say.

What loads is held to a second reader: every tensor is, bit for bit, what the safetensors library finds in the changed
files under the names that the good ones use; and where weights alone were changed, everything else is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Files, files_of, folder_of, micro_files
from checkpoint_mutations import Mutation, mutation
from messages import check_message
from ordeal import Case, in_lines, size, tally, try_all
from safetensors.torch import load as load_tensors
from torch import Tensor

from fastvlm.errors import FastVLMError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import header, load, tensors
from fastvlm_ref.checkpoint.layouts import own_names, unused
from fastvlm_ref.config import FastVLMConfig

LONGEST = 20_000  # characters of an error: sixty tensors with shapes


def stored(files: Files) -> dict[str, Tensor]:
    """Returns the tensors of the files as the library reads them."""
    found: dict[str, Tensor] = {}
    for name, content in files.items():
        if name.endswith(".safetensors"):
            found |= load_tensors(content)
    return found


def judged(changed: Mutation, good: Files, known: dict[str, Any]) -> None:
    with folder_of(changed.files) as folder:
        try:
            model = load_checkpoint(folder)
        except FastVLMError as error:
            check_message(str(error), LONGEST)
            raise
    theirs = stored(changed.files)
    ours = model.state_dict()
    names = own_names(list(stored(good)))
    for name, mine in names.items():
        if mine in ours and name in theirs and not unused(mine):
            value, wanted = ours[mine], theirs[name].float()
            if changed.layout == "mlx" and "vision_tower" in name:
                wanted = wanted.permute(0, 3, 1, 2) if wanted.ndim == 4 else wanted.reshape(value.shape)
            assert torch.equal(value.view(torch.int32), wanted.contiguous().view(torch.int32)), name
        elif mine in ours and not unused(mine):
            assert mine == "decoder.lm_head.weight", f"{name} was taken from nowhere"
    if changed.target.endswith(".safetensors"):
        assert without_tie(model.config) == without_tie(known[changed.layout])


def without_tie(config: FastVLMConfig) -> FastVLMConfig:
    """A flipped bit of a tied head makes it one of its own, which is what the bytes say, and is told."""
    return replace(config, text=replace(config.text, tied_head=True), assumed=())


def cases(numbers: range, layouts: dict[str, Files], known: dict[str, Any], only: str = "") -> list[Case]:
    def case(number: int) -> Callable[[], object]:
        return lambda: judged(mutation(number, layouts), layouts[mutation(number, layouts).layout], known)

    named = ((number, mutation(number, layouts).name) for number in numbers)
    return [(name, case(number)) for number, name in named if only in name]


@pytest.fixture(scope="module")
def layouts(tiny: Path) -> dict[str, Files]:
    return {
        "llava": micro_files(), "shards": micro_files(shards=2), "hf": micro_files("hf"), "mlx": micro_files("mlx"),
        "f32": micro_files(dtype="F32"), "tiny": files_of(tiny),
    }  # fmt: skip


@pytest.fixture(scope="module")
def known(layouts: dict[str, Files]) -> dict[str, Any]:
    """The configuration of each as it is, by layout."""
    found = {}
    for layout, files in layouts.items():
        with folder_of(files) as folder:
            found[layout] = load_checkpoint(folder).config
    return found


def test_damage_is_named_or_loads_as_it_reads(layouts: dict[str, Files], known: dict[str, Any]) -> None:
    count = size(1000, 20_000)
    outcomes = try_all(cases(range(count), layouts, known))
    loaded = sum(outcome.kind == "passed" for outcome in outcomes)
    bad = tally("mutated or cut checkpoints", outcomes, loaded=loaded)
    assert bad == [], in_lines(bad)
    assert count // 20 < loaded < count // 2  # or the mutations no longer reach what they are for


REDS: dict[str, tuple[Any, str, Any, str]] = {
    "layout": (header, "_check_layout", lambda *_: None, "something behind it"),
    "comparison": (load, "check_tensors", lambda *_: None, "header"),
    "JSON": (header, "_parse", lambda path, raw: __import__("json").loads(raw), "header"),
    "values": (tensors.TensorFile, "_read", lambda self, entry: torch.zeros(entry.shape), "data"),
}


@pytest.mark.parametrize("red", REDS)
def test_without_its_check_damage_is_seen(
    red: str, layouts: dict[str, Files], known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, instead, only = REDS[red]
    some = cases(range(150), {"llava": layouts["llava"]}, known, only)
    assert all(outcome.held for outcome in try_all(some))
    monkeypatch.setattr(owner, name, instead)
    assert not all(outcome.held for outcome in try_all(some))
