"""The generation loop, once for every engine: budget, features, prefill, and one decode per token.

Notable choices:
- everything that can be refused is refused when the generator is made, before the first step and before any output;
- all positions but the last are prefilled, the last is decoded: an exported `prefill` needs no head. An engine that
  decodes many rows together is given as many of the prompt's last ones, and its weights are read once less;
- the ids that end an answer are not part of it.
Files and templates belong to `fastvlm_ref.image` and `fastvlm_ref.prompt`; which runtime computes, the engine knows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm.errors import ExecutionError, PromptError, UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.engine import LARGER_BUILD, Engine
from fastvlm_ref.image import preprocess
from fastvlm_ref.prompt import encode_prompt, stop_ids
from fastvlm_ref.sampling import Sampling, choose
from fastvlm_ref.tokenizer import Tokenizer

GREEDY = Sampling()


@dataclass
class Timings:
    """Seconds that each stage of one answer took; `decode` has one entry for each token after the first."""

    preprocess: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0  # the decode step of the prompt's last position, unless it went along with the others
    decode: list[float] = field(default_factory=list)
    prompt_positions: int = 0

    @property
    def time_to_first_token(self) -> float:
        """From the picture in memory to the first token."""
        return self.preprocess + self.encode + self.prefill + self.first_token

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed after the first token; None where there was no further one."""
        return len(self.decode) / sum(self.decode) if self.decode else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the stage of that name."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if name == "decode":
            self.decode.append(seconds)
        else:
            setattr(self, name, getattr(self, name) + seconds)


def generate_ids(
    engine: Engine,
    pixels: NDArray[np.uint8] | None,
    ids_before: Sequence[int],
    ids_after: Sequence[int],
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 256,
    stop_ids: Collection[int] = (),
    *,
    timings: Timings | None = None,
    progress: Progress = SILENT,
) -> Iterator[int]:
    """Yields the ids of the answer; `pixels` (N, N, 3) stand between the two rows of ids, None means text alone.

    Raises, at the call and not at the first token, PromptError where the prompt is empty or prompt and answer do not
    fit into the context, UsageError where `max_new_tokens` is below 1.
    """
    check_fits(engine, None if pixels is None else pixels.shape[0], len(ids_before) + len(ids_after), max_new_tokens)
    timings = timings or Timings()
    stops = frozenset(stop_ids)
    return _steps(engine, pixels, ids_before, ids_after, sampling, max_new_tokens, stops, timings, progress)


def check_fits(engine: Engine, side: int | None, text: int, max_new_tokens: int) -> None:
    """Raises as `generate_ids` for an image of `side` pixels (None: no image), `text` ids, and the answer."""
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    image_tokens = 0 if side is None else engine.tokens_at(side)
    check_budget(text + image_tokens, max_new_tokens, engine.context, engine.advice.larger_context)


def check_budget(positions: int, max_new_tokens: int, context: int, larger: str = LARGER_BUILD) -> None:
    """Raises PromptError unless the prompt has positions and, with the answer's, they fit into the context.

    `larger` says how one gets a larger context: of a build, unless told otherwise.
    """
    if not positions:
        raise PromptError("the prompt has no positions; there is nothing to continue")
    if positions + max_new_tokens > context:
        raise PromptError(
            f"the prompt takes {positions} positions and the answer up to {max_new_tokens}, together "
            f"{positions + max_new_tokens} of a context of {context}; shorten the prompt, lower --max-new-tokens "
            f"or {larger}"
        )


def generate_text(
    engine: Engine,
    tokenizer: Tokenizer,
    image: Image.Image | None,
    text: str,
    *,
    prompt: PromptConfig | None = None,
    image_rule: str = "pad",
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 256,
    timings: Timings | None = None,
    progress: Progress = SILENT,
) -> Iterator[str]:
    """Yields the answer in pieces of whole characters; joined they are its ids decoded.

    Raises as `generate_ids`, `encode_prompt` and `preprocess` do, all of it at the call.
    """
    timings = timings or Timings()
    before, after = encode_prompt(tokenizer, text, prompt)
    # Before the picture is made square, which takes long for a large side.
    check_fits(engine, None if image is None else engine.image_size, len(before) + len(after), max_new_tokens)
    with timings.stage("preprocess"):
        pixels = None if image is None else preprocess(image, engine.image_size, image_rule)
    stops = stop_ids(tokenizer, prompt)
    return text_pieces(
        tokenizer,
        generate_ids(
            engine, pixels, before, after, sampling, max_new_tokens, stops, timings=timings, progress=progress
        ),
    )


def text_pieces(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """Yields the text of ids in pieces of whole characters, each as soon as it is whole."""
    stream = tokenizer.stream()
    for id_ in ids:
        piece = stream.push(id_)
        if piece:
            yield piece
    rest = stream.finish()
    if rest:
        yield rest


def _steps(
    engine: Engine,
    pixels: NDArray[np.uint8] | None,
    before: Sequence[int],
    after: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    stops: frozenset[int],
    timings: Timings,
    progress: Progress,
) -> Iterator[int]:
    embeds = _prompt_rows(engine, pixels, before, after, timings, progress)
    timings.prompt_positions = len(embeds)
    engine.reset()
    with timings.stage("prefill"), progress.stage("Reading the prompt"):
        last = min(len(embeds), engine.together)
        engine.prefill(embeds[:-last])
        logits = engine.decode(embeds[-last:]) if last > 1 else None
    generator = sampling.generator()
    row, stage = embeds[-1:], "first_token"
    for index in range(max_new_tokens):
        with timings.stage(stage):
            logits = engine.decode(row) if logits is None else logits
            id_ = choose(logits, sampling, generator, engine.advice.not_numbers)
        if id_ in stops:
            return
        yield id_
        if index + 1 < max_new_tokens:
            row, stage, logits = engine.embed([id_]), "decode", None


def _prompt_rows(
    engine: Engine,
    pixels: NDArray[np.uint8] | None,
    before: Sequence[int],
    after: Sequence[int],
    timings: Timings,
    progress: Progress,
) -> NDArray[np.float32]:
    """Returns the prompt's embeddings (S, H): rows of ids, image tokens, rows of ids."""
    parts = [engine.embed(before)] if before else []
    if pixels is not None:
        with timings.stage("encode"), progress.stage("Looking at the picture"):
            features = engine.encode_image(pixels)  # (T, H)
        if not np.isfinite(features).all():
            raise ExecutionError(
                "the image features hold NaN or infinity; the weights are damaged, or a value left the range of fp16: "
                f"{engine.advice.not_numbers}"
            )
        parts.append(features)
    if after:
        parts.append(engine.embed(after))
    return np.concatenate(parts)
