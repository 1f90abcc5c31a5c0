"""What one training step sees, as a pure function of (stage, step), so that a resumed run sees the same.

Notable choices:
- scene numbers run on from step to step: no scene is ever seen twice within a stage, nor in two stages;
- a step is made in one background process while the step before it trains.
It does not know the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import Tokenizer
from fastvlm_ref.training.drawing import draw, pad_to_square
from fastvlm_ref.training.packing import IGNORED, Block, Packed, pack
from fastvlm_ref.training.questions import FORMS, Question, ask, describe, inventory, place
from fastvlm_ref.training.scenes import COLOURS, SHAPES, Scene, scene
from fastvlm_ref.training.stages import STAGES, Stage
from fastvlm_ref.training.supervision import labels


@dataclass(frozen=True)
class Batch:
    """One step: pixels uint8 (B, 3, N, N) or None, and the labels of the stage's objective."""

    pixels: Tensor | None
    packed: Packed | None = None
    token_labels: Tensor | None = None
    pooled_labels: Tensor | None = None
    words: Tensor | None = None  # (B, T, 2 or 4) ids of what each image token shows: kind, colour, place; or −100


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
        if stage.objective == "lookup":
            return Batch(_pixels(scenes, stage.image_size), pack(rows), words=self._words(scenes, stage.placed))
        return Batch(_pixels(scenes, stage.image_size), pack(rows), *dense)

    def _row(self, stage: Stage, drawn: Scene, rng: np.random.Generator) -> tuple[list[int], list[Block]]:
        before, _ = encode_prompt(self.tokenizer, "-")
        if stage.objective == "text":
            prefix = before + self.tokenizer.encode(describe(drawn))
        else:
            prefix = before + [IMAGE_TOKEN] * (stage.image_size // 64) ** 2
        if stage.objective == "lookup":
            questions = _lookups(drawn, stage.questions, rng, stage.one_by_one)
        else:
            questions = _questions(drawn, stage.questions, rng)
        return prefix, [self.block(question) for question in questions]

    def _words(self, scenes: list[Scene], placed: bool) -> Tensor:
        """The words as they stand inside a sentence, behind a space; each is one token of the vocabulary."""
        kinds = [IGNORED, *(self.tokenizer.encode(f" {kind}")[0] for kind in SHAPES)]
        colours = [IGNORED, *(self.tokenizer.encode(f" {colour}")[0] for colour in COLOURS)]
        seen = np.stack([labels(drawn)[0][:, :2] for drawn in scenes])  # (B, T, 2)
        words = np.stack((np.array(kinds)[seen[..., 0]], np.array(colours)[seen[..., 1]]), -1)
        if placed:
            words = np.concatenate((words, np.stack([self._place_words(drawn) for drawn in scenes])), -1)
        return torch.from_numpy(words)

    def _place_words(self, drawn: Scene) -> NDArray[np.int64]:
        """Returns (T, 2): up to two words for the place of the shape under each token of a square picture."""
        words = np.full((16, 2), IGNORED, np.int64)
        for shape in drawn.shapes if drawn.rows == 3 else ():
            alone, _ = labels(replace(drawn, shapes=(shape,), text=None))
            for column, word in enumerate(place(shape).split()):
                words[alone[:, 0] > 0, column] = self.tokenizer.encode(f" {word}")[0]
        return words

    def block(self, question: Question) -> Block:
        """Returns the ids of one question and its answer."""
        _, after = encode_prompt(self.tokenizer, question.prompt)
        return Block(after, [*self.tokenizer.encode(question.answer), self.end])


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


def _lookups(drawn: Scene, count: int, rng: np.random.Generator, one_by_one: bool) -> list[Question]:
    """Returns questions that name a shape, several of a form about one picture so that its shapes must be told apart;
    and two of the other forms."""
    others = [str(form) for form in rng.choice(("count", "word", "number", "caption", "shape"), 3, replace=False)]
    if one_by_one:
        lists = [inventory(drawn, rng, attribute) for attribute in ("colours", "sizes", "places", "places")]
        forms = ["colour"] + ["place"] * 2 + ["side"] * 3 + ["size"] * 2 + others
    else:
        lists = [inventory(drawn, rng) for _ in range(2)]
        forms = ["colour"] * 2 + ["place"] * 2 + ["side"] * 2 + ["size"] + others
    asked = dict.fromkeys([*lists, *(ask(drawn, form, rng) for form in forms)])  # without repetitions
    return [question for question in asked if question is not None][:count]


def _pixels(scenes: list[Scene], side: int) -> Tensor:
    pictures = np.stack([pad_to_square(draw(drawn, side)) for drawn in scenes])  # (B, N, N, 3)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


class _Steps(Dataset[list[Batch]]):
    """A source as a dataset whose items are whole steps."""

    def __init__(self, source: Source, stage: Stage) -> None:
        self.source, self.stage = source, stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Batch]:
        torch.set_num_threads(1)  # the other threads belong to the step that trains
        return [self.source.batch(self.stage, step, part) for part in range(self.stage.replicas)]


def batches(source: Source, stage: Stage, start: int, stop: int, *, background: bool = True) -> Iterator[list[Batch]]:
    """Yields the batches, one for each replica, of steps start … stop − 1, made ahead in a background process."""
    steps = _Steps(source, stage)
    if not background:
        yield from (steps[step] for step in range(start, stop))
        return
    # spawned, not forked: this process has threads, and a fork may deadlock on what they hold
    ahead: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 6, "multiprocessing_context": "spawn"}
    yield from DataLoader(steps, batch_size=None, sampler=range(start, stop), **ahead)
