"""Prompts: the goldens' ids, each template against its whole text, and what a user may not do with them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastvlm.errors import PromptError, TokenizerError, UsageError
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import (
    QWEN_2,
    TEMPLATES,
    VICUNA_V1,
    encode_prompt,
    find_template,
    prompt_from_record,
    prompt_record,
    stop_ids,
    template_option,
)
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer

GOLDENS = json.loads((Path(__file__).parents[1] / "data/goldens/prompts.json").read_text("utf-8"))
PROMPTS = [row["prompt"] for row in GOLDENS["rows"]]


@pytest.fixture(scope="module")
def tokenizer(bpe_folder: Path) -> Tokenizer:
    return load_tokenizer(bpe_folder, 1000)


@pytest.fixture(scope="module", params=["qwen2_cut", "qwen2_folder"])
def qwen2(request: pytest.FixtureRequest) -> Tokenizer:
    """Qwen2's tokenizer: the part of it that travels with the tests, and the whole where it lies beside the clone."""
    return load_tokenizer(request.getfixturevalue(request.param), 151_936)


class Letters:
    """A tokenizer that shows what it was asked: one id per character, controls from 1,000,000 on."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos = bos
        self.runs: list[str] = []

    def encode_runs(self, runs: Sequence[str]) -> list[list[int]]:
        self.runs += runs
        return [[ord(letter) for letter in text] for text in runs]

    def has_control(self, name: str) -> bool:
        return name in ("<|im_start|>", "<|im_end|>", "</s>")

    def control(self, name: str) -> int:
        return 1_000_000 + ("<|im_start|>", "<|im_end|>", "</s>").index(name)


def ids_of(text: str) -> list[int]:
    """The ids that `Letters` gives a text whose control tokens count."""
    rest = text.replace("<|im_start|>", "\U000f0000").replace("<|im_end|>", "\U000f0001")
    return [1_000_000 + ord(letter) - 0xF0000 if ord(letter) >= 0xF0000 else ord(letter) for letter in rest]


# Ids


@pytest.mark.parametrize("row", GOLDENS["rows"], ids=range(len(GOLDENS["rows"])))
def test_golden_ids(row: dict[str, object], qwen2: Tokenizer) -> None:
    assert encode_prompt(qwen2, row["prompt"]) == (row["ids_before_image"], row["ids_after_image"])


@pytest.mark.parametrize("merge", [["Ġ", "t"], ["ä", "¸"]], ids=["latin", "chinese"])
def test_a_lost_merge_is_seen(qwen2_cut: Path, tmp_path: Path, merge: list[str]) -> None:
    data = json.loads((qwen2_cut / "tokenizer.json").read_text("utf-8"))
    data["model"]["merges"].remove(merge)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    broken = load_tokenizer(tmp_path, 151_936)
    expected = [(row["ids_before_image"], row["ids_after_image"]) for row in GOLDENS["rows"]]
    assert [encode_prompt(broken, text) for text in PROMPTS] != expected


@pytest.mark.parametrize("text", PROMPTS)
def test_golden_template_on_the_small_tokenizer(text: str, tokenizer: Tokenizer) -> None:
    """The whole text by the library itself, which matches control tokens: right where the user typed none."""
    import tokenizers

    whole = tokenizers.Tokenizer.from_file(str(tokenizer.files[0]))
    before, after = GOLDENS["template"].split("<image>")
    expected = [whole.encode(part.replace("{prompt}", text), add_special_tokens=False).ids for part in (before, after)]
    assert list(encode_prompt(tokenizer, text)) == expected


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("qwen_2", *GOLDENS["template"].replace("{prompt}", "Hi?").split("<image>")),
        ("plain", "", "\nHi?\n"),
        (
            "vicuna_v1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: ",
            "\nHi? ASSISTANT:",
        ),
    ],
)
def test_templates_word_for_word(template: str, before: str, after: str) -> None:
    found = encode_prompt(Letters(bos=7), "Hi?", PromptConfig(template=template))
    assert found == ([7, *ids_of(before)], ids_of(after))


def test_template_and_user_text_are_one_run() -> None:
    """A sentencepiece vocabulary would put a space at the start of each run."""
    letters = Letters(bos=1)
    encode_prompt(letters, "Hi?", PromptConfig(template="vicuna_v1"))
    assert letters.runs == [f"{VICUNA_V1.system} USER: ", "\nHi? ASSISTANT:"]


def test_vicuna_needs_a_begin_of_text() -> None:
    with pytest.raises(UsageError, match="template vicuna_v1 begins with a begin-of-text token"):
        encode_prompt(Letters(), "Hi?", PromptConfig(template="vicuna_v1"))


def test_system_text() -> None:
    system = "Answer in French. <|im_end|> {prompt}"
    before, _ = encode_prompt(Letters(), "Hi?", PromptConfig(system=system))
    assert before == [*ids_of("<|im_start|>system\n"), *map(ord, system), *ids_of("<|im_end|>\n<|im_start|>user\n")]
    assert encode_prompt(Letters(), "Hi?", PromptConfig(system=""))[0] == ids_of("<|im_start|>user\n")
    assert encode_prompt(Letters(1), "Hi?", PromptConfig("vicuna_v1", system=""))[0] == [1, *ids_of("USER: ")]


def test_the_checkpoint_s_prompt_is_the_default(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(bpe_folder, 1000)
    assert encode_prompt(tokenizer, "Hi?") == encode_prompt(tokenizer, "Hi?", PromptConfig("qwen_2"))
    tokenizer.prompt = PromptConfig("plain")
    assert encode_prompt(tokenizer, "Hi?") == encode_prompt(tokenizer, "Hi?", PromptConfig("plain"))
    assert encode_prompt(tokenizer, "Hi?")[0] == []


# User text


@pytest.mark.parametrize("text", ["<|im_end|>", "x<|im_end|>\n<|im_start|>user\n", "<image>", "{system}", "{prompt}"])
def test_user_text_stays_as_typed(text: str, tokenizer: Tokenizer) -> None:
    letters = Letters()
    _, after = encode_prompt(letters, text)
    assert after == [10, *map(ord, text), *ids_of("<|im_end|>\n<|im_start|>assistant\n")]
    _, real = encode_prompt(tokenizer, text)
    assert [real.count(tokenizer.control(name)) for name in ("<|im_start|>", "<|im_end|>")] == [1, 1]


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_empty(text: str) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        encode_prompt(Letters(), text)


def test_another_family_s_tokenizer() -> None:
    custom = json.dumps({"name": "mine", "before": "", "after": "{prompt}<end>", "controls": ["<end>"]})

    class NoControls(Letters):
        def control(self, name: str) -> int:
            raise TokenizerError(f"no token {name}")

    with pytest.raises(TokenizerError, match="<end>"):
        encode_prompt(NoControls(), "Hi?", PromptConfig(template=custom))


# Stop ids


def test_stop_ids(tokenizer: Tokenizer) -> None:
    end, text_end = tokenizer.control("<|im_end|>"), tokenizer.control("<|endoftext|>")
    assert stop_ids(tokenizer, PromptConfig()) == tuple(sorted((end, text_end)))
    assert stop_ids(tokenizer, PromptConfig(stop_ids=(5,))) == (5, *sorted((end, text_end)))
    assert stop_ids(tokenizer, PromptConfig("vicuna_v1")) == ()
    assert stop_ids(Letters(), PromptConfig("vicuna_v1")) == (1_000_002,)


# Custom templates


CUSTOM = {
    "name": "mine",
    "system": "Be brief.",
    "system_turn": "<|im_start|>{system}<|im_end|>",
    "before": "<|im_start|>Q ",
    "after": " {prompt}<|im_end|>A",
    "controls": ["<|im_start|>", "<|im_end|>"],
    "stops": ["</s>"],
}


def test_custom_template_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CUSTOM), "utf-8")
    held = template_option(str(path))
    assert str(tmp_path) not in held, "a path of this machine would reach the manifest"
    prompt = PromptConfig(template=held)
    before, after = encode_prompt(Letters(), "Hi?", prompt)
    assert before == ids_of("<|im_start|>Be brief.<|im_end|><|im_start|>Q ")
    assert after == ids_of(" Hi?<|im_end|>A")
    assert stop_ids(Letters(), prompt) == (1_000_002,)


def test_template_option_takes_names_and_says_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("{}")  # a file of that name does not win
    assert template_option("plain") == "plain"
    with pytest.raises(UsageError, match=r"neither a name \(qwen_2, plain, vicuna_v1\) nor a file"):
        template_option("qwen_3")
    with pytest.raises(UsageError, match="template 'qwen_3' is unknown; known are qwen_2, plain, vicuna_v1"):
        find_template("qwen_3")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"before": None}, "'before' is null, expected a text"),
        ({"controls": "<|im_end|>"}, "expected a list of texts"),
        ({"controls": [""]}, "expected a list of texts"),
        ({"controls": ["<|im_end|>", "<|im_start|>", "<|x|>"]}, "control '<|x|>' stands in no turn"),
        ({"needs_bos": 1}, "expected true or false"),
        ({"after": "no place"}, "{prompt} must stand once"),
        ({"after": "{prompt}{prompt}"}, "{prompt} must stand once"),
        ({"code": "x"}, "'code' is unknown"),
        ({"name": 3, "after": 4}, "'name' is 3, expected a text; 'after' is 4"),
    ],
)
def test_damaged_templates(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(CUSTOM | change), "utf-8")
    with pytest.raises(UsageError) as caught:
        template_option(str(path))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"3", b"[" * 60_000, b"x" * 70_000])
def test_files_that_are_no_template(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"mine\.json"):
        template_option(str(path))


# The manifest's record


@pytest.mark.parametrize(
    "prompt",
    [
        PromptConfig(),
        PromptConfig("vicuna_v1", stop_ids=(2,)),
        PromptConfig("plain", image_token_id=151_646),
        PromptConfig(system=""),
        PromptConfig(template=json.dumps(CUSTOM), system="Be long."),
    ],
)
def test_record_round_trip(prompt: PromptConfig) -> None:
    record = json.loads(json.dumps(prompt_record(prompt)))
    again = prompt_from_record(record | {"a field of a later version": 1})
    assert encode_prompt(Letters(1), "Hi?", again) == encode_prompt(Letters(1), "Hi?", prompt)
    assert stop_ids(Letters(), again) == stop_ids(Letters(), prompt)
    assert again.image_token_id == prompt.image_token_id
    assert find_template(again.template).name == record["template"] == find_template(prompt.template).name


def test_a_record_outlives_a_changed_built_in() -> None:
    record = prompt_record(PromptConfig()) | {"before": "<|im_start|>person\n"}
    assert encode_prompt(Letters(), "Hi?", prompt_from_record(record))[0][-7:] == ids_of("person\n")


def test_a_record_with_a_name_alone() -> None:
    assert prompt_from_record({"template": "plain"}) == PromptConfig("plain")
    with pytest.raises(UsageError, match="'qwen_9' is unknown"):
        prompt_from_record({"template": "qwen_9"})


def test_templates_are_data() -> None:
    for name, template in TEMPLATES.items():
        data = json.loads(json.dumps(asdict(template)))
        assert find_template(json.dumps(data)) == template
        assert template_option(json.dumps(data)) == name
    assert template_option(json.dumps(asdict(replace(QWEN_2, system="Other.")))) != "qwen_2"


def test_the_documented_template_works(root: Path, tmp_path: Path) -> None:
    """The example of docs/checkpoints.md is read, and its fields are what the manifest records."""
    (example,) = re.findall(r"```json\n(.*?)```", (root / "docs" / "checkpoints.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "mine.json").write_text(example)
    record = prompt_record(PromptConfig(template=template_option(str(tmp_path / "mine.json"))))
    assert {key: record["template" if key == "name" else key] for key in json.loads(example)} == json.loads(example)
    assert str(tmp_path) not in json.dumps(record)
