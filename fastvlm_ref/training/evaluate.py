"""How often a checkpoint answers exactly right on unseen scenes: per question form, seeing and with the picture black.

Notable choices:
- the scenes come from a seed that training never uses, the forms are balanced, one question is asked of each scene;
- an answer counts only if every token up to the end of the turn is the expected one (greedy, whole text compared);
- greedy decoding runs in batches: questions of one length are stacked, the picture behind the same prefix.
It does not know how the model was trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastvlm.progress import SILENT, Progress
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.image import pixels_to_tensor, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.kv_cache import KVCache
from fastvlm_ref.prompt import encode_prompt, stop_ids
from fastvlm_ref.tokenizer import Tokenizer
from fastvlm_ref.training.drawing import draw
from fastvlm_ref.training.questions import FORMS, Question, ask
from fastvlm_ref.training.scenes import TEST_SEED, Scene, scene

LONGEST_ANSWER = 40  # tokens
BATCH = 50


# what the embedded checkpoint must reach; a share of exactly right answers
LEAST_OVERALL, LEAST_PER_FORM, MOST_BLACK = 0.9, 0.8, 0.4
OVERALL = "overall"


@dataclass(frozen=True)
class Asked:
    """One question of the test, with its scene."""

    scene: Scene
    question: Question


@dataclass
class Score:
    """Right answers per form, of how many."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FORMS, 0))
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # prompt, expected, given

    def share(self, form: str | None = None) -> float:
        """The share that is exactly right, of one form or of all questions."""
        forms = FORMS if form is None else (form,)
        asked = sum(self.asked[form] for form in forms)
        return sum(self.right[form] for form in forms) / asked if asked else float("nan")


@dataclass(frozen=True)
class Report:
    """Per form and overall: how many were asked, the share right when seeing, and with the picture black."""

    rows: dict[str, tuple[int, float, float]]

    @property
    def missed(self) -> list[str]:
        """Every limit that does not hold, in words with its value."""
        _, seeing, black = self.rows[OVERALL]
        problems = []
        if seeing < LEAST_OVERALL:
            problems.append(f"overall {seeing:.1%} right, expected at least {LEAST_OVERALL:.0%}")
        for form, (_, share, _) in self.rows.items():
            if share < LEAST_PER_FORM and form != OVERALL:
                problems.append(f"{form} {share:.1%} right, expected at least {LEAST_PER_FORM:.0%}")
        if black > MOST_BLACK:
            problems.append(f"{black:.1%} right with the picture black, expected at most {MOST_BLACK:.0%}")
        return problems

    @property
    def good(self) -> bool:
        """Whether every limit holds."""
        return not self.missed

    def as_json(self) -> str:
        """Returns the rows and the verdict as one JSON document."""
        rows = {form: dict(zip(("asked", "right", "black"), row, strict=True)) for form, row in self.rows.items()}
        return json.dumps({"good": self.good, "missed": self.missed, "rows": rows}, indent=1)


def report(model: FastVLM, tokenizer: Tokenizer, count: int, *, progress: Progress = SILENT) -> Report:
    """Returns the accuracy on `count` unseen questions, seeing and black."""
    asked = unseen_questions(count)
    seeing = evaluate(model, tokenizer, asked, progress=progress)
    black = evaluate(model, tokenizer, asked, black=True, progress=progress)
    rows = {form: (seeing.asked[form], seeing.share(form), black.share(form)) for form in FORMS if seeing.asked[form]}
    return Report({**rows, OVERALL: (len(asked), seeing.share(), black.share())})


def unseen_questions(count: int, seed: int = TEST_SEED) -> list[Asked]:
    """Returns `count` questions, the forms in turn, each about a scene of its own."""
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    asked: list[Asked] = []
    index = 0
    while len(asked) < count:
        drawn, index = scene(seed, index), index + 1
        question = ask(drawn, FORMS[len(asked) % len(FORMS)], rng)
        if question is not None:
            asked.append(Asked(drawn, question))
    return asked


def evaluate(
    model: FastVLM, tokenizer: Tokenizer, asked: Sequence[Asked], *, black: bool = False, progress: Progress = SILENT
) -> Score:
    """Returns the score over `asked`; `black` puts zeros in every picture's place, to see what guessing earns."""
    score = Score()
    with progress.stage("Answering blind" if black else "Answering", len(asked)) as advance, torch.inference_mode():
        for some in _batches(tokenizer, asked):
            pixels = torch.cat([_pixels(one.scene, model) for one in some])
            answers = _answers(model, tokenizer, pixels * 0 if black else pixels, [one.question for one in some])
            for one, answer in zip(some, answers, strict=True):
                right = answer == one.question.answer
                score.asked[one.question.form] += 1
                score.right[one.question.form] += right
                if not right:
                    score.wrong.append((one.question.prompt, one.question.answer, answer))
            advance(len(some))
    return score


def _batches(tokenizer: Tokenizer, asked: Sequence[Asked]) -> list[list[Asked]]:
    """Groups questions whose prompts have equally many ids, at most 50 together."""
    by_length: dict[int, list[Asked]] = {}
    for one in asked:
        _, after = encode_prompt(tokenizer, one.question.prompt)
        by_length.setdefault(len(after), []).append(one)
    return [same[at : at + BATCH] for same in by_length.values() for at in range(0, len(same), BATCH)]


def _pixels(drawn: Scene, model: FastVLM) -> Tensor:
    side = model.config.vision.image_size
    return pixels_to_tensor(preprocess(draw(drawn), side, model.config.image_rule))  # (1, 3, N, N)


def _answers(model: FastVLM, tokenizer: Tokenizer, pixels: Tensor, questions: Sequence[Question]) -> list[str]:
    """Greedy answers to questions of one length, decoded side by side until every one has ended."""
    prompts = [encode_prompt(tokenizer, question.prompt) for question in questions]
    ids = torch.tensor([[*before, IMAGE_TOKEN, *after] for before, after in prompts])
    embeds = model.embed(ids, model.encode_image(pixels))  # (B, S, H)
    cache = KVCache(model.config.text, embeds.shape[1] + LONGEST_ANSWER, batch=len(questions))
    stops = set(stop_ids(tokenizer, model.config.prompt))
    given: list[list[int]] = [[] for _ in questions]
    open_rows = set(range(len(questions)))
    for _ in range(LONGEST_ANSWER):
        chosen = model.decoder.head(model.decoder(embeds, cache)[:, -1]).argmax(-1)  # (B,)
        for row in sorted(open_rows):
            if int(chosen[row]) in stops:
                open_rows.discard(row)
            else:
                given[row].append(int(chosen[row]))
        if not open_rows:
            break
        embeds = model.decoder.embed_tokens(chosen[:, None])
    return [tokenizer.decode(ids) for ids in given]
