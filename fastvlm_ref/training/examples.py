"""The three pictures that ship with the tiny checkpoint, with a question each: drawn scenes of a seed of their own.

They serve `make demo` and `validate`; one has a word in it, one is wide and is padded by the image rule. Beside them,
the prompts that an app of a tiny build offers: what it was taught to answer, one of every form but "side".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvlm_ref.checkpoint.source import PROMPTS
from fastvlm_ref.training.drawing import draw
from fastvlm_ref.training.questions import ask
from fastvlm_ref.training.scenes import EXAMPLE_SEED, scene

SIDE = 256


@dataclass(frozen=True)
class Example:
    """Scene `index` under `name`, and the form of the question asked of it."""

    name: str
    index: int
    form: str


EXAMPLES = (
    Example("shapes.png", 255, "caption"),
    Example("number.png", 192, "number"),
    Example("wide.png", 730, "colour"),
)
ASKED = {  # prompts.json: title -> text, each a phrasing of `training.questions`
    "Describe": "Describe the picture.",
    "Count": "How many shapes are there?",
    "Colour of the square": "What colour is the square?",
    "What is red": "What shape is red?",
    "Where is the circle": "Where is the circle?",
    "Size of the triangle": "Is the triangle big or small?",
    "Read the word": "What word is written here?",
    "Read the number": "Which number do you see?",
}
FILES = (*(example.name for example in EXAMPLES), "examples.json")  # all that `write_examples` makes


def write_examples(folder: Path) -> None:
    """Writes the pictures as PNG and examples.json: [{image, prompt, answer}]."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for example in EXAMPLES:
        drawn = scene(EXAMPLE_SEED, example.index)
        question = ask(drawn, example.form, np.random.Generator(np.random.PCG64(example.index)))
        assert question is not None, example
        draw(drawn, SIDE).save(folder / example.name, optimize=True)
        rows.append({"image": example.name, "prompt": question.prompt, "answer": question.answer})
    (folder / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_prompts(folder: Path) -> None:
    """Writes prompts.json: [{title, text}]."""
    rows = [{"title": title, "text": text} for title, text in ASKED.items()]
    (folder / PROMPTS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
