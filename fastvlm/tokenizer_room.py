"""How much a prompt may become inside a tokenizer, reckoned before the library computes it.

A short text costs little whatever a tokenizer.json asks for; a long one, made 64 times as long and cut into single
letters, takes minutes and gigabytes. So the runs of one prompt share two bounds, counted in bytes of UTF-8:
- text times what the normalizer may make of it: `MAX_GROWN_BYTES`; it takes up to 32 bytes a byte;
- what the normalizer did make, times what the splitter may: `MAX_SPLIT_BYTES`; each piece takes 350 bytes, and a
  step 0.5 s a million of them. Eight steps on that much: 4 s and 365 MB.
An answer is bounded too, by its tokens' bytes times what the decoder may make of them: `MAX_ANSWER_BYTES`, because a
stream that cannot be cut is decoded anew with each token.
It does not know what the steps do (`tokenizer_steps` says how a text grows by them), nor the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastvlm.errors import PromptError, TokenizerError

# The longest prompt has 262,144 bytes, and there are a few more of a template. NFKC may make 11 times as much of it.
MAX_GROWN_BYTES = 12 * 262_144
# Llama's Metaspace makes 3 times as much. Above 2^20 pieces the library's list doubles to beyond half a gigabyte.
MAX_SPLIT_BYTES = 2**20
MAX_ANSWER_BYTES = 2**20  # a context of 32,768 holds about 130,000


@dataclass(frozen=True)
class Growth:
    """How many times as long a tokenizer may make a text: its normalizer, then its splitter; its decoder."""

    normalizer: float = 1.0
    splitter: float = 1.0
    decoder: float = 1.0


class Room:
    """What is left for the further runs of one prompt, or for the further tokens of one answer."""

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self._grown = self._split = self._answer = 0.0

    def normal(self, text: str, normalizer: Any) -> str:
        """Returns what the library's normalizer (None: nothing) makes of a run, where both bounds hold."""
        self.take_text(text)
        normal = text if normalizer is None else str(normalizer.normalize_str(text))
        self.take_normal(normal)
        return normal

    def take_text(self, text: str) -> None:
        """Raises PromptError for a text that the normalizer could make too long, before it does."""
        self._grown += _held(text, self._growth.normalizer, self._grown, "normalizer", MAX_GROWN_BYTES)

    def take_normal(self, text: str) -> None:
        """Raises PromptError for a normalized text that has too many pieces, before it is split."""
        self._split += _held(text, self._growth.splitter, self._split, "pre_tokenizer", MAX_SPLIT_BYTES)

    def token(self, id_: int, tokenizer: Any) -> int:
        """Returns the id; raises TokenizerError where the text of an answer could become too long by it."""
        self._answer += len((tokenizer.id_to_token(id_) or "").encode("utf-8", "replace")) * self._growth.decoder
        if self._answer > MAX_ANSWER_BYTES:
            raise TokenizerError(
                f"the decoder of tokenizer.json may make over {MAX_ANSWER_BYTES:,} bytes of this answer, more than any "
                "sensible one has; lower --max-new-tokens, or use the tokenizer of the model that was fine-tuned"
            )
        return id_


def _held(text: str, times: float, before: float, part: str, most: int) -> float:
    taken = len(text.encode("utf-8", "replace")) * times
    if before + taken > most:
        raise PromptError(
            f"the prompt is too long for its tokenizer: the {part} of tokenizer.json may make {before + taken:,.0f} "
            f"bytes of it, at most {most:,} are worked on; shorten the text, or use the tokenizer of the model that "
            "was fine-tuned"
        )
    return taken
