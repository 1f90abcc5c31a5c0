"""Builds that tests audit, each made when it is first asked for, and audits of edited copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from made_once import made_once
from small_synthetic import small

from export.api import export_model
from export.encoder import EncoderGraph
from export.protection import UNPROTECTED, Protection
from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.synthetic.folder import Recipe, write_synthetic
from validation.audit import audit
from validation.limits import Measurement
from validation.pair import Pair

SMALL: dict[str, Any] = {"context": 128, "query_length": 16}
LANGUAGE: dict[str, Any] = {**SMALL, "only": "language"}


@cache
def tiny() -> Any:
    """The embedded checkpoint."""
    return load_checkpoint("tiny")


def every_exponent() -> Protection:
    """An exponent for every tensor of `tiny` that can have one, neighbours with different ones."""
    sites = {name: index % 7 + 1 for index, name in enumerate(EncoderGraph(tiny()).sites)}
    return Protection(encoder=sites, residual=3, scores=2, mlp=(0, 5, 3, 0), values=(1, 0, 2, 4))


ENCODER_INT8 = "encoder: int8\nlanguage: lut6\nlayers:\n  language.lm_head: int8\n  language.layers.1.*: fp16\n"
# name -> checkpoint, and how it is exported
BUILDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu": ("tiny", {**LANGUAGE, "target": "gpu"}),
    "exponents": ("tiny", {**SMALL, "protection": every_exponent}),
    "exponents-gpu": ("tiny", {**LANGUAGE, "target": "gpu", "protection": every_exponent}),
    "bare": ("tiny", {**SMALL, "protection": lambda: UNPROTECTED}),
    "chain": ("tiny", {**LANGUAGE, "max_file_size": 1_000_000}),
    "outliers": ("0.5b", {**SMALL, "image_sizes": (128, 64)}),
    "outliers-gpu": ("0.5b", {**LANGUAGE, "target": "gpu"}),
    "llama": ("vicuna-7b", LANGUAGE),
    "llama-gpu": ("vicuna-7b", {**LANGUAGE, "target": "gpu"}),
    "int8": ("tiny", {**LANGUAGE, "quantize": "int8"}),
    "lut6": ("tiny", {**LANGUAGE, "quantize": "lut6"}),
    "lut4": ("tiny", {**LANGUAGE, "quantize": "lut4"}),
    "int4": ("tiny", {**LANGUAGE, "quantize": "int4", "target": "gpu"}),
    "mixture": ("tiny", {**SMALL, "quantize": ENCODER_INT8}),
}


@dataclass
class Builds:
    """Builds in a folder that a run's processes share."""

    folder: Path
    _models: dict[str, Any] = field(default_factory=dict)

    def model(self, checkpoint: str) -> Any:
        """A checkpoint: `tiny`, or a small one of a size of `fastvlm synth` with outliers."""
        if checkpoint == "tiny":
            return tiny()
        if checkpoint not in self._models:
            recipe = Recipe(small(checkpoint), outliers=True)
            made = made_once(self.folder / f"{checkpoint}-checkpoint", lambda place: write_synthetic(recipe, place))
            self._models[checkpoint] = load_checkpoint(made)
        return self._models[checkpoint]

    def build(self, name: str) -> Path:
        """The folder of a build, not to be changed."""
        return made_once(self.folder / name, lambda place: self._export(name, place))

    def _export(self, name: str, place: Path) -> None:
        checkpoint, options = BUILDS[name]
        options = {key: value() if callable(value) else value for key, value in options.items()}
        if "\n" in str(options.get("quantize", "")):
            recipe = place.parent / f"{name}.yaml"
            recipe.write_text(options["quantize"])
            options["quantize"] = recipe
        export_model(self.model(checkpoint), place, **options)

    def pair(self, name: str) -> Pair:
        """A build with its checkpoint."""
        return Pair(read_build(self.build(name)), self.model(BUILDS[name][0]))

    def edited(self, name: str, to: Path, edit: Callable[[Path], None]) -> Pair:
        """A copy of a build, edited."""
        copy = Path(shutil.copytree(self.build(name), to / "edited"))
        edit(copy)
        return Pair(read_build(copy), self.model(BUILDS[name][0]))


def audited(pair: Pair) -> dict[str, Measurement]:
    """The audit's rows, by key."""
    return {row.limit.key: row for row in audit(pair)}


def red(pair: Pair) -> dict[str, str]:
    """The subject of each row that fails, by key."""
    return {key: row.subject for key, row in audited(pair).items() if not row.passed}
