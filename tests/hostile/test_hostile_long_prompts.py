"""The longest prompt through tokenizers that make most of it: worked on in seconds, or refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_prompts import llama
from ordeal import LONG, in_lines, tally, try_all
from tokenizer_costs import BLANKS, BYTES, DIGITS, MARKS, costly, host, reference, row, split, written
from tokenizers import Tokenizer

from fastvlm.errors import BundleError, PromptError, TokenizerError
from fastvlm.tokenizer_json import MAX_TEXT_BYTES, growth_of
from fastvlm.tokenizer_room import MAX_GROWN_BYTES, Room
from fastvlm.tokenizer_steps import SHORT
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import load_tokenizer
from validation.bundle_host.bundle import Bundle
from validation.bundle_host.prompt import Prompt


def test_the_longest_prompt_costs_seconds_whatever_the_steps(tmp_path: Path) -> None:
    outcomes = try_all(costly(tmp_path, (reference, host) if LONG else (reference,)))
    bad = tally("tokenizer.json: the longest prompt by its costliest steps", outcomes)
    assert not bad, in_lines(bad)
    assert {outcome.kind for outcome in outcomes if ", grown, 262,144 of" in outcome.name} == {"named"}
    worked = [outcome.name for outcome in outcomes if outcome.kind == "passed"]
    assert any(name.startswith("8 splits, grown, 16,383 of") for name in worked)
    assert sum(" 262,144 of" in name or " 131,072 of" in name for name in worked) >= 6


def test_without_the_bound_the_row_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("take_text", "take_normal"):
        monkeypatch.setattr(Room, check, lambda *_: None)
    cases = [case for case in costly(tmp_path) if case[0].startswith("digits, grown, 262,144 of")]
    assert len(cases) == 2
    assert not any(outcome.held for outcome in try_all(cases, seconds=5))


@pytest.mark.parametrize("run", [reference, host])
@pytest.mark.parametrize(("normalizer", "splitter"), [
    (None, BLANKS), (None, BYTES), ({"type": "NFKC"}, None), ({"type": "NFC"}, {**BYTES, "add_prefix_space": False}),
    ({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, None),
])  # fmt: skip
def test_what_tokenizers_in_use_do_is_done_to_the_longest_prompt(
    tmp_path: Path, run: Any, normalizer: Any, splitter: Any
) -> None:
    run(written(tmp_path, normalizer, splitter), " " * (MAX_TEXT_BYTES - 1) + "b")


def test_llama_takes_the_longest_prompt(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama(tmp_path / "made"), 2**20)
    assert encode_prompt(tokenizer, " " * (MAX_TEXT_BYTES - 1) + "x", PromptConfig("vicuna_v1"))[1]


def test_the_runs_of_a_prompt_share_the_bound(tmp_path: Path) -> None:
    """A template that names the system text eight times, each a run of its own."""
    tokenizer = load_tokenizer(written(tmp_path, None, split("b")), 2**20)
    with pytest.raises(PromptError, match=r"the pre_tokenizer of tokenizer\.json may make 1,310,720 bytes of it"):
        tokenizer.encode_runs(["b" * MAX_TEXT_BYTES] * 8)
    assert len(tokenizer.encode_runs(["b" * MAX_TEXT_BYTES, "b"])) == 2


def test_what_a_normalizer_may_make_is_reckoned_before_it_does(tmp_path: Path) -> None:
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    tokenizer = load_tokenizer(written(tmp_path, normalizer, None), 2**20)
    assert len(tokenizer.encode("b" * (MAX_GROWN_BYTES // 22))) == MAX_GROWN_BYTES // 22
    with pytest.raises(PromptError, match=r"the normalizer of tokenizer\.json may make 3,145,736 bytes of it"):
        tokenizer.encode("b" * (MAX_GROWN_BYTES // 22 + 1))


def test_what_stands_before_and_behind_the_image_shares_the_bound(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, None, BYTES), 2**20)
    turns = {"name": "own", "system_turn": "{system}", "before": "", "after": "\n{prompt}\n"}
    prompt = PromptConfig(json.dumps(turns), system="b" * MAX_TEXT_BYTES)
    assert len(encode_prompt(tokenizer, "b" * (MAX_TEXT_BYTES - 2), prompt)[0]) == 1 + MAX_TEXT_BYTES
    with pytest.raises(PromptError, match=r"the pre_tokenizer of tokenizer\.json may make 1,048,580 bytes of it"):
        encode_prompt(tokenizer, "b" * MAX_TEXT_BYTES, prompt)


def with_system(folder: Path, **turns: str) -> Path:
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["prompt"] |= turns
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_the_runs_of_a_bundle_s_prompt_share_the_bound(tmp_path: Path) -> None:
    home = with_system(written(tmp_path, None, BYTES), system="b" * MAX_TEXT_BYTES, system_turn="{system}")
    host(home, "b" * (MAX_TEXT_BYTES - 2))
    with pytest.raises(PromptError, match=r"the pre_tokenizer of tokenizer\.json may make 1,048,580 bytes of it"):
        host(home, "b" * MAX_TEXT_BYTES)


def test_a_bundle_that_names_a_long_system_text_again_and_again_is_refused(tmp_path: Path) -> None:
    home = with_system(written(tmp_path, None, None), system="b" * 65_536, system_turn="{system}" * 8)
    host(home, "b")
    with pytest.raises(BundleError, match="its turns are no template"):
        host(with_system(home, system_turn="{system}" * 9), "b")


def nested(key: str, step: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        step = {"type": "Sequence", key: [step] * 16}
    return step


@pytest.mark.parametrize(
    ("normalizer", "splitter", "words"),
    [
        (nested("normalizers", {"type": "NFC"}, 4), None, "its normalizer has more steps .* at most 16"),
        (None, nested("pretokenizers", split("b"), 2), "its pre_tokenizer has more steps .* at most 8"),
        (None, nested("pretokenizers", split("b"), 1), "its pre_tokenizer has more steps .* at most 8"),
        (None, {"type": "Sequence", "pretokenizers": [BYTES] * 4}, "can make a text 256 times as long"),
    ],
)
def test_sequences_of_sequences_are_counted(tmp_path: Path, normalizer: Any, splitter: Any, words: str) -> None:
    """16 to the power of 4 steps, each over the whole text, were within every limit; so were 2^16 bytes for one."""
    with pytest.raises(TokenizerError, match=words):
        load_tokenizer(written(tmp_path, normalizer, splitter), 2**20)


@pytest.mark.parametrize("sign", ["7", "!", " ", "b ", "7 ", "\x01", "é", "▁"])
@pytest.mark.parametrize(
    "splitter",
    [BYTES, BLANKS, *(row(first, last) for first in (DIGITS, MARKS) for last in (BYTES, BLANKS))],
    ids=lambda splitter: "+".join(step["type"] for step in splitter.get("pretokenizers", [splitter])),
)
def test_no_splitter_makes_more_than_is_reckoned(tmp_path: Path, splitter: Any, sign: str) -> None:
    library = Tokenizer.from_file(str(written(tmp_path, None, splitter) / "tokenizer.json"))
    pieces = library.pre_tokenizer.pre_tokenize_str(sign * 1000)
    made, typed = (
        sum(len(text.encode()) for text in texts) for texts in ([piece for piece, _ in pieces], [sign * 1000])
    )
    assert made <= growth_of(library).splitter * typed + SHORT


def test_an_answer_that_its_decoder_makes_long_is_refused(tmp_path: Path) -> None:
    """A token of 4,096 letters, each of which becomes 64: decoded anew with each, 2,048 of them took 20 minutes."""
    made = json.loads((written(tmp_path, None, None) / "tokenizer.json").read_text())
    made["model"]["vocab"] = {"a" * 4096: 0, "b": 1}
    made["decoder"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 64}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    tokenizer = load_tokenizer(tmp_path, 2)
    stream, told = tokenizer.stream(), Prompt(Bundle(tmp_path, "mil")).text([0] * 5)
    assert [len(stream.push(0)) for _ in range(4)] == [64 * 4096] * 4 == [len(next(told)) for _ in range(4)]
    for push in (lambda: stream.push(0), lambda: next(told), lambda: tokenizer.decode([0] * 5)):
        with pytest.raises(TokenizerError, match=r"over 1,048,576 bytes of this answer, .*; lower --max-new-tokens"):
            push()
    assert tokenizer.decode([1] * 16_384) == "b" * 16_384
