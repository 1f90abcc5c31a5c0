"""Ready-made prompts: the checkpoint's own, a base's, the general ones; a question's ids; wrong entries named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastvlm.errors import CheckpointError
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.source import Source, differing, is_prose, weight_hashes
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.ready_prompts import FIELDS, GENERAL, MAX_BYTES, MOST, ReadyPrompt, encoded, read_own, ready_prompts
from fastvlm_ref.tokenizer import load_tokenizer
from fastvlm_ref.training.examples import ASKED
from fastvlm_ref.training.questions import PHRASINGS
from fastvlm_ref.training.scenes import COLOURS, SHAPES

OWN = [{"title": "Total", "text": "What is the total?"}, {"title": "Größe", "text": "Zwei\nZeilen."}]


def wrote(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "prompts.json"


def source(folder: Path, *names: str, base: Source | None = None) -> Source:
    return Source("it", None, "llava", folder, names, base)


def test_the_general_prompts_keep_the_rules_of_own_ones(tmp_path: Path) -> None:
    assert ready_prompts(source(tmp_path)) == GENERAL
    assert len(GENERAL) == 8
    file = wrote(tmp_path, [{"title": prompt.title, "text": prompt.text} for prompt in GENERAL])
    assert read_own(file) == GENERAL
    assert max(len(prompt.title) for prompt in GENERAL) <= 20  # a button's width


def test_a_checkpoint_s_own_take_their_place_and_an_adapter_s_those_of_its_base(tmp_path: Path) -> None:
    wrote(tmp_path / "base", OWN)
    wrote(tmp_path / "adapter", OWN[:1])
    base = source(tmp_path / "base", "config.json", "prompts.json")
    own = tuple(ReadyPrompt(**row) for row in OWN)
    assert ready_prompts(base) == own
    assert ready_prompts(source(tmp_path / "adapter", "prompts.json", base=base)) == own[:1]
    assert ready_prompts(source(tmp_path / "adapter", base=base)) == own
    assert ready_prompts(source(tmp_path / "adapter", base=source(tmp_path / "base"))) == GENERAL


def test_ids_are_those_of_a_question(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(bpe_folder, 1000)
    for prompt, made in zip(GENERAL, encoded(GENERAL, tokenizer), strict=True):
        before, after = encode_prompt(tokenizer, prompt.text)
        assert (made.title, made.text) == (prompt.title, prompt.text)
        assert (list(made.ids_before_image), list(made.ids_after_image)) == (before, after)
        assert made.count == len(before) + len(after)


def phrasings(form: str) -> set[str]:
    """Every question of a form."""
    names = [{"kind": kind, "other": kind, "colour": colour} for kind in SHAPES for colour in COLOURS]
    return {phrase.format(**fields) for phrase in PHRASINGS[form] for fields in names}


def test_the_embedded_checkpoint_s_are_questions_that_it_was_taught() -> None:
    prompts = ready_prompts(open_checkpoint("tiny", None, False).source)
    assert {prompt.title: prompt.text for prompt in prompts} == ASKED
    forms = [form for prompt in prompts for form in PHRASINGS if prompt.text in phrasings(form)]
    assert sorted(forms) == sorted(PHRASINGS.keys() - {"side"})
    assert len(forms) == len(prompts)


def test_they_belong_to_the_source_and_make_no_other_checkpoint(tiny: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny, tmp_path / "copied"))
    before = open_checkpoint(copied, None, False).source.files()
    wrote(copied, OWN)
    after = open_checkpoint(copied, None, False).source.files()
    assert {name for name in before if before[name] != after[name]} == {"prompts.json"}
    assert differing(before, after) == []
    assert is_prose("prompts.json")
    assert weight_hashes(before) == weight_hashes(after)
    assert weight_hashes(before).keys() == {"model.safetensors"}
    (copied / "prompts.json").unlink()
    gone = open_checkpoint(copied, None, False).source
    assert "prompts.json" not in gone.files()
    assert differing(gone.files(), after) == []
    assert ready_prompts(gone) == GENERAL


ROW = {"title": "a", "text": "b"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"prompts": [ROW]}, "holds a JSON dict, expected a JSON list such as"),
        ([], "holds a list of 0, expected a JSON list such as"),
        ([{"title": str(n), "text": "b"} for n in range(MOST + 1)], "holds a list of 65, .*1 to 64 entries"),
        ([ROW, "Describe"], 'entry 2: "Describe", expected an object with title and text'),
        ([ROW | {"texts": "c"}], r"entry 1: 'texts' is unknown \(known: title, text\)"),
        ([{"title": "a"}], "entry 1: text is missing"),
        ([ROW | {"text": " \n"}], r'entry 1: text is " \\n", expected text'),
        ([ROW | {"text": 5}], "entry 1: text is 5, expected text"),
        ([ROW | {"text": "\ud800"}], "entry 1: text is .*ud800.*, expected text"),
        ([ROW | {"title": ""}], 'entry 1: title is "", expected text'),
        ([ROW | {"title": "a\nb"}], "entry 1: title is .*, expected one line"),
        ([ROW | {"title": "t" * 61}], "entry 1: title has 61 characters, at most 60 are expected"),
        ([ROW | {"text": "t" * 4001}], "entry 1: text has 4,001 characters, at most 4,000 are expected"),
        ([ROW, {"title": "b", "text": "b"}, ROW], "entry 3: title 'a' is that of entry 1, expected another"),
        ([{}] * 20, "text is missing; and 30 more; expected"),
        ('[{"title": "a", "title": "b", "text": "c"}]', "is not JSON .it names .title. twice"),
        ("[{'title': 1}]", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, rows: Any, says: str) -> None:
    file = wrote(tmp_path, rows)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_own(file)
    assert str(caught.value).startswith(str(file))
    assert "or remove the file" in str(caught.value)


def test_limits_are_inclusive(tmp_path: Path) -> None:
    row = {name: "t" * most for name, most in FIELDS.items()}
    assert len(read_own(wrote(tmp_path, [row]))) == 1
    assert len(read_own(wrote(tmp_path, [row | {"title": str(n)} for n in range(MOST)]))) == MOST


def test_a_file_that_is_too_large_or_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_own(file)
    with file.open("wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="has 1,048,577 bytes, at most 1,048,576 are read"):
        read_own(file)


def test_an_empty_system_text_makes_the_ids_of_a_question_without_one(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(bpe_folder, 1000)
    config = PromptConfig(system="")
    (made,) = encoded(GENERAL[:1], tokenizer, config)
    assert list(made.ids_before_image) == encode_prompt(tokenizer, GENERAL[0].text, config)[0]
    assert made.ids_before_image != encoded(GENERAL[:1], tokenizer)[0].ids_before_image
