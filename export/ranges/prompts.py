"""What the decoder is given: every picture's tokens in a prompt, a long text, random tokens, one token again and again.

Repeated and rare tokens are what drives a residual stream furthest (massive activations, arXiv 2402.17762): ids that
end an answer, and the longest and the shortest row of the embedding table.
It knows no layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from export.ranges.frames import Picture
from export.ranges.matrix import Table
from fastvlm.errors import TokenizerError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.config import IMAGE_TOKEN, TextConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt, stop_ids
from fastvlm_ref.tokenizer import Tokenizer

# 0.5B costs 0.7 GFLOP a position, 7B 13: the long text has 1,024 positions on the one and 306 on the other.
LONG, LONG_FLOP, LEAST_LONG = 1024, 4e12, 256
RANDOM, REPEATED = 128, 32  # positions
MOST_PICTURE_POSITIONS = 16_384  # hidden states of 235 MB on 7B; the shipped pictures and frames take a fifth
SUBJECTS = ("tall woman", "old dog", "boy", "captain of the ship", "small grey cat", "teacher", "crowd")
VERBS = ("looked at", "carried", "painted", "forgot", "followed", "measured", "bought", "drew", "repaired")
OBJECTS = ("the red bicycle", "a map of 1887", "seven apples", "the wooden door", "an umbrella", "the last train",
           "her brother's letter", "two lamps", "a bowl of soup", "the river", "nothing at all")  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One input of the decoder: its name in the result, and its embeddings (1, S, H)."""

    name: str
    embeds: Tensor

    @property
    def length(self) -> int:
        """S, its positions."""
        return self.embeds.shape[1]


@torch.no_grad()
def decoder_inputs(
    model: FastVLM, pictures: Sequence[Picture], tokens: Sequence[Tensor], table: Table, progress: Progress = SILENT
) -> list[Prompt]:
    """Returns all inputs; `tokens` are those of `pictures`, (1, T, H) each.

    Pictures past MOST_PICTURE_POSITIONS are left out, which is told to `progress.note`.
    """
    tokenizer = tokenizer_of(model)
    found: list[Prompt] = []
    positions = 0
    for picture, image in zip(pictures, tokens, strict=True):
        before, after = encode_prompt(tokenizer, picture.prompt, model.config.prompt)
        ids = torch.tensor([[*before, IMAGE_TOKEN, *after]])
        prompt = Prompt(picture.name, model.embed(ids, image).float())
        if positions + prompt.length > MOST_PICTURE_POSITIONS:
            progress.note(f"the decoder is scanned with the first {len(found)} of {len(pictures)} pictures")
            break
        found.append(prompt)
        positions += prompt.length
    texts = text_inputs(model, tokenizer, table)
    return found + [Prompt(name, model.embed(torch.tensor([ids])).float()) for name, ids in texts.items()]


def tokenizer_of(model: FastVLM) -> Tokenizer:
    """Returns the model's tokenizer; TokenizerError where it was made without."""
    if model.tokenizer is None:
        raise TokenizerError("this model has no tokenizer; load it with load_checkpoint, or set model.tokenizer")
    return model.tokenizer


def text_inputs(model: FastVLM, tokenizer: Tokenizer, table: Table) -> dict[str, list[int]]:
    """Returns the ids of every input without a picture, by name."""
    text, prompt = model.config.text, model.config.prompt
    found = {"long text": long_text(tokenizer, model)}
    known = min(tokenizer.size, text.vocab_size)
    found["random tokens"] = [int(raw % known) for raw in np.random.PCG64(0).random_raw(min(RANDOM, longest(text)))]
    common = found["long text"][len(found["long text"]) // 2]
    for id_ in dict.fromkeys((common, *stop_ids(tokenizer, prompt), table.longest, table.shortest)):
        found[f"token {id_} repeated"] = [id_] * min(REPEATED, longest(text))
    return found


def long_text(tokenizer: Tokenizer, model: FastVLM) -> list[int]:
    """Returns the ids of a question of many sentences, cut at as many positions as `longest` allows."""
    words: list[str] = []
    for sentence in sentences():
        words.append(sentence)
        if len(words) * 4 > longest(model.config.text):  # a sentence has more than four tokens
            break
    before, after = encode_prompt(tokenizer, " ".join(words), model.config.prompt)
    return [*before, *after][: longest(model.config.text)]


def sentences() -> Iterator[str]:
    """Gives sentences without end; the numbers of parts have no common divisor, so that 693 of them differ."""
    for at in count():
        subject, verb, thing = (part[at % len(part)] for part in (SUBJECTS, VERBS, OBJECTS))
        yield f"{at + 1}. The {subject} {verb} {thing}."


def longest(text: TextConfig) -> int:
    """Returns how many positions the long text has: what its work allows, and the model."""
    return int(min(LONG, text.max_positions, max(LEAST_LONG, LONG_FLOP / position_flop(text))))


def position_flop(text: TextConfig) -> int:
    """Returns the operations that the layers' weights take for one position: two for each weight."""
    attention = 2 * text.heads * text.head_dim + 2 * text.kv_width
    return 2 * text.layers * text.hidden_size * (attention + 3 * text.intermediate_size)
