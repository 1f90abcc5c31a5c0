"""Several questions about one picture, one after the other, each asked with those before it and their answers.

What was said is kept as ids, not as text: an answer's ids are those that the model gave, so that an engine that
remembers (`fastvlm_ref.remembering`) finds every row of them in its cache, and only the new question is computed.
Any engine gives the same answers; one without memory reads everything again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm.progress import SILENT, Progress
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.engine import Engine
from fastvlm_ref.generate import GREEDY, Timings, check_fits, generate_ids, text_pieces
from fastvlm_ref.image import preprocess
from fastvlm_ref.prompt import encode_follow_up, encode_prompt, stop_ids
from fastvlm_ref.sampling import Sampling
from fastvlm_ref.tokenizer import Tokenizer


@dataclass
class Conversation:
    """One picture and what was said about it so far; `image_rule` makes it square, as `preprocess` takes it.

    `turns` counts the questions that have an answer, whole or as far as somebody listened.
    """

    engine: Engine
    tokenizer: Tokenizer
    image: Image.Image
    prompt: PromptConfig | None = None
    image_rule: str = "pad"
    turns: int = 0
    _before: list[int] = field(default_factory=list)
    _after: list[int] = field(default_factory=list)
    _pixels: NDArray[np.uint8] | None = None

    def ask(
        self,
        text: str,
        max_new_tokens: int = 256,
        *,
        sampling: Sampling = GREEDY,
        timings: Timings | None = None,
        progress: Progress = SILENT,
    ) -> Iterator[str]:
        """Yields the answer in pieces of whole characters; what was yielded when the iterator is left is remembered.

        Raises as `generate_text`, at the call; a question that has no answer is not part of the conversation.
        """
        timings = timings or Timings()
        before, after = self._asked(text)
        # Before the picture is made square, which takes long for a large side.
        check_fits(self.engine, self.engine.image_size, len(before) + len(after), max_new_tokens)
        if self._pixels is None:
            with timings.stage("preprocess"):
                self._pixels = preprocess(self.image, self.engine.image_size, self.image_rule)
        stops = stop_ids(self.tokenizer, self.prompt)
        ids = generate_ids(
            self.engine, self._pixels, before, after, sampling, max_new_tokens, stops, timings=timings,
            progress=progress,
        )  # fmt: skip
        return text_pieces(self.tokenizer, self._kept(self.turns + 1, before, after, ids))

    def check(self, text: str, then: Sequence[str] = (), max_new_tokens: int = 256) -> None:
        """Raises as `ask` for `text`, or one of those to be asked behind it, before anything has run.

        How long the answers between them will be nobody knows: they count as empty, so a later one may still not fit.
        """
        before, after = self._asked(text)
        count = len(before) + len(after) + sum(
            len(encode_follow_up(self.tokenizer, further, self.prompt)) for further in then
        )  # fmt: skip
        check_fits(self.engine, self.engine.image_size, count, max_new_tokens)

    def _asked(self, text: str) -> tuple[list[int], list[int]]:
        """Ids before the picture and behind it, with the conversation so far and the next question."""
        if self.turns:
            return self._before, self._after + encode_follow_up(self.tokenizer, text, self.prompt)
        return encode_prompt(self.tokenizer, text, self.prompt)

    def _kept(self, turn: int, before: list[int], after: list[int], ids: Iterator[int]) -> Iterator[int]:
        """Passes the answer's ids on, and keeps them behind the question, once there is an answer."""
        said = list(after)
        for id_ in ids:
            said.append(id_)
            self.turns, self._before, self._after = turn, before, said
            yield id_
        self.turns, self._before, self._after = turn, before, said
