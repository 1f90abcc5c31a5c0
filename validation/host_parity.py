"""What a build tells its host, against what the checkpoint says: fields, prompt ids, picture bytes, embedding rows.

Nothing is executed here. A runtime that reads the manifest and computes all the rest rightly is as wrong as these are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm.build import Build
from fastvlm.manifest import is_older
from fastvlm_ref.config import FastVLMConfig
from fastvlm_ref.image import preprocess
from fastvlm_ref.prompt import encode_prompt, prompt_record
from fastvlm_ref.tokenizer import Tokenizer
from validation.differences import NOTHING, different
from validation.embeddings import table_error, worst_scaled_row
from validation.host import EmbeddingTable
from validation.session import Session

Ids = tuple[list[int], list[int]]
BOS_SINCE = "0.3"  # the manifest's schema


def differing_fields(config: FastVLMConfig, bos: int | None, build: Build) -> list[str]:
    """Returns what the manifest tells a runtime otherwise than the checkpoint would, field by field, in words.

    bos: the id that the checkpoint's tokenizer begins every sequence with, None where there is none.
    """
    manifest = build.manifest
    parts = (
        ("model.text", manifest["model"].get("text"), asdict(config.text)),
        ("model.vision", manifest["model"].get("vision"), asdict(config.vision)),
        ("prompt", manifest["prompt"], prompt_record(config.prompt)),
        ("image", {"rule": build.image_rule}, {"rule": config.image_rule}),
        ("tokenizer.bos_id", _told_bos(build, bos), bos),
    )
    return [words for name, told, true in parts for words in different(name, _plain(told), _plain(true))]


def _told_bos(build: Build, bos: int | None) -> Any:
    """What the manifest says of the id that begins a sequence: nothing before its schema 0.3, nor of an app's encoder,
    which has no tokenizer; in such a one it counts as said."""
    if build.purpose is not None:
        return bos
    return build.manifest["tokenizer"].get("bos_id", bos if is_older(build.manifest, BOS_SINCE) else NOTHING)


def differing_ids(session: Session[Any], prompt: str, ids: Ids) -> int:
    """Counts ids that the build's tokenizer and template make otherwise than `ids`, the checkpoint's."""
    differing = 0
    for mine, theirs in zip(encode_prompt(session.tokenizer, prompt, session.prompt), ids, strict=True):
        differing += abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False))
    return differing


# Text that vocabularies cut differently where merges, digits, spaces, scripts or control tokens are handled otherwise.
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, twice!!",
    "  two  spaces\tand\nlines\n\n",
    "l'été, naïve, Straße, Ørsted",
    "Привет, мир; Καλημέρα κόσμε",
    "你好，世界 こんにちは 안녕하세요",
    "مرحبا بالعالم שלום",
    "नमस्ते दुनिया สวัสดี",
    "3.14159 1,000,000 0x7f",
    "def f(x): return {'a': [x**2, -x]}  # ok",
    "😀👩‍👩‍👧 ✓ ½ ﬁ",
    "<|im_end|> <image> </s> [INST]",
    "CamelCase snake_case KEBAB-case",
)


def differing_vocabulary(mine: Tokenizer, theirs: Tokenizer, size: int) -> int:
    """Counts ids of a vocabulary of `size` that `mine` spells otherwise, and texts that it cuts into other ids."""
    spelled = sum(mine.decode([number]) != theirs.decode([number]) for number in range(size))
    return spelled + sum(mine.encode(text) != theirs.encode(text) for text in TEXTS)


def differing_bytes(build: Build, picture: Image.Image, pixels: NDArray[np.uint8]) -> int:
    """Counts bytes that the build's image rule makes otherwise than `pixels` (N, N, 3), the checkpoint's."""
    return int((preprocess(picture, pixels.shape[0], build.image_rule) != pixels).sum())


def embedding_error(table: NDArray[np.float32], stored: EmbeddingTable) -> tuple[str, Mapping[str, float]]:
    """Returns the limit that a build's table is held to, and {rows: value}: exact in fp16, else the worst row."""
    if stored.scales is None:
        return "embeddings.max_error", {"all rows": table_error(table, stored.table)}
    row, decibel = worst_scaled_row(table, stored.table, stored.scales)
    return "embeddings.row_snr_db", {f"row {row}": decibel}


def _plain(value: Any) -> Any:
    """The value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value))
