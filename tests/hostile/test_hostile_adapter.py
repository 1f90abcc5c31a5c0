"""An adapter that was damaged anywhere, its pickle included, is refused by name or changes only what it is for."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_files import Files, folder_of, micro_files
from checkpoint_mutations import in_bytes, in_text, in_weights
from messages import check_message
from ordeal import Case, in_lines, size, tally, try_all
from safetensors.torch import save

from fastvlm.errors import FastVLMError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import pickled

QUERY = "model.layers.0.self_attn.q_proj"
TRAINED = {"decoder.layers.0.self_attn.q_proj.weight", "projector.2.bias", "projector.0.bias"}
PICKLE = "non_lora_trainables.bin"


def adapter_files() -> Files:
    drawn = torch.Generator().manual_seed(5)
    factors = {
        f"base_model.model.{QUERY}.lora_A.weight": torch.randn(4, 32, generator=drawn),
        f"base_model.model.{QUERY}.lora_B.weight": torch.randn(32, 4, generator=drawn),
    }
    beside = io.BytesIO()
    torch.save({f"model.mm_projector.{place}.bias": torch.randn(32, generator=drawn) for place in (0, 2)}, beside)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 4}}
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(factors),
        PICKLE: beside.getvalue(),
    }


def changed(number: int, good: Files) -> tuple[str, Files]:
    """Returns the mutation of this number by name; every second one is of the pickle."""
    drawn = random.Random(f"adapter {number}")
    target = drawn.choice([*good, PICKLE])
    content = good[target]
    if drawn.random() < 0.15:
        content, said = content[: drawn.randrange(len(content))], "cut"
    else:
        way = in_weights if target.endswith(".safetensors") else in_text if target.endswith(".json") else in_bytes
        content, said = way(drawn, content)
    return f"{number}: {target} {said}", {**good, target: content}


def cases(numbers: range, good: Files, base: Path) -> list[Case]:
    before = load_checkpoint(base).state_dict()

    def judged(number: int) -> None:
        with folder_of(changed(number, good)[1]) as folder:
            try:
                after = load_checkpoint(folder, base=base, allow_pickle=True).state_dict()
            except FastVLMError as error:
                check_message(str(error), 1000)
                raise
        touched = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert touched <= TRAINED, sorted(touched)

    def case(number: int) -> Callable[[], object]:
        return lambda: judged(number)

    return [(changed(number, good)[0], case(number)) for number in numbers]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with folder_of(micro_files()) as folder:
        yield folder


def test_a_damaged_adapter_is_named_or_changes_what_it_is_for(base: Path) -> None:
    good = adapter_files()
    with folder_of(good) as folder:
        load_checkpoint(folder, base=base, allow_pickle=True)
    outcomes = try_all(cases(range(size(200, 4000)), good, base))
    loaded = sum(outcome.kind == "passed" for outcome in outcomes)
    bad = tally("mutated adapters", outcomes, loaded=loaded)
    assert bad == [], in_lines(bad)
    assert 0 < loaded < len(outcomes) // 2


def test_without_its_handling_damage_is_seen(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch alone answers damage with errors of its own."""

    def bare(file: Path) -> dict[str, object]:
        held = torch.load(file, weights_only=True)
        return {name: pickled._lazy(value, file.name) for name, value in held.items()}

    monkeypatch.setattr("fastvlm_ref.checkpoint.lora.read_pickle", bare)
    assert not all(outcome.held for outcome in try_all(cases(range(20), adapter_files(), base)))
