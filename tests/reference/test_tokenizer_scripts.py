"""The tokenizer.json of a build, loaded alone as a host would, against the checkpoint's vocabulary read otherwise.

Two oracles: Qwen2 in plain Python (`slow_qwen2`), which shares no line with the library, on every string; transformers'
own reading of vocab.json and merges.txt on those that spell no control token, since it would make one of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import tokenizers
from many_scripts import CONTROLS, SCRIPTS, strings
from slow_qwen2 import SlowQwen2

from fastvlm_ref import tokenizer as tokenizer_module
from fastvlm_ref.tokenizer import load_tokenizer

ROWS = 151_936
Texts = Mapping[str, list[str]]  # by script
Told = Mapping[str, list[tuple[list[str], list[int]]]]  # by script, of each string its words and its ids


@pytest.fixture(scope="module")
def texts() -> Texts:
    return strings()


@pytest.fixture(scope="module")
def cut(qwen2_cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of Qwen2's vocabulary as a checkpoint has it: tokenizer.json, vocab.json, merges.txt, added_tokens.json."""
    folder = Path(shutil.copytree(qwen2_cut, tmp_path_factory.mktemp("cut") / "checkpoint"))
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), "utf-8")
    (folder / "merges.txt").write_text("\n".join(map(" ".join, content["model"]["merges"])) + "\n", "utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    return folder


@pytest.fixture(scope="module", params=["cut", "whole"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """The part in any clone; all of Qwen2's where the shared reference lies beside it."""
    return Path(request.getfixturevalue("cut" if request.param == "cut" else "qwen2_folder"))


@pytest.fixture(scope="module")
def parts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_of(checkpoint, tmp_path_factory.mktemp("parts"))


def parts_of(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's tokenizer as trainers leave it: vocab.json, merges.txt and added_tokens.json alone."""
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(checkpoint / name, folder)
    return folder


@pytest.fixture(scope="module")
def told(checkpoint: Path, texts: Texts) -> Told:
    return by_plain_python(checkpoint, texts)


def by_plain_python(folder: Path, texts: Texts) -> Told:
    slow = SlowQwen2(folder)
    return {name: [(slow.words(text), slow.encode(text)) for text in rows] for name, rows in texts.items()}


def saved(folder: Path, target: Path) -> tokenizers.Tokenizer:
    """What a host loads of a build: the saved tokenizer.json alone, told to spell control tokens in text out."""
    load_tokenizer(folder, ROWS).save(target)
    alone = shutil.copy(target / "tokenizer.json", target.parent / "alone.json")
    inner = tokenizers.Tokenizer.from_file(str(alone))
    inner.encode_special_tokens = True
    return inner


def differing(inner: tokenizers.Tokenizer, texts: Texts, told: Told) -> Iterator[str]:
    """Gives every string whose words or ids are others, with its script; ids forgive a split where no merge crosses."""
    for name, rows in texts.items():
        made = inner.encode_batch_fast(rows, add_special_tokens=False)
        for text, found, (words, ids) in zip(rows, made, told[name], strict=True):
            normal = text if inner.normalizer is None else inner.normalizer.normalize_str(text)
            if [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(normal)] != words:
                yield f"{name}: the words of {text!r}"
            if found.ids != ids:
                yield f"{name}: the ids of {text!r}"


def test_there_are_ten_thousand_strings_the_same_in_every_run(texts: Texts) -> None:
    every = {text for rows in texts.values() for text in rows}
    assert len(every) >= 10_000
    assert texts == strings()
    assert texts.keys() == {*SCRIPTS, "mixed"}
    assert sum(any(name in text for name in CONTROLS) for text in every) > 300
    assert not any("\ud800" <= sign <= "\udfff" for text in every for sign in text)


@pytest.mark.parametrize("layout", ["checkpoint", "parts"])
def test_a_saved_tokenizer_makes_the_ids_of_the_checkpoint(
    layout: str, texts: Texts, told: Told, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    inner = saved(request.getfixturevalue(layout), tmp_path / "saved")
    assert list(differing(inner, texts, told)) == []


def test_transformers_says_the_same(parts: Path, texts: Texts, told: Told) -> None:
    """On whatever spells no control token."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(parts))
    for name, rows in texts.items():
        pairs = [(t, ids) for t, (_, ids) in zip(rows, told[name], strict=True) if not any(c in t for c in CONTROLS)]
        found = theirs([text for text, _ in pairs])["input_ids"]
        assert [text for (text, ids), made in zip(pairs, found, strict=True) if made != ids] == [], name


def test_our_own_rule_is_the_same(checkpoint: Path, texts: Texts, told: Told) -> None:
    """Control tokens in text are spelled out."""
    mine = load_tokenizer(checkpoint, ROWS)
    for name in ("lookalikes", "mixed"):
        assert [text for text, (_, ids) in zip(texts[name], told[name], strict=True) if mine.encode(text) != ids] == []
    controls = {mine.control(name) for name in CONTROLS}
    assert not controls & {id_ for rows in told.values() for _, ids in rows for id_ in ids}


CHANGES = [
    (r"|\p{N}|", r"|\p{N}{1,3}|"),  # as newer families split digits
    ("(?i:'s", "(?:'s"),
    (r"\s+(?!\S)|", ""),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+"),
    (r"+[\r\n]*|", "+|"),
    (r"\s*[\r\n]+|", ""),
]


@pytest.mark.parametrize(("rule", "other"), CHANGES)
def test_another_split_is_found(
    rule: str, other: str, cut: Path, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer_module.QWEN2_WORDS.count(rule) == 1
    monkeypatch.setattr(tokenizer_module, "QWEN2_WORDS", tokenizer_module.QWEN2_WORDS.replace(rule, other))
    inner = saved(parts_of(cut, tmp_path), tmp_path / "saved")
    some = {name: rows[:100] for name, rows in texts.items()}
    assert list(differing(inner, some, by_plain_python(cut, some)))


def test_a_lost_normalizer_is_found(cut: Path, texts: Texts, tmp_path: Path) -> None:
    inner = saved(cut, tmp_path / "saved")
    inner.normalizer = tokenizers.normalizers.Sequence([])
    some = {name: rows[:200] for name, rows in texts.items()}
    found = {sentence.split(":")[0] for sentence in differing(inner, some, by_plain_python(cut, some))}
    assert {"hangul", "marks", "hebrew", "devanagari", "kana", "cjk", "mixed"} <= found
