"""Which weight of this build is stored how: the recipe held against the model, with what had to be measured for it.

Schemes of few bits choose their scales and palettes by the error that they make in a layer's output, which takes the
mean squares of its inputs over calibration pictures; `mixed` also measures what each scheme costs each layer, and fits
a budget (`export.compression`). Everything that can be refused is refused before anything is measured.
It writes nothing and knows no programs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from export.chunks import head_split
from export.compression.budget import QualityBudget, SizeBudget, choose
from export.compression.calibration import Statistics, calibrate
from export.compression.recipe import FP16, MIXED, Recipe, assign, open_weights, requested
from export.compression.schemes import SCHEMES, Scheme, Shape
from export.compression.sensitivity import candidates, measure
from export.compression.table import Table
from export.encoder import EncoderGraph
from export.parameters import GraphWeight
from export.plan import PARTS, ExportPlan
from export.sizes import LANGUAGE, language_shapes, weight_bytes
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import Sample

CALIBRATED = ("int4", "lut4")  # of 16 values a weight; more are good enough without
LARGEST = SCHEMES["int8"]  # what `mixed` is counted as before it is decided


@dataclass(frozen=True)
class Compression:
    """How the weights of one build are stored; what `schemes` does not name stays fp16.

    schemes: by layer, `language.layers.0.mlp.up_proj` or `encoder.projector_0`; importance: by the same names, float32
    (K,); embeddings: "fp16" or "int8"; name: what the user called it; table: what `mixed` measured and chose.
    """

    name: str = FP16
    recipe: Recipe = field(default_factory=Recipe)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    encoder_saving: int = 0  # bytes that the encoder takes less than in fp16
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    table: Table | None = None

    @property
    def embeddings(self) -> str:
        """How embeddings.bin is stored."""
        return self.recipe.embeddings

    def of(self, weight: GraphWeight) -> GraphWeight:
        """Returns a graph's weight with its scheme and importance."""
        scheme = self.schemes.get(weight.layer) if weight.name.endswith(".weight") else None
        if scheme is None:
            return weight
        importance = self.importance.get(weight.layer)
        if importance is not None and weight.columns is not None:
            importance = importance[weight.columns]
        return replace(weight, scheme=scheme, importance=importance)

    def bytes(self, layer: str, shape: Shape) -> int:
        """Returns what a weight of that layer and shape takes in a weight file, where its tables are blobs too."""
        return weight_bytes(self.schemes.get(layer), shape)

    def layers(self, *prefixes: str) -> set[str]:
        """Returns the compressed layers whose names begin so."""
        return {layer for layer in self.schemes if layer.startswith(prefixes)}

    def key(self, part: str) -> dict[str, Any]:
        """Returns what the packages of a part ("language" or "encoder") depend on, as JSON."""
        importance = hashlib.sha256()
        layers = sorted(self.layers(f"{part}."))
        for layer in layers:
            if layer in self.importance:
                importance.update(layer.encode() + b"\0" + self.importance[layer].numpy().tobytes())
        schemes = {layer: self.schemes[layer].name for layer in layers}
        return {"schemes": schemes, "importance": importance.hexdigest()}

    def as_json(self, parts: Sequence[str] = PARTS) -> dict[str, Any]:
        """Returns the manifest's entry: what was asked for, how many layers got which scheme, and each of them.

        parts: those that the build has.
        """
        record: dict[str, Any] = {"scheme": self.name}
        if self.name == FP16:
            return record
        for part in parts:
            record[part] = dict(sorted(Counter(self.schemes[layer].name for layer in self.layers(f"{part}.")).items()))
        if "language" in parts:
            record["embeddings"] = self.embeddings
        record["recipe"] = asdict(self.recipe)
        record["layers"] = {layer: scheme.name for layer, scheme in self.schemes.items()}
        if self.calibration is not None:
            record["calibration"] = dict(self.calibration)
        if self.table is not None:
            record["sensitivity"] = self.table.as_json()
        return record


def intended(model: FastVLM, plan: ExportPlan, quantize: str | Path | None) -> Compression:
    """Returns what a scheme's name or a recipe's file asks for, nothing measured yet: layers of `mixed` count as int8.

    Raises UsageError that lists everything that this model or target cannot have.
    """
    if quantize is None or quantize == FP16:
        return Compression()
    recipe = requested(quantize, plan.target)
    shapes = weight_shapes(model, plan, recipe)
    pending = dict.fromkeys(open_weights(recipe, shapes), LARGEST)
    schemes = _named(assign(recipe, plan.target, shapes, pending))
    name = str(quantize) if quantize in (*SCHEMES, MIXED) else "recipe"
    return Compression(name, recipe, schemes, _encoder_saving(shapes, schemes))


def smallest(intent: Compression, model: FastVLM, plan: ExportPlan) -> Compression:
    """Returns the compression in which `mixed` chooses the fewest bytes for every layer that it may choose for."""
    if not plan.language or intent.recipe.language != MIXED:
        return intent
    shapes = language_shapes(model.config.text, head_split(model.config.text, plan.target))
    least = {
        name.removesuffix(".weight"): min(
            (scheme for scheme in candidates(plan.target) if scheme.problem(shapes[name]) is None),
            key=lambda scheme, name=name: scheme.bytes(shapes[name]),  # type: ignore[misc]
        )
        for name in open_weights(intent.recipe, shapes)
    }
    return replace(intent, schemes={**intent.schemes, **least})


def unused(compression: Compression, plan: ExportPlan, pictures: bool) -> Iterator[str]:
    """Tells what was asked for and changes nothing; `pictures`: whether the user gave some to calibrate on."""
    if pictures and compression.calibration is None:
        yield "--calibration changes nothing here: language models of int4, lut4 and mixed are measured on pictures"
    if compression.name != FP16 and not plan.language and not compression.schemes:
        yield f"--quantize {compression.name} leaves the encoder fp16; a recipe that says `encoder: int8` does not"
    if plan.language and compression.recipe.language == MIXED and compression.table is None:
        yield "mixed has no layer left to choose for, and the budget no effect: the recipe's lines name all of them"


def cautions(compression: Compression) -> Iterator[str]:
    """Tells what is known of a scheme on devices before it is shipped."""
    if any(scheme.name == "lut4" for layer, scheme in compression.schemes.items() if layer.startswith(LANGUAGE)):
        yield (
            "4-bit palettes in a model with state are reported to crash or to compute wrong numbers on devices "
            "(apple/coremltools#2716, #2688): try lut4 on yours before you ship it, or take lut6 or int8"
        )


def measured(
    intent: Compression, model: FastVLM, plan: ExportPlan, samples: Sequence[Sample], progress: Progress = SILENT
) -> Compression:
    """Returns the compression with importance, and what `mixed` chose; UsageError for a budget out of reach."""
    if not plan.language:
        return intent
    shapes = weight_shapes(model, plan, intent.recipe)
    open_to_choice = open_weights(intent.recipe, shapes)
    if open_to_choice:
        split = head_split(model.config.text, plan.target)
        known, table = measure(model, samples, candidates(plan.target), progress, split.count * split.rows)
        rows = tuple(row for row in table.rows if f"{LANGUAGE}{row.layer}.weight" in open_to_choice)
        choice = choose(Table(rows), _budget(intent.recipe))
        chosen = {f"{LANGUAGE}{layer}.weight": scheme for layer, scheme in choice.items()}
        schemes = _named(assign(intent.recipe, plan.target, shapes, chosen))
        intent = replace(intent, schemes=schemes, table=Table(rows).with_choice(choice))
    elif any(intent.schemes[layer].name in CALIBRATED for layer in intent.layers(LANGUAGE)):
        known = calibrate(model, samples, progress)
    else:
        return intent
    return replace(intent, importance=_importance(intent, known), calibration=known.as_json())


def weight_shapes(model: FastVLM, plan: ExportPlan, recipe: Recipe) -> dict[str, Shape]:
    """Returns the shape of every weight that a recipe may speak of, by its name with `.weight`.

    The encoder's graph has weights of its own names; it is only made where the recipe touches it.
    """
    shapes: dict[str, Shape] = {}
    if plan.language:
        shapes |= language_shapes(model.config.text, head_split(model.config.text, plan.target))
    touched = recipe.encoder != FP16 or any(not pattern.startswith(LANGUAGE) for pattern, _ in recipe.layers)
    if plan.encoder and touched:
        parameters = EncoderGraph(model).named_parameters()
        shapes |= {f"encoder.{name}": tuple(value.shape) for name, value in parameters if name.endswith(".weight")}
    return shapes


def _encoder_saving(shapes: Mapping[str, Shape], schemes: Mapping[str, Scheme]) -> int:
    named = {name.removesuffix(".weight"): shape for name, shape in shapes.items()}
    layers = [layer for layer in schemes if not layer.startswith(LANGUAGE)]
    return sum(2 * prod(named[layer]) - schemes[layer].bytes(named[layer]) for layer in layers)


def _named(schemes: Mapping[str, Scheme | None]) -> dict[str, Scheme]:
    return {name.removesuffix(".weight"): scheme for name, scheme in schemes.items() if scheme is not None}


def _budget(recipe: Recipe) -> SizeBudget | QualityBudget:
    assert recipe.budget is not None  # `mixed` always has one
    if recipe.budget.kind == "bits":
        return SizeBudget(recipe.budget.value)
    return QualityBudget(-recipe.budget.value)


def _importance(compression: Compression, known: Statistics) -> dict[str, Tensor]:
    """The importance for each layer of the language model whose scheme looks at it."""
    return {
        layer: known.importance(layer.removeprefix(LANGUAGE))
        for layer, scheme in compression.schemes.items()
        if layer.startswith(LANGUAGE) and scheme.weighted
    }
