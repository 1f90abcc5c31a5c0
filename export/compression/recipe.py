"""What is compressed how: the recipe that a user names or writes, held against the weights that there are.

    language: lut4            # a scheme, fp16 or mixed
    encoder: fp16             # a scheme or fp16
    embeddings: int8          # int8 or fp16
    layers:                   # for single layers, a scheme or fp16; the last pattern that fits wins
      language.lm_head: int8
      language.layers.*.mlp.down_proj: lut6
    budget: {bits: 5.0}       # with mixed: bits per weight on average, tables included; or {snr_db: 20}

What is not said stays fp16. A name alone, `lut4`, means `language: lut4`, `embeddings: int8`, `encoder: fp16`. Weights
of one axis or fewer than 2,048 elements stay fp16 whatever a recipe says: there is nothing to gain.
All that is wrong is said at once. Nothing is passed over: a pattern that fits no layer and a layer that cannot be held
are errors. Which scheme a layer of `mixed` gets is `budget.choose`'s, from noises that somebody measures.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from export.compression.recipe_text import joined, load_mapping, read_text
from export.compression.schemes import SCHEMES, Scheme, Shape
from fastvlm.build import TARGETS
from fastvlm.errors import UsageError
from fastvlm.quoting import short

FP16, MIXED = "fp16", "mixed"
PARTS: dict[str, tuple[str, ...]] = {  # key -> what it may say
    "language": (*SCHEMES, FP16, MIXED),
    "encoder": (*SCHEMES, FP16),
    "embeddings": ("int8", FP16),
}
TABLE = "embeddings"  # of one file, which no pattern singles out
LAYER = (*SCHEMES, FP16)
KEYS = (*PARTS, "layers", "budget")
NAMES = (*SCHEMES, MIXED)
LEAST_ELEMENTS = 2048
RANGES = {"bits": (4.0, 16.0), "snr_db": (5.0, 60.0)}
EXAMPLES = 3  # names that a message gives
LONGEST_PATTERN = 200  # letters; the longest name of a layer has 60


@dataclass(frozen=True)
class Budget:
    """How much `mixed` may take (`bits` per weight, tables included) or must keep (`snr_db` of each weight)."""

    kind: str
    value: float


DEFAULT_BUDGET = Budget("bits", 5.0)


@dataclass(frozen=True)
class Recipe:
    """The scheme's name, "fp16" or "mixed" for each part, and for the layers that patterns single out."""

    language: str = FP16
    encoder: str = FP16
    embeddings: str = FP16
    layers: tuple[tuple[str, str], ...] = ()
    budget: Budget | None = None

    def choice(self, name: str) -> str:
        """Returns what the weight `name` gets: a scheme's name, "fp16" or "mixed"; whatever its shape."""
        layer = name.removesuffix(".weight")
        for pattern, choice in reversed(self.layers):
            if fnmatchcase(layer, pattern):
                return choice
        part = layer.split(".")[0]
        return str(getattr(self, part)) if part in PARTS else FP16


def read_recipe(given: str | Path) -> Recipe:
    """Returns the recipe of a name (`NAMES`) or of a YAML file; UsageError that lists all that is wrong."""
    if given in NAMES:
        name = str(given)
        return Recipe(name, FP16, "int8", budget=DEFAULT_BUDGET if name == MIXED else None)
    path = Path(given)
    if isinstance(given, str) and not path.suffix and not os.path.exists(path):
        raise UsageError(
            f"{short(given)} is no scheme and no file; known: {', '.join((*NAMES, FP16))}; or a YAML file's path"
        )
    text = read_text(path)
    if all(not line or line.startswith("#") for line in map(str.strip, text.splitlines())):
        raise UsageError(f"recipe {path} states nothing; copy it again, or leave it out for fp16 alone")
    return parse_recipe(text, f"recipe {path}")


def requested(given: str | Path | None, target: str) -> Recipe:
    """Returns the recipe that was asked for, None and "fp16" for none, after all that can be told without a model.

    Raises UsageError as `read_recipe`, and for schemes that `target` cannot run.
    """
    recipe = Recipe() if given is None or given == FP16 else read_recipe(given)
    problems = list(_wrong_target(recipe, target))
    if problems:
        raise UsageError(f"recipe: {joined(problems)}")
    return recipe


def parse_recipe(text: str, title: str = "recipe") -> Recipe:
    """Returns the recipe that the YAML text holds; UsageError, which begins with `title`, lists all that is wrong."""
    found = load_mapping(text, title)
    problems = [f"unknown key {short(key)}; known: {', '.join(KEYS)}" for key in found if key not in KEYS]
    parts = {part: found.get(part, FP16) for part in PARTS}
    for part, choice in parts.items():
        problems += _wrong_choice(part, choice, PARTS[part])
    layers = found.get("layers") or {}
    if not isinstance(layers, dict):
        problems.append(f"layers: {short(layers)}, expected lines of the form `PATTERN: SCHEME`")
        layers = {}
    for pattern, choice in layers.items():
        if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
            problems.append(f"layers: {short(pattern)} is no pattern of at most {LONGEST_PATTERN} letters")
        else:
            problems += _wrong_choice(f"layers: {pattern}", choice, LAYER)
    problems += _wrong_budget(found.get("budget"), parts["language"])
    if problems:
        raise UsageError(f"{title}: {joined(problems)}")
    return Recipe(
        **parts,
        layers=tuple(layers.items()),
        budget=_budget(found.get("budget"), parts["language"]),
    )


def _wrong_choice(place: str, choice: Any, known: tuple[str, ...]) -> list[str]:
    if isinstance(choice, str) and choice in known:
        return []
    return [f"{place}: {short(choice)} is none of {', '.join(known)}"]


def _wrong_budget(budget: Any, language: Any) -> Iterator[str]:
    if budget is None:
        return
    if language != MIXED:
        yield f"budget: needs `language: {MIXED}`, found {short(language)}"
    if not isinstance(budget, dict) or len(budget) != 1 or not budget.keys() <= RANGES.keys():
        yield f"budget: {short(budget)}, expected one of {' and '.join(RANGES)}, as in {{bits: 5.0}}"
        return
    ((kind, value),) = budget.items()
    low, high = RANGES[kind]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        yield f"budget: {kind} is {short(value)}, expected a number from {low:g} to {high:g}"


def _budget(budget: dict[str, Any] | None, language: str) -> Budget | None:
    if budget is None:
        return DEFAULT_BUDGET if language == MIXED else None
    ((kind, value),) = budget.items()
    return Budget(kind, float(value))


def is_compressible(shape: Shape) -> bool:
    """Returns whether a weight of this shape is ever compressed: two axes or more, 2,048 elements or more."""
    return len(shape) >= 2 and math.prod(shape) >= LEAST_ELEMENTS


def check(recipe: Recipe, target: str, shapes: Mapping[str, Shape]) -> None:
    """Holds a recipe against target ("ane" or "gpu") and weights; UsageError that lists all that is wrong.

    shapes: every weight of the build by its name, which begins with its part: "language.layers.0.mlp.up_proj.weight".
    Patterns for a part that has no weights here are not tried.
    """
    problems = [*_wrong_target(recipe, target), *_idle_patterns(recipe, shapes), *_misfits(recipe, target, shapes)]
    if problems:
        raise UsageError(f"recipe: {joined(problems)}")


def assign(
    recipe: Recipe, target: str, shapes: Mapping[str, Shape], chosen: Mapping[str, Scheme | None] | None = None
) -> dict[str, Scheme | None]:
    """Returns the scheme of every weight, None for fp16, after `check`.

    chosen: what `budget.choose` found for the weights that `open_weights` names. KeyError for one it lacks.
    """
    check(recipe, target, shapes)
    found: dict[str, Scheme | None] = {}
    for name, shape in shapes.items():
        choice = recipe.choice(name) if is_compressible(shape) else FP16
        found[name] = (chosen or {})[name] if choice == MIXED else SCHEMES.get(choice)
    return found


def open_weights(recipe: Recipe, shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Returns the names of the weights that the recipe leaves to `mixed`."""
    return tuple(name for name, shape in shapes.items() if is_compressible(shape) and recipe.choice(name) == MIXED)


def _suitable(target: str, shape: Shape) -> list[Scheme]:
    return [scheme for scheme in SCHEMES.values() if scheme.fits(target) and scheme.problem(shape) is None]


def _wrong_target(recipe: Recipe, target: str) -> Iterator[str]:
    """Lines that the target cannot run; the embedding table is read by the host and has no target."""
    if target not in TARGETS:
        yield f"unknown target {short(target)}; known: {', '.join(TARGETS)}"
        return
    parts = [("language", recipe.language), ("encoder", recipe.encoder)]
    for place, choice in [*parts, *((f"layers: {pattern}", choice) for pattern, choice in recipe.layers)]:
        scheme = SCHEMES.get(choice)
        if scheme is not None and not scheme.fits(target):
            able = scheme.targets[0]
            other = f"use --target {able}, or lut6 or int8 on {target}"
            yield f"{place}: {choice} {scheme.kind}s run on {able} only; {other}"


def _idle_patterns(recipe: Recipe, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Patterns that no weight answers to."""
    layers = {name.removesuffix(".weight"): is_compressible(shape) for name, shape in shapes.items()}
    parts = {layer.split(".")[0] for layer in layers}
    for pattern, _ in recipe.layers:
        part = pattern.split(".")[0]
        if part == TABLE:
            yield f"layers: {short(pattern)} is no layer; write `{TABLE}: int8` on a line of its own"
            continue
        if part in PARTS and part not in parts:
            continue
        fitting = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not fitting:
            near = [layer for layer in layers if layer.split(".")[0] == part and layers[layer]] or list(layers)
            yield f"layers: {short(pattern)} fits no layer; there are {', '.join(near[:EXAMPLES])} ..."
        elif not any(layers[layer] for layer in fitting):
            yield f"layers: {short(pattern)} fits only weights that are too small and stay fp16, as {fitting[0]}"


def _misfits(recipe: Recipe, target: str, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Weights whose shape their scheme cannot hold, layers of the same place together, with the line that helps."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, shape in shapes.items():
        scheme = SCHEMES.get(recipe.choice(name))
        problem = scheme.problem(shape) if scheme and is_compressible(shape) else None
        if scheme and problem:
            pattern = re.sub(r"\.\d+(?=\.)", ".*", name.removesuffix(".weight"))
            found.setdefault((pattern, scheme.name, problem), []).append(name)
    for (pattern, scheme_name, problem), names in found.items():
        better = next(iter(_suitable(target, shapes[names[0]])), None)
        line = f"{pattern}: {better.name if better else FP16}"
        yield (
            f"{scheme_name} cannot hold {names[0].removesuffix('.weight')}{_and_more(names)}: it {problem}; "
            f"write `{line}` as the last line under layers"
        )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
