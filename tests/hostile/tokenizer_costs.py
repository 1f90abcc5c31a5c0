"""Tokenizers within every limit of their own that make much of a long prompt, and what must come of it.

Each is a kind of splitter, as it costs most, with and without a normalizer that makes the text longer, on the longest
prompt and on the longest of its own fill that is still worked on.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ordeal import Case

from fastvlm.tokenizer_json import MAX_TEXT_BYTES
from fastvlm.tokenizer_room import MAX_SPLIT_BYTES
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import load_tokenizer
from validation.bundle_host.bundle import Bundle
from validation.bundle_host.prompt import Prompt

Json = dict[str, Any]
DIGITS: Json = {"type": "Digits", "individual_digits": True}
MARKS: Json = {"type": "Punctuation", "behavior": "Isolated"}
BYTES: Json = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}
BLANKS: Json = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def split(text: str) -> Json:
    return {"type": "Split", "pattern": {"String": text}, "behavior": "Isolated", "invert": False}


def row(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# By name: splitter, and the fill of which it makes most pieces
SPLITTERS: dict[str, tuple[Json | None, str]] = {
    "no splitter": (None, "b"),
    "digits": (DIGITS, "7"),
    "8 splits": (row(*[split("b")] * 8), "b"),
    "marks": (MARKS, "!"),
    "bytes": (BYTES, "b "),
    "letters of two bytes": (BYTES, "é"),
    "3 of bytes": (row(*[BYTES] * 3), "é"),
    "marks between digits": (row(DIGITS, BLANKS, DIGITS), "7"),
}


def growing(fill: str) -> Json:
    """Each `a` becomes 64 bytes of the fill."""
    return {"type": "Replace", "pattern": {"String": "a"}, "content": fill * (64 // len(fill.encode()))}


def written(folder: Path, normalizer: Json | None, splitter: Json | None) -> Path:
    """A folder with a tokenizer.json, and a bundle's metadata.json beside it."""
    model = {"type": "BPE", "vocab": {sign: at for at, sign in enumerate("ab7! éĠÃ©▁")}, "merges": []}
    made = {
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": splitter,
        "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(made), "utf-8")
    turns = {"system": "", "system_turn": "", "before": "", "after": "\n{prompt}\n"}
    prompt = turns | {"bos_id": None, "stop_ids": [], "controls": []}
    metadata = {"kind": "vlm", "bundle": {"schema": "0.1"}, "files": {"tokenizer": "tokenizer.json"}, "prompt": prompt}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def reference(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(folder, 2**20)
    encode_prompt(tokenizer, text, PromptConfig("plain"))


def host(folder: Path, text: str) -> None:
    Prompt(Bundle(folder, "mil")).ids(text)


def costly(folder: Path, hosts: Sequence[Callable[[Path, str], None]] = (reference, host)) -> list[Case]:
    """Cases: every splitter, the text as typed and grown, the longest prompt and the longest that is worked on."""
    cases: list[Case] = []
    for name, (splitter, fill) in SPLITTERS.items():
        for grown in (False, True):
            sign, times = ("a", 64) if grown else (fill, 1)
            home = written(folder / f"{name} {grown}", growing(fill) if grown else None, splitter)
            most = MAX_TEXT_BYTES // len(sign.encode())
            for count in sorted({most, min(most, MAX_SPLIT_BYTES // times - 1)}):
                for run in hosts:
                    case = f"{name}{', grown' * grown}, {count:,} of {sign!r}: {run.__name__}"
                    cases.append((case, functools.partial(run, home, sign * count)))
    return cases
