"""Row "prompts": no text of a user becomes a control token, and none is written past an engine's context."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_prompts import Speaker, llama, prompts, refusal, speaker
from ordeal import in_lines, size, tally, try_all

from fastvlm.build import read_build
from fastvlm.errors import ExecutionError, PromptError
from fastvlm.tokenizer_room import Room
from fastvlm_ref import load_checkpoint
from fastvlm_ref.engine import Engine, TorchEngine
from fastvlm_ref.generate import check_fits
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer
from validation.engine import PackageEngine
from validation.ort.engine import OrtEngine

ROW = "prompts: limit−1, limit, limit+1, 10 MB, control tokens by every split"


@pytest.fixture(scope="module")
def speakers(tiny: Path, root: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Speaker]:
    """tiny's tokenizer, Qwen2's (what travels of it with the tests, where it is not beside the clone), a Llama-like."""
    folder, beside = tmp_path_factory.mktemp("speakers"), root.parent / "shared" / "reference" / "qwen2-tokenizer"
    return [
        speaker("tiny", tiny, "qwen_2", folder / "tiny"),
        speaker("qwen2", beside if beside.is_dir() else data / "qwen2-cut", "qwen_2", folder / "qwen2"),
        speaker("llama", llama(folder / "made"), "vicuna_v1", folder / "llama"),
    ]


def test_no_text_becomes_a_control_token(speakers: list[Speaker]) -> None:
    outcomes = try_all(prompts(speakers, size(2_000, 10_000)))
    bad = tally(ROW, outcomes, tokenizers=len(speakers))
    assert not bad, in_lines(bad)
    kinds = {outcome.kind for outcome in outcomes if " 262143 of " in outcome.name or " 262144 of " in outcome.name}
    assert kinds == {"passed"}
    large = [outcome for outcome in outcomes if " 10485760 of " in outcome.name]
    assert len(large) >= 9
    assert {outcome.kind for outcome in large} == {"named"}
    assert max(outcome.seconds for outcome in large) < 5


def matching(self: Tokenizer, text: str, room: Room) -> list[int]:
    """The planted fault of transformers #47853: text that is looked through for control tokens."""
    ids: list[int] = self._inner.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids
    return ids


def test_without_its_checks_the_row_is_red(speakers: list[Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "_encode", matching)
    cases = [case for case in prompts(speakers, 400) if " split " in case[0]]
    assert {outcome.name.split()[0] for outcome in try_all(cases) if not outcome.held} == {"tiny", "qwen2", "llama"}


def test_without_a_limit_the_row_is_red(speakers: list[Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvlm.tokenizer_json.check_length", lambda *_: None)
    for module in ("fastvlm_ref.tokenizer", "fastvlm_ref.prompt", "validation.bundle_host.prompt"):
        monkeypatch.setattr(f"{module}.check_length", lambda *_: None)
    cases = [case for case in prompts(speakers[:1], 60) if " 262145 of " in case[0]][:2]
    assert not any(outcome.held for outcome in try_all(cases))


def vocabulary(folder: Path, tiny: Path, special: bool) -> Tokenizer:
    """tiny's tokenizer with `the` among its added tokens, as trainers leave words that they added twice."""
    data = json.loads((tiny / "tokenizer.json").read_text("utf-8"))
    entry = {**data["added_tokens"][0], "content": "the", "special": special}
    data["model"]["vocab"]["the"] = entry["id"] = len(data["model"]["vocab"]) + len(data["added_tokens"])
    data["model"]["vocab"]["th"] = entry["id"] + 1
    data["model"]["merges"] = [["t", "h"], ["th", "e"]]
    data["added_tokens"].append(entry)
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return load_tokenizer(folder, 1000)


@pytest.mark.parametrize("special", [True, False])
def test_every_added_token_is_guarded(special: bool, tiny: Path, tmp_path: Path) -> None:
    """Marked as special or not: trainers forget the mark, and a control is one all the same."""
    tokenizer = vocabulary(tmp_path, tiny, special)
    assert refusal(tmp_path, tokenizer, "a cat") is None
    said = str(refusal(tmp_path, tokenizer, "the cat"))
    assert "plain text became the control token the" in said
    assert "take them out of added_tokens in tokenizer.json" in said


# No write past the state


@pytest.fixture(scope="module", params=["torch", "mil", "ort"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "torch":
        return TorchEngine(load_checkpoint("tiny"))
    if request.param == "mil":
        return PackageEngine(read_build(request.getfixturevalue("exported_tiny")))
    return OrtEngine(read_build(request.getfixturevalue("onnx_tiny"), ("onnx",)))


def held(engine: Any) -> list[np.ndarray]:
    """What the engine's cache holds, to the last position."""
    if isinstance(engine, TorchEngine):
        return [engine._cache.keys.numpy().copy(), engine._cache.values.numpy().copy()]
    if isinstance(engine, PackageEngine):
        return [state.copy() for state in engine.read_states() if state is not None]
    return [array.copy() for array, _ in engine.language._bound if array.ndim == 4]


def refuses(engine: Engine, act: Callable[[], object]) -> None:
    """A PromptError, and not one value of the cache is another."""
    before = held(engine)
    assert before
    assert any(array.any() for array in before)
    with pytest.raises(PromptError, match=rf"do not fit into (the context of )?{engine.context}"):
        act()
    assert all(np.array_equal(old, new) for old, new in zip(before, held(engine), strict=True))


def jump(engine: Any, position: int) -> None:
    """As if that many positions were filled: a cache holds zeros there."""
    if isinstance(engine, TorchEngine):
        engine._cache.length = position
    else:
        engine.position = position


def test_nothing_is_written_past_the_context(engine: Engine) -> None:
    most = engine.context
    rows = engine.embed([5 + at % 9 for at in range(most + 1)])
    engine.reset()
    engine.prefill(rows[:3])
    refuses(engine, lambda: engine.prefill(rows[2:]))
    refuses(engine, lambda: engine.prefill(rows))
    jump(engine, most - 3)
    refuses(engine, lambda: engine.prefill(rows[:4]))
    engine.prefill(rows[:2])
    assert np.isfinite(engine.decode(rows[:1])).all()  # the last position
    for act in (engine.decode, engine.prefill):
        refuses(engine, lambda act=act: act(rows[:1]))
    engine.rewind(most - 1)
    assert np.isfinite(engine.decode(rows[:1])).all()
    refuses(engine, lambda: engine.decode(rows[:1]))


def test_an_answer_that_the_context_cannot_hold_is_refused_before_it_begins(engine: Engine) -> None:
    for text in (engine.context - 2, engine.context - 1):
        check_fits(engine, None, text, 1)
    with pytest.raises(PromptError, match=f"{engine.context + 1} of a context of {engine.context}"):
        check_fits(engine, None, engine.context, 1)


def test_without_the_engine_s_check_the_error_is_another(engine: Engine) -> None:
    """The package itself is then what refuses, in the MIL runtime; Core ML would write over the last position."""
    if not isinstance(engine, PackageEngine):
        pytest.skip("of the engine whose own check is removed here")
    rows = engine.embed([5])
    jump(engine, engine.context)
    with pytest.raises(ExecutionError, match="slice_update"):
        engine.chain.decode(engine._inputs(rows, 1), engine._states(), partial(engine._predict, "language"))
