"""The reference's half of a comparison: what PyTorch computes from each sample, one sample ahead of the package.

Notable choices:
- the reference runs in a thread of its own, so that it and the package take a core each, every sum on one thread;
- it is one sample ahead, not more: what waits is bounded, however many pictures a user gives;
- a transcript is computed once and serves every comparison with it, and the self-test;
- who gives up (Ctrl-C) does not wait for a whole sample: between two steps the work looks whether it is still wanted.
It does not know the package.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm_ref.engine import Engine
from fastvlm_ref.image import pixels_to_tensor
from validation.rounding import RoundEachOp

Result = TypeVar("Result")
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Image tokens float32 (T, H) of one picture, in float32 and with every op rounded to fp16; its RGB bytes."""

    pixels: NDArray[np.uint8]
    tokens: Rows
    rounded: Rows


@dataclass(frozen=True)
class Transcript:
    """A greedy run: the prompt's embeddings (S, H), and per step the logits (V,) and the token they chose."""

    embeds: Rows
    logits: Sequence[Rows]
    ids: Sequence[int]


class Abandoned(Exception):
    """Nobody waits for the result any more."""


def check(stopped: Event) -> None:
    """Raises Abandoned where nobody waits any more."""
    if stopped.is_set():
        raise Abandoned


def encode(tokens_of: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8], stopped: Event) -> Encoded:
    """Returns the image tokens of RGB bytes (N, N, 3); `tokens_of` is the reference: (1, 3, N, N) -> (1, T, H)."""
    tensor = pixels_to_tensor(pixels)
    with torch.no_grad():
        check(stopped)
        tokens = tokens_of(tensor)[0].numpy()
        check(stopped)
        with RoundEachOp():  # type: ignore[no-untyped-call]  # torch does not annotate its base
            rounded = tokens_of(tensor)[0].numpy()
    return Encoded(pixels, tokens, rounded)


def splice(engine: Engine, ids: tuple[Sequence[int], Sequence[int]], image_tokens: Rows) -> Rows:
    """Returns embeddings (S, H): ids before the image, its tokens (T, H), ids after it."""
    return np.concatenate((engine.embed(ids[0]), image_tokens, engine.embed(ids[1])))


def transcribe(engine: Engine, embeds: Rows, steps: int, stopped: Event, stop_ids: Collection[int] = ()) -> Transcript:
    """Runs `steps` greedy tokens behind embeddings (S, H), fewer where one of `stop_ids` ends them.

    Without these it goes on past a stop id: what follows is no answer any more, but it is still arithmetic to compare.
    """
    engine.reset()
    engine.prefill(embeds[:-1])
    row, logits, ids = embeds[-1:], [], []
    for _ in range(steps):
        check(stopped)
        logits.append(engine.decode(row))
        ids.append(int(logits[-1].argmax()))
        if ids[-1] in stop_ids:
            break
        row = engine.embed(ids[-1:])
    return Transcript(embeds, logits, ids)


@contextmanager
def one_ahead() -> Iterator[Callable[[Iterable[Callable[[Event], Result]]], Iterator[Result]]]:
    """Gives a function that yields the results of tasks in order, each computed while the one before it is used.

    Tasks are taken from their iterable by the caller's thread. Each is given an event, set when the block is left:
    what it has not done by then nobody wants.
    """
    pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    stopped = Event()

    def results(tasks: Iterable[Callable[[Event], Result]]) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(task, stopped))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
