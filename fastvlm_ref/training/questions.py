"""What is asked about a scene: nine question forms, each in a few phrasings, with one right answer.

Notable choices:
- a form is asked only where its answer is beyond doubt ("the star" needs exactly one star);
- answers are balanced inside a form by construction, so that a model that does not look stays near the floor
  (place 1 in 9, colour 1 in 8, shape 1 in 6, count and side 1 in 4, size 1 in 2, words and numbers far less);
- the caption is canonical: shapes in reading order, then the text, so that "exactly right" is a fair measure.
It knows scenes, not pixels and not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvlm_ref.training.scenes import Scene, Shape

FORMS = ("colour", "shape", "count", "size", "place", "side", "word", "number", "caption")
COUNTS = ("one", "two", "three", "four")
ROW_NAMES, COLUMN_NAMES = ("top", "", "bottom"), ("left", "", "right")
PHRASINGS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is the {kind}?", "Which colour does the {kind} have?", "Tell me the colour of the {kind}."),
    "shape": ("What shape is {colour}?", "Which shape is {colour}?", "What is the {colour} thing?"),
    "count": ("How many shapes are there?", "How many shapes do you see?", "Count the shapes."),
    "size": ("Is the {kind} big or small?", "What size is the {kind}?", "How big is the {kind}?"),
    "place": (
        "Where is the {kind}?",
        "Where in the picture is the {kind}?",
        "In which part of the picture is the {kind}?",
    ),
    "side": (
        "Is the {kind} left of, right of, above or below the {other}?",
        "Where is the {kind}, seen from the {other}?",
        "On which side of the {other} is the {kind}?",
    ),
    "word": ("What word is written here?", "Read the word.", "Which word do you see?"),
    "number": ("What number is written here?", "Read the number.", "Which number do you see?"),
    "caption": ("Describe the picture.", "Describe the image.", "What is in the picture?"),
}


@dataclass(frozen=True)
class Question:
    """One question about a picture, with its only right answer."""

    form: str
    prompt: str
    answer: str
    names: tuple[tuple[str, Shape], ...] = ()  # the words of the prompt that stand for a shape, in their order
    tells: tuple[Shape, ...] = ()  # the shapes that the answer describes, in its order


def place(shape: Shape) -> str:
    """Returns the shape's cell in words: "top left", "left", "centre" …"""
    return f"{ROW_NAMES[shape.row]} {COLUMN_NAMES[shape.column]}".strip() or "centre"


def in_reading_order(scene: Scene) -> tuple[Shape, ...]:
    """Returns the shapes row by row, each row from the left."""
    return tuple(sorted(scene.shapes, key=lambda shape: (shape.row, shape.column)))


def caption(scene: Scene) -> str:
    """Returns the canonical caption: "a red star, a blue circle and the word cat"."""
    names = [_with_article(shape.name) for shape in in_reading_order(scene)]
    if scene.text is not None:
        names.append(f"the {'number' if scene.text.is_number else 'word'} {scene.text.text}")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe(scene: Scene) -> str:
    """Returns the scene in words, all that any question asks for: what the language model reads before it can see."""
    things = [((shape.row, shape.column), f"{place(shape)}: {shape.size} {shape.name}") for shape in scene.shapes]
    if scene.text is not None:
        kind = "number" if scene.text.is_number else "word"
        things.append(((scene.text.row, scene.text.column), f"{kind}: {scene.text.text}"))
    return "; ".join(thing for _, thing in sorted(things)) + "."


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def ask(scene: Scene, form: str, rng: np.random.Generator) -> Question | None:
    """Returns a question of `form`, or None where the scene gives no ground for one."""
    found = _fields(scene, form, rng)
    if found is None:
        return None
    fields, shapes = found
    prompt = PHRASINGS[form][int(rng.integers(len(PHRASINGS[form])))].format(**fields)
    named = [(shape.colour if form == "shape" else shape.kind, shape) for shape in shapes]
    names = tuple(sorted(named, key=lambda one: prompt.index(f" {one[0]}")))
    return Question(form, prompt, fields["answer"], names, in_reading_order(scene) if form == "caption" else ())


Fields = tuple[dict[str, str], tuple[Shape, ...]]  # what fills the phrasing, and the answer; the shapes it names


def _fields(scene: Scene, form: str, rng: np.random.Generator) -> Fields | None:
    if form == "count":
        return {"answer": COUNTS[len(scene.shapes) - 1]}, ()
    if form == "caption":
        return ({"answer": caption(scene)}, ()) if len(scene.shapes) <= 3 else None
    if form in ("word", "number"):
        fits = scene.text is not None and scene.text.is_number == (form == "number")
        return ({"answer": scene.text.text}, ()) if scene.text is not None and fits else None
    if form == "side":
        return _side(scene, rng)
    if form == "shape":
        return _shape_by_colour(scene, rng)
    return _about_one(scene, form, rng)


def _only_ones(scene: Scene) -> list[Shape]:
    """The shapes that are the only ones of their kind."""
    kinds = [shape.kind for shape in scene.shapes]
    return [shape for shape in scene.shapes if kinds.count(shape.kind) == 1]


def _about_one(scene: Scene, form: str, rng: np.random.Generator) -> Fields | None:
    candidates = _only_ones(scene)
    if not candidates or (form == "place" and scene.rows != 3):
        return None
    shape = candidates[int(rng.integers(len(candidates)))]
    answer = {"colour": shape.colour, "size": shape.size, "place": place(shape)}[form]
    return {"kind": shape.kind, "answer": answer}, (shape,)


def _shape_by_colour(scene: Scene, rng: np.random.Generator) -> Fields | None:
    colours = [shape.colour for shape in scene.shapes]
    candidates = [shape for shape in scene.shapes if colours.count(shape.colour) == 1]
    if not candidates:
        return None
    shape = candidates[int(rng.integers(len(candidates)))]
    return {"colour": shape.colour, "answer": shape.kind}, (shape,)


def _side(scene: Scene, rng: np.random.Generator) -> Fields | None:
    """Two shapes in one row or one column; upright and level pairs are asked equally often, so all four balance."""
    pairs = [(a, b) for a in _only_ones(scene) for b in _only_ones(scene) if (a.row == b.row) != (a.column == b.column)]
    level = [pair for pair in pairs if pair[0].row == pair[1].row]
    upright = [pair for pair in pairs if pair[0].row != pair[1].row]
    chosen = [pairs for pairs in (level, upright) if pairs]
    if not chosen:
        return None
    group = chosen[int(rng.integers(len(chosen)))]
    shape, other = group[int(rng.integers(len(group)))]
    level_answer = "left" if shape.column < other.column else "right"
    upright_answer = "above" if shape.row < other.row else "below"
    answer = level_answer if shape.row == other.row else upright_answer
    return {"kind": shape.kind, "other": other.kind, "answer": answer}, (shape, other)
