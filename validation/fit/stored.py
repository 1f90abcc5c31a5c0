"""How each weight is stored, by the recipe that a user names or writes: `export.choice` without a model.

A scheme that has to be measured first (`mixed`) has no sizes before that, and is refused in words.
It knows no bytes of activations and no chips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from export.chunks import head_split
from export.compression.recipe import FP16, Recipe, assign, open_weights, requested
from export.compression.schemes import Scheme, Shape
from export.sizes import language_shapes, weight_bytes
from fastvlm.errors import UsageError
from fastvlm_ref.config import TextConfig, VisionConfig
from validation.fit.tower import tower_shapes
from validation.fit.work import HALF, Weights

WEIGHT = ".weight"


@dataclass(frozen=True)
class Stored:
    """The scheme of every compressed layer, `language.layers.0.mlp.up_proj` or `encoder.projector_0`, and the table."""

    name: str = FP16
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    embeddings: str = FP16

    def bytes(self, layer: str, shape: Shape) -> int:
        """What a weight takes in a weight file (`export.sizes.Stored`)."""
        return weight_bytes(self.schemes.get(layer), shape)

    def weights(self, layer: str, shape: Shape) -> Weights:
        """The same as an op reads it."""
        scheme, dense = self.schemes.get(layer), HALF * prod(shape)
        return Weights(dense, dense) if scheme is None else Weights(scheme.bytes(shape), dense, scheme.kind)


DENSE = Stored()


def stored_as(quantize: str | Path, target: str, vision: VisionConfig, text: TextConfig) -> Stored:
    """Returns how `quantize`, a scheme's name or a recipe's file, stores a model of these sizes for `target`.

    Raises UsageError for what this target or these shapes cannot have, and for what only a measurement decides.
    """
    recipe = requested(quantize, target)
    if quantize == FP16:
        return DENSE
    shapes = _weight_shapes(recipe, target, vision, text)
    if open_weights(recipe, shapes):
        raise UsageError(
            f"--quantize {quantize} chooses by what it measures in the checkpoint, so nothing is known of its sizes "
            "before an export; export with it and give fit the build, or name int8, lut6, lut4 or int4"
        )
    schemes = assign(recipe, target, shapes)
    named = {name.removesuffix(WEIGHT): scheme for name, scheme in schemes.items() if scheme is not None}
    return Stored(str(quantize), named, recipe.embeddings)


def _weight_shapes(recipe: Recipe, target: str, vision: VisionConfig, text: TextConfig) -> dict[str, Shape]:
    """The encoder's too where the recipe touches it, as `export.choice.weight_shapes`."""
    shapes = language_shapes(text, head_split(text, target))
    if recipe.encoder != FP16 or any(not pattern.startswith("language.") for pattern, _ in recipe.layers):
        shapes |= {f"encoder.{name}{WEIGHT}": shape for name, shape in tower_shapes(vision, text.hidden_size).items()}
    return shapes
