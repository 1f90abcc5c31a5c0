"""Prompts as strangers type them, for three tokenizers: no split, disguise or length makes a control token of text.

A case encodes a user's text, once as prompt, once as system text and once as a second question, by the reference and by
the bundle's host, and counts: added tokens stand in the ids as often as in those of a harmless text.
"""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from llama_tokenizer import write_llama
from ordeal import Case

from fastvlm.errors import BundleError, FastVLMError, PromptError, TokenizerError
from fastvlm.tokenizer_json import MAX_TEXT_BYTES
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import encode_follow_up, encode_prompt, prompt_record
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer
from validation.bundle_host.bundle import Bundle
from validation.bundle_host.prompt import Prompt

HARMLESS = "x"
SLOTS = ("<image>", "<|image_pad|>", "<im_patch>", "{prompt}", "{system}", "<0x0A>", "-200")
JOINTS = ("", " ", "\n", "\u200b", "\u00ad", "\ufeff", "\u0301", "\x00", "\r", "▁", "Ġ", "\ud800", "<", "|")
LENGTHS = (MAX_TEXT_BYTES - 1, MAX_TEXT_BYTES, MAX_TEXT_BYTES + 1, 10 * 2**20)
FILLS = (" ", "a", "1", "\n", "é", "图", "<|im_end|>", "👩\u200d", "\u0301", "ﷺ")


@dataclass
class Speaker:
    """One tokenizer with a template, both ways."""

    name: str
    tokenizer: Tokenizer
    host: Prompt
    template: str

    @property
    def controls(self) -> list[str]:
        return [*(token for token in self.tokenizer._added), *SLOTS]

    def added(self, ids: list[int]) -> Counter[int]:
        """How often each added token stands in ids."""
        return Counter(id_ for id_ in ids if id_ in self.tokenizer._guarded)


def llama(folder: Path) -> Path:
    """A tokenizer that has learnt the characters of its own controls, so that text could spell them."""
    text = "What is in this image? <s> </s> USER ASSISTANT: A chat <|im_end|> s > /"
    return write_llama(folder, text)


def speaker(name: str, home: Path, template: str, folder: Path) -> Speaker:
    tokenizer = load_tokenizer(home, 2**20)
    tokenizer.prompt = PromptConfig(template)
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    return Speaker(name, tokenizer, hosted(folder, tokenizer, PromptConfig(template)), template)


def hosted(folder: Path, tokenizer: Tokenizer, prompt: PromptConfig) -> Prompt:
    record = prompt_record(prompt) | {"bos_id": tokenizer.bos}
    metadata = {"kind": "vlm", "bundle": {"schema": "0.1"}, "files": {"tokenizer": "tokenizer.json"}, "prompt": record}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return Prompt(Bundle(folder, "mil"))


def texts(speaker: Speaker, seed: int) -> Iterator[str]:
    """Yields a control by one of its splits, whole, and among others."""
    rng = random.Random(f"{speaker.name} {seed}")
    splits = [(name, at) for name in speaker.controls for at in range(len(name) + 1)]
    name, at = splits[seed % len(splits)]
    joint = JOINTS[seed // len(splits) % len(JOINTS)]
    yield f"{name[:at]}{joint}{name[at:]}"
    yield f"{name[:at]}{name}{name[at:]}"
    parts = rng.choices([*speaker.controls, *JOINTS, "user\n", "system", name[:at], name[at:], name.upper()], k=8)
    yield "".join(parts) + "?"


def split(speaker: Speaker, seed: int) -> None:
    for text in texts(speaker, seed):
        if not text.strip():
            continue
        tokenizer, prompt = speaker.tokenizer, PromptConfig(speaker.template)
        _compare(speaker, encode_prompt(tokenizer, text, prompt), encode_prompt(tokenizer, HARMLESS, prompt))
        ids = encode_prompt(tokenizer, HARMLESS, PromptConfig(speaker.template, system=text))
        _compare(speaker, ids, encode_prompt(tokenizer, HARMLESS, PromptConfig(speaker.template, system=HARMLESS)))
        follow = encode_follow_up(tokenizer, text, prompt), encode_follow_up(tokenizer, HARMLESS, prompt)
        assert speaker.added(follow[0]) == speaker.added(follow[1]), text
        assert speaker.host.ids(text) == encode_prompt(tokenizer, text, prompt), text


def _compare(speaker: Speaker, ids: tuple[list[int], list[int]], harmless: tuple[list[int], list[int]]) -> None:
    for found, expected in zip(ids, harmless, strict=True):
        assert speaker.added(found) == speaker.added(expected), "a control token came out of text"
        assert all(0 <= id_ < speaker.tokenizer.size for id_ in found)


def long(speaker: Speaker, length: int, fill: str) -> None:
    """A text of so many bytes: taken up to the limit, refused behind it before anything is done with it."""
    each = len(fill.encode())
    text = fill * ((length - 1) // each) + "x" * (1 + (length - 1) % each)
    assert len(text.encode()) == length
    if length > MAX_TEXT_BYTES:
        for run in (functools.partial(encode_prompt, speaker.tokenizer), speaker.host.ids):
            with pytest.raises(PromptError, match="at most 262,144 bytes"):
                run(text)
        raise PromptError("refused by both")
    _compare(speaker, encode_prompt(speaker.tokenizer, text), encode_prompt(speaker.tokenizer, HARMLESS))
    assert speaker.host.ids(text[-2000:]) == encode_prompt(speaker.tokenizer, text[-2000:])


def prompts(speakers: list[Speaker], count: int) -> list[Case]:
    made: list[Case] = []
    for who in speakers:
        for number, fill in enumerate(FILLS):
            lengths = LENGTHS if number < 2 else LENGTHS[number % 4 :: 4]
            made += [(f"{who.name} {n} of {fill!r}", functools.partial(long, who, n, fill)) for n in lengths]
    for index in range(count - len(made)):
        who = speakers[index % len(speakers)]
        made.append((f"{who.name} split {index}", functools.partial(split, who, index // len(speakers))))
    return made


def refusal(folder: Path, tokenizer: Tokenizer, text: str) -> FastVLMError | None:
    """The error that a text makes in both hosts, None where it makes none; they must agree."""
    found: list[FastVLMError | None] = []
    prompt = PromptConfig("plain")
    for run in (lambda: encode_prompt(tokenizer, text, prompt), lambda: hosted(folder, tokenizer, prompt).ids(text)):
        try:
            run()
            found.append(None)
        except (TokenizerError, BundleError, PromptError) as error:
            found.append(error)
    assert (found[0] is None) == (found[1] is None), found
    return found[0]
