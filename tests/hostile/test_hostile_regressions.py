"""What once hung, crashed or ate the machine, each a case of its own: numbers in names, texts without end, pipes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import CONFIG, WEIGHTS, Files, folder_of, header_of, micro_files, with_header
from messages import check_message
from ordeal import in_lines, tally, try_all
from tensor_changes import tensors_of, write

from export.compression.recipe import parse_recipe
from fastvlm.errors import FastVLMError
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint import fuse, layouts, statements
from fastvlm_ref.checkpoint.lora import _rule
from fastvlm_ref.training.rows import LONGEST_LINE, read_rows

TIMM, TOWER = "model.vision_tower.timm_model.", "model.vision_tower.vision_tower.model."
MANY = 4000
Change = Callable[[Files], Files]


@pytest.fixture(scope="module")
def files() -> Files:
    found = micro_files()
    with folder_of(found) as folder:
        load_checkpoint(folder)
    return found


def with_names(*names: str, **config: Any) -> Change:
    """Adds empty tensors of these names; they cost a stranger nothing."""

    def change(files: Files) -> Files:
        header, data = header_of(files[WEIGHTS])
        empty = {"dtype": "BF16", "shape": [0], "data_offsets": [len(data), len(data)]}
        changed = {**files, WEIGHTS: with_header(header | dict.fromkeys(names, empty), data)}
        return changed | {CONFIG: json.dumps(json.loads(files[CONFIG]) | config).encode()}

    return change


def with_text(name: str, text: str) -> Change:
    return lambda files: {**files, name: text.encode()}


NAMED: dict[str, Change] = {
    "a stage of ten digits": with_names(f"{TIMM}stages.1000000000.blocks.0.x"),
    "a stage of 400 digits": with_names(f"{TIMM}stages.{'1' * 400}.blocks.0.x"),
    "a place of 400 digits": with_names(f"{TOWER}network.{'1' * 400}.0.x"),
    "a block of six digits": with_names(f"{TOWER}network.0.999999.x"),
    "stages by the thousand": with_names(*(f"{TIMM}stages.{n % 100}.blocks.{n}.x" for n in range(MANY))),
    "blocks by the thousand": with_names(*(f"{TOWER}network.0.{n // 8}.{n % 8}" for n in range(MANY))),
    "places by the thousand": with_names(*(f"{TOWER}network.{n // 8}.0.{n % 8}" for n in range(MANY))),
    "layers by the thousand": with_names(*(f"model.layers.{n}.x" for n in range(MANY)), num_hidden_layers=MANY),
    "wrappers one in another": with_names("module." * 70 + "x"),
    "branches by the thousand": with_names(*(f"{TOWER}a{n}.rbr_conv.0.conv.weight" for n in range(MANY))),
    "mixers by the thousand": with_names(
        *(f"{TOWER}a{n}.token_mixer.mixer.rbr_conv.0.conv.weight" for n in range(MANY))
    ),
    "mixers in mixers": with_names(
        *(f"{TOWER}a{n}.token_mixer.mixer.rbr_conv.0.token_mixer.norm.rbr_skip.x" for n in range(9)),
        *(f"{TOWER}a{n}.token_mixer.mixer.rbr_conv.0.conv.weight" for n in range(9)),
    ),
    "names of 500 letters": with_names(*(f"{n}{'x' * 500}" for n in range(MANY))),
}
TAKEN: dict[str, Change] = {
    "a system turn that never ends, again and again": with_text("chat_template.jinja", "<|im_start|>system\n" * 50_000),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_cost_neither_time_nor_memory(name: str, files: Files) -> None:
    with folder_of(NAMED[name](files)) as folder:
        (outcome,) = try_all([(name, lambda: load_checkpoint(folder))], seconds=10.0)
    assert outcome.kind == "named", outcome
    assert len(outcome.detail) <= 600


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_odd_and_no_lie(name: str, files: Files) -> None:
    with folder_of(TAKEN[name](files)) as folder:
        (outcome,) = try_all([(name, lambda: load_checkpoint(folder))], seconds=5.0)
    assert outcome.kind == "passed", outcome


@pytest.mark.parametrize("part", ["convffn.fc1.weight", "convffn.fc2.weight", "convffn.conv.conv.weight"])
def test_a_tower_of_no_channels(part: str, files: Files) -> None:
    header, _ = header_of(files[WEIGHTS])
    header.pop("__metadata__", None)
    tensors = {
        name: (dtype, [0, *shape[1:]] if part.split(".")[1] in name and TOWER in name else shape)
        for name, (dtype, shape) in tensors_of(header).items()
    }
    with folder_of(files) as folder:
        write(folder / WEIGHTS, tensors)
        (outcome,) = try_all([(part, lambda: load_checkpoint(folder))])
    assert outcome.kind == "named", outcome


@pytest.mark.parametrize("name", [WEIGHTS, "another.safetensors"])
def test_a_pipe_does_not_block(name: str, files: Files) -> None:
    with folder_of({key: value for key, value in files.items() if key != WEIGHTS}) as folder:
        os.mkfifo(folder / name)
        (outcome,) = try_all([(name, lambda: load_checkpoint(folder))], seconds=3.0)
    assert outcome.kind == "named", outcome


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": 10**400}, {"lora_alpha": 0},
        {"alpha_pattern": {"q_proj": 10**400}}, {"alpha_pattern": {"q_proj": float("nan")}}, {"r": 10**30},
        {"rank_pattern": {f"m{n}": 4 for n in range(2000)}}, {"rank_pattern": {"(a+)+$": 4}},
        {"peft_type": "x" * 10**6},
    ],
    ids=range(10),
)  # fmt: skip
def test_numbers_of_an_adapter(change: dict[str, Any]) -> None:
    with pytest.raises(FastVLMError) as caught:
        _rule({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | change)
    assert len(str(caught.value)) < 300


RECIPES = {
    "a number of 240,000 bits": "budget:\n  bits: 0x" + "f" * 60_000,
    "a number of 60,000 digits": "language: " + "9" * 60_000,
    "a pattern that is such a number": "layers:\n  ? 0x" + "f" * 60_000 + "\n  : int8",
    "keys by the thousand": "".join(f"k{n}: 1\n" for n in range(7000)),
    "patterns by the thousand": "layers:\n" + "".join(f" l{n}: x\n" for n in range(6000)),
    "a key again and again": "a: 1\n" * 12_000,
    "anchors by the thousand": "a: &a [1]\n" * 6000,
    "lists without end": "[" * 60_000,
    "a key of megabytes": "? " + "k" * 60_000 + "\n: 1",
    "no date": "language: 2001-99-99",
    "not a number": "language: mixed\nbudget: {bits: .nan}",
    "escapes": 'language: "\\e[2J"',
}


def refused_recipe(text: str) -> None:
    try:
        parse_recipe(text)
    except FastVLMError as error:
        check_message(str(error))
        raise
    raise AssertionError("it was taken")


def test_recipes_cost_neither_time_nor_memory() -> None:
    outcomes = try_all([(name, lambda text=text: refused_recipe(text)) for name, text in RECIPES.items()], seconds=5.0)
    bad = tally("hostile recipes", outcomes)
    assert bad == [], in_lines(bad)


RECIPE_REDS: dict[str, tuple[str, Any, str]] = {
    "problems listed": ("export.compression.recipe_text.MOST_LISTED", 10**9, "keys by the thousand"),
    "a quotation": ("export.compression.recipe.short", repr, "a pattern that is such a number"),
    "anchors": ("export.compression.recipe_text._refused", lambda _: [], "lists without end"),
}


@pytest.mark.parametrize("red", RECIPE_REDS)
def test_without_its_limit_a_recipe_is_red(red: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, instead, recipe = RECIPE_REDS[red]
    monkeypatch.setattr(place, instead)
    (outcome,) = try_all([(recipe, lambda: refused_recipe(RECIPES[recipe]))])
    assert not outcome.held, outcome


ROWS = {
    "half a character": '{"image": "a.png", "prompt": "\\ud800", "answer": "x"}',
    "NaN": '{"image": "a.png", "prompt": "x", "answer": "x", "zzz": NaN}',
    "a name of 5,000 letters": json.dumps({"image": "a" * 5000, "prompt": "x", "answer": "x"}),
    "a name with a zero": json.dumps({"image": "a\0b", "prompt": "x", "answer": "x"}),
    "a line of megabytes": "x" * (LONGEST_LINE + 1),
    "nesting without end": "[" * 500_000,
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_stranger(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS[name])
    with pytest.raises(FastVLMError) as caught:
        read_rows(file)
    check_message(str(caught.value))


def test_without_their_limits_they_hang_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    any_stage = layouts.re.compile(r"stages\.(\d+)\.(downsample|pos_emb|blocks)\.")
    monkeypatch.setattr(layouts, "TIMM_STAGE", any_stage)
    monkeypatch.setattr(statements, "_system_texts", _again_and_again)
    for changes, name in ((NAMED, "a stage of ten digits"), (TAKEN, "a system turn that never ends, again and again")):
        with folder_of(changes[name](files)) as folder:
            (outcome,) = try_all([(name, lambda folder=folder: load_checkpoint(folder))], seconds=2.0)
        assert not outcome.held, outcome


def _again_and_again(template: str) -> Any:
    found = r"(['\"]?)<\|im_start\|>system(?:\\n|\n)(.+?)<\|im_end\|>"
    return ((turn[1], turn[2]) for turn in statements.re.finditer(found, template, statements.re.DOTALL))


def test_a_kernel_that_is_not_square_is_no_branch() -> None:
    blocks = fuse._Blocks({})
    small, large = (fuse.Convolution(shape, lambda: None) for shape in ((4, 1, 1, 3), (4, 1, 3, 3)))  # type: ignore[arg-type, return-value]
    assert blocks.total("it", large.shape, [large, small]) is None
    assert blocks.problems == ["misshapen branch of it: [4, 1, 1, 3] does not fit into [4, 1, 3, 3]"]
