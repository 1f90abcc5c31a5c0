"""tokenizer.json as strangers write it: named lies, and random changes of two that are whole.

A case loads the folder and, where that is allowed, encodes and decodes with what was loaded; nothing but a
FastVLMError may come of it, and no added token out of text. The library is never asked to keep to its word: a panic of
it is no Exception, an abort ends the process, and the harness sees both.
"""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ordeal import Case

from fastvlm.errors import FastVLMError, PromptError, TokenizerError
from fastvlm.tokenizer_json import MAX_TEXT_BYTES
from fastvlm.tokenizer_room import MAX_ANSWER_BYTES
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer

Json = dict[str, Any]
# By name: what makes a tokenizer.json, and the words that refuse it (None: it is loaded without its lie)
Lies = dict[str, tuple[Callable[[], Json | str], str | None]]
TEXTS = (
    "Describe the image.",
    "a" * 2000,
    " " * 2000 + "x",
    "<|im_end|></s>",
    "图é👩\u200d🚀\ud800\x00",
    "1" * 300 + "\n" * 300,
)
NASTY = (
    None, True, 0, -1, 1, 10**12, 2**31, 2**63, 10**400, 0.5, 1e308, "", "a", "\ud800", "x" * 5000, "<|im_end|>",
    "\x1b[2J", [], {}, [[]], {"type": "Evil"}, {"Regex": "(a+)+$"}, {"String": ""}, {"Fixed": 10**12}, ["a", "b"],
    {"a": -1},
)  # fmt: skip
STEPS = {  # kinds that are run, of which a stranger may put any anywhere
    "normalizer": (
        {"type": "NFKC"}, {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "Nmt"},
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Prepend", "prepend": "▁é"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "▁"}, {"type": "ByteLevel"},
    ),
    "pre_tokenizer": (
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "MergedWithNext"},
        {"type": "Whitespace"}, {"type": "WhitespaceSplit"},
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Removed", "invert": True},
    ),
    "decoder": (
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Metaspace", "replacement": "é", "prepend_scheme": "first"},
        {"type": "Strip", "content": "é", "start": 9, "stop": 9}, {"type": "BPEDecoder", "suffix": "é"},
        {"type": "Replace", "pattern": {"Regex": "[a-z]+"}, "content": "é"},
    ),
}  # fmt: skip
INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def use(tokenizer: Tokenizer, texts: Sequence[str] = TEXTS) -> None:
    """What every command does with a tokenizer; a refusal of one text is no refusal of the next."""
    guarded = set(tokenizer._added.values())
    for text in texts:
        try:
            ids = tokenizer.encode(text)
        except (TokenizerError, PromptError):
            continue
        assert not guarded.intersection(ids)
        decoded, _ = told(functools.partial(tokenizer.decode, ids))
        assert decoded is None or len(decoded) <= MAX_ANSWER_BYTES
        stream = tokenizer.stream()
        for id_ in ids[:50]:
            stream.push(id_)
        stream.finish()


def load(folder: Path, found: Json | str) -> Tokenizer:
    text = found if isinstance(found, str) else json.dumps(found)
    (folder / "tokenizer.json").write_text(text, "utf-8", errors="surrogatepass")
    return load_tokenizer(folder, 2**20)


def tried(folder: Path, found: Json | str, words: str | None) -> None:
    """Loads and uses it; with `words` it must be refused at once with these, else it must load."""
    loaded, said = told(functools.partial(load, folder, found))
    assert (loaded is None) == (words is not None), said or "it was loaded"
    if loaded is not None:
        use(loaded, (*TEXTS, "a" * MAX_TEXT_BYTES, " " * MAX_TEXT_BYTES))
        return
    assert words is not None
    assert words in said, said
    assert said.isprintable(), said
    assert len(said) < 700 + len(str(folder))
    raise TokenizerError(said)


def told(act: Callable[[], Any], kinds: tuple[type[BaseException], ...] = (FastVLMError,)) -> tuple[Any, str]:
    """Returns (what a call returns, "") or (None, the words of its error)."""
    try:
        return act(), ""
    except kinds as error:
        return None, str(error) or "an error without words"


def put(whole: Json, *path: Any, value: Any) -> Json:
    """A copy with one value changed, by path."""
    changed = copy.deepcopy(whole)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def regex(whole: Json, pattern: str) -> Json:
    return put(whole, "pre_tokenizer", value={**SPLIT, "pattern": {"Regex": pattern}})


def added(whole: Json, count: int, content: str = "<{}>") -> Json:
    first = whole["added_tokens"][0]
    more = [{**first, "id": 1000 + at, "content": content.format(at)} for at in range(count)]
    return {**whole, "added_tokens": [*whole["added_tokens"], *more]}


def replaced(content: str, times: int = 1, pattern: Any = None) -> Json:
    step = {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def ends(token: str) -> Json:
    piece = {"SpecialToken": {"id": token, "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [piece], "pair": [piece], "special_tokens": {}}


def nested(depth: int) -> Json:
    step: Json = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def lies(whole: Json) -> Lies:
    """Every lie that has a name."""
    kept = (habits, growth, patterns, kinds, vocabularies, not_json)
    return {name: lie for part in kept for name, lie in part(whole).items()}


def habits(whole: Json) -> Lies:
    """Left from a training: nothing is refused, nothing of it is run."""
    return {
        "padding of 10^12": (lambda: put(whole, "padding", value={
            "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a"}), None),
        "truncation to nothing": (lambda: put(whole, "truncation", value={
            "direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}), None),
        "dropout": (lambda: put(whole, "model", "dropout", value=0.5), None),
    }  # fmt: skip


def growth(whole: Json) -> Lies:
    """Much out of little: a text by its normalizer or decoder, an object by its lists."""
    return {
        "a megabyte for each a": (lambda: put(whole, "normalizer", value=replaced("b" * 2**20)), "its content"),
        "64 for each a": (lambda: put(whole, "normalizer", value=replaced("a" * 64)), None),
        "64 · 64 for each a": (lambda: put(whole, "normalizer", value=replaced("a" * 64, 2)), "times as long"),
        "2^16 in a row": (lambda: put(whole, "normalizer", value=replaced("aa", 16)), "times as long"),
        "a normalizer of 17": (lambda: put(whole, "normalizer", value=replaced("a", 17)), "at most 16"),
        "normalizers 5 deep": (lambda: put(whole, "normalizer", value=nested(5)), "deep"),
        "lists 100,000 deep": (
            lambda: json.dumps(whole)[:-1] + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}", "read"),
        "20 million lists": (lambda: '{"model": [' + "[]," * 20_000_000 + "[]]}", "lists and objects"),
        "20 million numbers": (lambda: '{"model": [' + "1," * 20_000_000 + "1]}", "values"),
        "a decoder's megabyte": (lambda: put(whole, "decoder", value={
            "type": "Replace", "pattern": {"String": "a"}, "content": "b" * 2**20}), "its content"),
        "a decoder that strips": (lambda: put(whole, "decoder", value={
            "type": "Strip", "content": "a", "start": 0, "stop": 10**12}), "strips stop"),
    }  # fmt: skip


def patterns(whole: Json) -> Lies:
    """Regular expressions: what backtracks, what is none, and what public decoders have."""
    return {
        "a replaced nothing": (lambda: put(whole, "normalizer", value=replaced("b", 1, {"String": ""})), "its pattern"),
        "backtracking": (lambda: regex(whole, "(a+)+$"), "its pattern"),
        "backtracking of blanks": (lambda: regex(whole, r"\s+$"), "its pattern"),
        "thirty questions": (lambda: regex(whole, "a?" * 30 + "a" * 30), "its pattern"),
        "a back reference": (lambda: regex(whole, r"(a*)\1b"), "its pattern"),
        "a normalizer's backtracking": (
            lambda: put(whole, "normalizer", value=replaced("b", 1, {"Regex": "(a+)+$"})), "its pattern"),
        "no pattern": (lambda: regex(whole, "("), "its pattern"),
        "Llama 3's pattern": (lambda: regex(whole, (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
            r"\s+(?!\S)|\s+")), None),
        "digits by three": (lambda: regex(whole, "[0-9][0-9][0-9]"), None),
    }  # fmt: skip


def kinds(whole: Json) -> Lies:
    """Steps and models of kinds that are not run, or that name what is not there."""
    lone = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<none>"}
    return {
        "an unknown normalizer": (lambda: put(whole, "normalizer", value={"type": "Evil"}), "known are"),
        "an unknown splitter": (lambda: put(whole, "pre_tokenizer", value={"type": "Evil"}), "known are"),
        "an unknown decoder": (lambda: put(whole, "decoder", value={"type": "Evil"}), "known are"),
        "an unknown model": (lambda: put(whole, "model", "type", value="Evil"), "known are"),
        "an end that is not there": (lambda: put(whole, "post_processor", value=ends("<gone>")), "special_tokens lack"),
        "an unknown token that is not there": (lambda: put(whole, "model", "unk_token", value="<gone>"), "unk_token"),
        "words without an unknown": (lambda: put(whole, "model", value=lone), "unk_token"),
        "a prefix of words": (  # once an abort: it was cut off within a letter
            lambda: put(whole, "model", "continuing_subword_prefix", value="a"), "its continuing_subword_prefix"),
        "no model": (lambda: put(whole, "model", value=None), "its model is None"),
        "a terminal's orders": (lambda: put(whole, "model", "type", value="\x1b[2J\x1b]0;x\x07"), "known are"),
    }  # fmt: skip


def vocabularies(whole: Json) -> Lies:
    """Tokens, ids and merges beyond any count, size or sense."""
    return {
        "200,000 added tokens": (lambda: added(whole, 200_000), "over 16,384 added"),
        "an added token of a megabyte": (lambda: added(whole, 1, "x" * 2**20), "an added token is"),
        "an added token of nothing": (lambda: added(whole, 1, ""), "an added token is"),
        "a token of 5,000": (lambda: put(whole, "model", "vocab", "x" * 5000, value=5), "short text"),
        "an id of −1": (lambda: put(whole, "model", "vocab", "x", value=-1), "expected 0 to"),
        "an id of 2^32": (lambda: put(whole, "model", "vocab", "x", value=2**32), "expected 0 to"),
        "an id of 10^400": (lambda: put(whole, "model", "vocab", "x", value=10**400), "expected 0 to"),
        "an id beyond the table": (lambda: put(whole, "model", "vocab", "x", value=2**23), "each token"),
        "ids of texts": (lambda: put(whole, "model", "vocab", value={"a": "0"}), "expected 0 to"),
        "a vocabulary of a list": (lambda: put(whole, "model", "vocab", value=["a"]), "its vocabulary"),
        "merges of numbers": (lambda: put(whole, "model", "merges", value=[1, 2]), ""),
        "merges of what is not there": (lambda: put(whole, "model", "merges", value=[["no", "body"]]), ""),
        "1,000,001 merges": (lambda: put(whole, "model", "merges", value=["a b"] * 1_000_001), "1,000,001 merges"),
    }  # fmt: skip


def not_json(whole: Json) -> Lies:
    """No JSON, or JSON that two parsers may read differently."""
    again = ',"model":' + json.dumps(whole["model"]) + "}"
    return {
        "the same field twice": (lambda: json.dumps(whole)[:-1] + again, "twice"),
        "NaN": (lambda: put(whole, "version", value=float("nan")), "NaN"),
        "half of it": (lambda: json.dumps(whole)[:4000], "read"),
    }  # fmt: skip


def named(folder: Path, whole: Json) -> list[Case]:
    return [
        (name, functools.partial(lambda make, words: tried(folder, make(), words), *how))
        for name, how in lies(whole).items()
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value, but for all of a vocabulary and its merges but some."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    found = [path] if path else []
    for key, each in inner[:40]:
        found += places(each, (*path, key))
    return found


def changed(folder: Path, whole: Json, seed: int) -> None:
    rng = random.Random(f"tokenizer {seed}")
    made, paths = copy.deepcopy(whole), places(whole)
    for part in rng.choices(list(STEPS), k=rng.randrange(3)):
        steps = rng.choices(STEPS[part], k=rng.randrange(1, 4))
        made[part] = {"type": "Sequence", INNER[part]: steps} if rng.random() < 0.7 else steps[0]
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        small = [path for path in paths if path[:2] not in (("model", "vocab"), ("model", "merges"))]
        path = rng.choice(small if rng.random() < 0.7 else paths)
        try:
            if rng.random() < 0.1:
                place = made
                for key in path[:-1]:
                    place = place[key]
                del place[path[-1]]
            else:
                made = put(made, *path, value=rng.choice(NASTY))
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    text = json.dumps(made)
    if rng.random() < 0.1:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice('{}[]",:0\\') + text[place + 1 :]
    use(load(folder, text))


def mutated(folder: Path, wholes: list[Json], count: int) -> list[Case]:
    return [
        (f"changed {seed}", functools.partial(changed, folder, wholes[seed % len(wholes)], seed))
        for seed in range(count)
    ]
