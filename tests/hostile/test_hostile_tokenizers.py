"""A stranger's tokenizer.json, and template, is read as it is meant or refused by name; the library never decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_prompts import llama
from hostile_tokenizers import NASTY, lies, mutated, named, told
from hypothesis import given, settings
from hypothesis import strategies as st
from ordeal import in_lines, size, tally, try_all

from fastvlm.errors import TokenizerError, UsageError
from fastvlm.tokenizer_json import checked
from fastvlm_ref import tokenizer as reference
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import QWEN_2, encode_prompt, prompt_from_record, prompt_record, template_option
from fastvlm_ref.tokenizer import load_tokenizer

VALUES = st.recursive(
    st.sampled_from(NASTY) | st.text(max_size=9) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def whole(tiny: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def wholes(whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = llama(tmp_path_factory.mktemp("llama") / "made")
    return [whole, json.loads((folder / "tokenizer.json").read_text("utf-8"))]


def test_named_lies(whole: dict[str, Any], tmp_path: Path) -> None:
    outcomes = try_all(named(tmp_path, whole))
    bad = [outcome for outcome in outcomes if not outcome.held]
    assert not bad, in_lines(bad)
    refused = {name for name, (_, words) in lies(whole).items() if words is not None}
    assert {outcome.name for outcome in outcomes if outcome.kind == "named"} == refused


def test_changed_tokenizers(wholes: list[dict[str, Any]], tmp_path: Path) -> None:
    outcomes = try_all(mutated(tmp_path, wholes, size(300, 10_000)))
    bad = tally("tokenizer.json: random changes of two", outcomes)
    assert not bad, in_lines(bad)
    assert {outcome.kind for outcome in outcomes} == {"passed", "named"}


def test_without_the_check_the_library_ends_the_process(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "read_tokenizer", lambda path, _: (path.read_text("utf-8"), ()))
    wanted = ("padding of 10^12", "a megabyte for each a", "an end that is not there", "200,000 added tokens")
    outcomes = try_all([case for case in named(tmp_path, whole) if case[0] in wanted], seconds=5)
    assert [outcome.held for outcome in outcomes] == [False] * len(wanted)


def test_what_is_dropped_is_said_and_not_in_the_build(whole: dict[str, Any], tmp_path: Path) -> None:
    made = {**whole, "truncation": {"max_length": 4}, "padding": {"strategy": {"Fixed": 9}}}
    made["model"] = {**whole["model"], "dropout": 0.5}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    tokenizer = load_tokenizer(tmp_path, 1000)
    assert [note.split(":")[0] for note in tokenizer.assumed] == [
        f"tokenizer.json asks for {name}" for name in ("truncation", "padding", "dropout")
    ]
    assert len({tuple(tokenizer.encode("the quick brown fox")) for _ in range(9)}) == 1
    tokenizer.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text("utf-8"))
    assert (saved["truncation"], saved["padding"], saved["model"]["dropout"]) == (None, None, None)
    assert load_tokenizer(tmp_path / "saved", 1000).assumed == ()


def test_many_merges_are_refused_by_their_count(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((tiny / "vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_text("a b\n" * 1_000_001)
    with pytest.raises(TokenizerError, match="over 1,000,000 lines"):
        load_tokenizer(tmp_path, 1000)


def test_many_added_tokens_are_refused_by_their_count(tiny: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({f"<{at}>": 556 + at for at in range(200_000)}))
    with pytest.raises(TokenizerError, match="over 16,384 added tokens"):
        load_tokenizer(tmp_path, 2**20)


# Fuzzing: what reads a stranger's words before anything else does


@settings(max_examples=size(100, 2_000))
@given(
    key=st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens"]),
    value=VALUES,
)
def test_the_check_of_tokenizer_json_names_all_it_refuses(key: str, value: object) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    assert len(told(lambda: checked(json.dumps({"model": model, key: value})), (ValueError,))[1]) < 600


@settings(max_examples=size(100, 2_000))
@given(st.text(max_size=60) | VALUES.map(json.dumps))
def test_any_text_is_checked(text: str) -> None:
    assert len(told(lambda: checked(text), (ValueError, RecursionError))[1]) < 600


TEMPLATES = st.fixed_dictionaries(
    {}, optional={
        key: VALUES | st.sampled_from(["{prompt}", "<|im_end|>", "{system}{prompt}", ["<|im_end|>"], ["{prompt}"], []])
        for key in ("name", "before", "after", "system", "system_turn", "controls", "stops", "needs_bos", "else")
    },
)  # fmt: skip


@settings(max_examples=size(100, 2_000))
@given(TEMPLATES, st.text(max_size=20))
def test_any_template_works_or_is_named(tiny_words: Any, template: dict[str, Any], text: str) -> None:
    whole = prompt_record(PromptConfig())
    option, said = told(
        lambda: template_option(json.dumps({"name": "x", "before": "", "after": "{prompt}"} | template))
    )
    assert len(said) < 1500
    if option is not None:
        ids, said = told(lambda: encode_prompt(tiny_words, f"{text}?", PromptConfig(option)))
        assert ids is None or all(type(id_) is int for id_ in ids[0] + ids[1])
        assert len(said) < 1500
    changed = whole | template | {"stop_ids": template.get("stops", []), "image_token_id": text}
    assert len(told(lambda: prompt_from_record(changed))[1]) < 1500


@pytest.fixture(scope="module")
def tiny_words(tiny: Path) -> Any:
    return load_tokenizer(tiny, 1000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"controls": ["<|im_end|>"] * 65}, "over 64 texts"),
        ({"stops": ["x"] * 65}, "over 64 texts"),
        ({"before": "{system}" * 9}, "over 8 times"),
        ({"before": "x" * 70_000}, "over 65536 characters"),
        ({"after": "{prompt}", "controls": ["{prompt}"]}, "holds a placeholder"),
    ],
)
def test_templates_that_would_take_long(change: dict[str, Any], words: str) -> None:
    record = prompt_record(PromptConfig()) | change
    with pytest.raises(UsageError, match=words):
        prompt_from_record(record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_token_id": "x"}, "image_token_id is 'x'"),
        ({"image_token_id": True}, "image_token_id is True"),
        ({"stop_ids": [1, "2"]}, "stop_ids are"),
        ({"stop_ids": 3}, "stop_ids are 3"),
        ({"system": 3}, "system text is 3"),
    ],
)
def test_a_manifest_s_prompt_of_the_wrong_kinds_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prompt_from_record(prompt_record(PromptConfig()) | change)


def test_text_that_is_the_image_s_own_id_is_refused(tiny_words: Any) -> None:
    """A config that names a letter as the image's mark: no text may then stand for a picture."""
    (letter,) = tiny_words.encode("q")
    prompt = PromptConfig(QWEN_2.name, image_token_id=letter)
    with pytest.raises(TokenizerError, match=f"text became id {letter}, which marks the image"):
        encode_prompt(tiny_words, "q", prompt)
