"""What one training step sees, as a pure function of (stage, step), so that a resumed run sees the same.

Notable choices:
- scene numbers run on from step to step: no scene is ever seen twice within a stage, nor in two stages;
- a step is made in one background process while the step before it trains.
It does not know the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvlm.errors import FastVLMError
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import Tokenizer
from fastvlm_ref.training.drawing import draw, pad_to_square
from fastvlm_ref.training.finding import asked_mark, named_mark
from fastvlm_ref.training.packing import Block, Packed, pack
from fastvlm_ref.training.questions import FORMS, Question, ask, describe
from fastvlm_ref.training.scenes import Scene, scene
from fastvlm_ref.training.stages import STAGES, Stage
from fastvlm_ref.training.supervision import labels


@dataclass(frozen=True)
class Batch:
    """One step: pixels uint8 (B, 3, N, N) or None, and the labels of the stage's objective."""

    pixels: Tensor | None
    packed: Packed | None = None
    token_labels: Tensor | None = None
    pooled_labels: Tensor | None = None


class Source(Protocol):
    """Anything that can make the batch of a step, in one part for each replica."""

    def batch(self, stage: Stage, step: int, part: int) -> Batch:
        """Returns part `part` of `stage.replicas`; equal arguments give equal batches."""


class DrawnScenes:
    """The tiny checkpoint's data: scenes drawn when they are needed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.control("<|im_end|>")

    def batch(self, stage: Stage, step: int, part: int) -> Batch:
        """Returns the scenes of one part of the step, labelled for the stage's objective."""
        scenes = [scene(stage.seed, number) for number in _numbers(stage, step)[part :: stage.replicas]]
        dense = _dense_labels(scenes) if stage.objective in ("dense", "joint") else (None, None)
        if stage.objective == "dense":
            return Batch(_pixels(scenes, stage.image_size), None, *dense)
        rng = np.random.Generator(np.random.PCG64([stage.seed, _place(stage), step, part]))
        rows = [self._row(stage, drawn, rng) for drawn in scenes]
        if stage.objective == "text":
            return Batch(None, pack(rows))
        return Batch(_pixels(scenes, stage.image_size), pack(rows), *dense)

    def _row(self, stage: Stage, drawn: Scene, rng: np.random.Generator) -> tuple[list[int], list[Block]]:
        before, _ = encode_prompt(self.tokenizer, "-")
        if stage.objective == "text":
            prefix = before + self.tokenizer.encode(describe(drawn))
        else:
            prefix = before + [IMAGE_TOKEN] * (stage.image_size // 64) ** 2
        choose = _naming_questions if stage.objective == "finding" else _questions
        questions = choose(drawn, stage.questions, rng)
        return prefix, [self.block(question) for question in questions]

    def block(self, question: Question) -> Block:
        """Returns the ids of one question and its answer, with marks where it names a shape or is about to."""
        _, after = encode_prompt(self.tokenizer, question.prompt)
        answer = self.tokenizer.encode(question.answer)
        marks: dict[int, tuple[int, ...]] = {}
        for word, shape in question.names:
            marks[after.index(self._token(word))] = named_mark(shape)
        if question.names:
            marks[len(after) - 1] = asked_mark([shape for _, shape in question.names])
        place = len(after) - 1
        for shape in question.tells:  # "…, a red star": marked are the comma, the article and the colour
            place = (after + answer).index(self._token(shape.colour), place + 1)
            marks |= dict.fromkeys(range(place - 2, place + 1), asked_mark([shape]))
        return Block(after, [*answer, self.end], marks)

    def _token(self, word: str) -> int:
        (token,) = self.tokenizer.encode(f" {word}")  # every word of a scene is one token behind a space
        return token


def _dense_labels(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    tokens, pooled = zip(*(labels(drawn) for drawn in scenes), strict=True)
    return torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.stack(pooled))


def _numbers(stage: Stage, step: int) -> range:
    """Scene numbers of a step; each stage has its own hundred million."""
    start = 100_000_000 * _place(stage) + step * stage.pictures
    return range(start, start + stage.pictures)


def _place(stage: Stage) -> int:
    return list(STAGES).index(stage.name)


def _questions(drawn: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Returns up to `count` questions of different forms; the rarer forms come first where they can be asked."""
    weights = {"side": 3.0, "number": 2.5, "word": 2.5, "caption": 1.5}
    keys = {form: rng.random() ** (1 / weights.get(form, 1.0)) for form in FORMS}
    asked = (ask(drawn, form, rng) for form in sorted(FORMS, key=lambda form: -keys[form]))
    return [question for question in asked if question is not None][:count]


def _naming_questions(drawn: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Returns up to `count` questions, most of them naming shapes, several of a form about one picture so that its
    shapes must be told apart; a caption; and two of the other forms."""
    others = [str(form) for form in rng.choice(("count", "word", "number", "shape"), 2, replace=False)]
    forms = [*["side"] * 4, *["place"] * 3, "colour", "size", "caption", *others]
    asked = {question.prompt: question for form in forms if (question := ask(drawn, form, rng)) is not None}
    return list(asked.values())[:count]


def _pixels(scenes: list[Scene], side: int) -> Tensor:
    pictures = np.stack([pad_to_square(draw(drawn, side)) for drawn in scenes])  # (B, N, N, 3)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


class _Steps(Dataset[list[Batch] | FastVLMError]):
    """A source as a dataset whose items are whole steps, or what is wrong with one.

    An error is handed over as a value: a background process's exception would arrive with its traceback as text.
    """

    def __init__(self, source: Source, stage: Stage) -> None:
        self.source, self.stage = source, stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Batch] | FastVLMError:
        try:
            return [self.source.batch(self.stage, step, part) for part in range(self.stage.replicas)]
        except FastVLMError as error:
            return error


def batches(source: Source, stage: Stage, start: int, stop: int, *, background: bool = True) -> Iterator[list[Batch]]:
    """Yields the batches, one for each replica, of steps start … stop − 1, made ahead in a background process.

    Raises what the source raises, when its step is reached.
    """
    steps = _Steps(source, stage)
    for made in _ahead(steps, start, stop) if background else map(steps.__getitem__, range(start, stop)):
        if isinstance(made, FastVLMError):
            raise made
        yield made


def _ahead(steps: _Steps, start: int, stop: int) -> Iterable[list[Batch] | FastVLMError]:
    # spawned, not forked: this process has threads, and a fork may deadlock on what they hold
    ahead: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 6, "multiprocessing_context": "spawn"}
    return DataLoader(steps, batch_size=None, sampler=range(start, stop), worker_init_fn=_one_thread, **ahead)


def _one_thread(_: int) -> None:
    """In the background process alone: the other threads belong to the step that trains."""
    torch.set_num_threads(1)
