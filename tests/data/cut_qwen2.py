"""Cuts Qwen2's vocabulary down to what the golden prompts use: `python tests/data/cut_qwen2.py QWEN2_FOLDER`.

Writes `qwen2-cut/tokenizer.json` beside itself: every byte, the merges that the prompts' words go through, what those
merges make, and the added tokens, each under its own id. Why the ids stay: byte-pair encoding always applies the merge
of the lowest rank that fits; the merge that the whole vocabulary picks is kept, and whatever else was kept the whole
one had too, so the pick is the same at every step. Ids between are not there, as in a table with unused rows.
It takes the texts from `goldens/prompts.json` and knows nothing of templates beyond its text.
Qwen2's tokenizer is Apache-2.0 (QwenLM/Qwen-Agent, `qwen.tiktoken`); so is this part of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

DATA = Path(__file__).parent
TARGET = DATA / "qwen2-cut" / "tokenizer.json"
# What user text must not become, and words of everyday prompts, so that more than the golden rows can be tried
MORE = ("<|im_start|> <|im_end|> <|endoftext|> <image>", "How many red circles are there?", "a photo of a dog")

Pair = tuple[str, str]


def words(inner: Tokenizer) -> Iterator[str]:
    """The words, in byte letters, of every run of text that the golden prompts are encoded in."""
    goldens = json.loads((DATA / "goldens" / "prompts.json").read_text("utf-8"))
    texts = [goldens["template"].replace("{prompt}", row["prompt"]) for row in goldens["rows"]]
    runs = [run for text in texts for run in re.split(r"<\|im_start\|>|<\|im_end\|>|<image>", text) if run]
    for run in (*runs, *MORE):
        yield from (word for word, _ in inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(run)))


def merges_of(word: str, ranks: dict[Pair, int]) -> Iterator[Pair]:
    """The merges that byte-pair encoding applies to a word, in their order."""
    parts = list(word)
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            return
        yield best
        joined: list[str] = []
        for part in parts:  # every place of the pair, from the left
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined


def cut(whole: dict[str, Any], inner: Tokenizer) -> dict[str, Any]:
    """Returns tokenizer.json's content with the used part of the vocabulary."""
    model = whole["model"]
    ranks: dict[Pair, int] = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    used = {pair for word in set(words(inner)) for pair in merges_of(word, ranks)}
    kept = {left + right for left, right in used}
    vocab = {token: id_ for token, id_ in model["vocab"].items() if len(token) == 1 or token in kept}
    # The library numbers an added token by the vocabulary where it stands there, else after the count of tokens.
    vocab |= {token["content"]: token["id"] for token in whole["added_tokens"]}
    merges = [list(pair) for pair in sorted(used, key=ranks.__getitem__)]
    return whole | {"model": model | {"vocab": vocab, "merges": merges}}


def main(folder: str) -> None:
    """Reads the whole tokenizer of `folder`, writes the part."""
    source = Path(folder) / "tokenizer.json"
    part = cut(json.loads(source.read_text("utf-8")), Tokenizer.from_file(str(source)))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(part, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
