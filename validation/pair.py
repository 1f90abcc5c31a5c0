"""A build and the checkpoint it was made from, side by side: what every rung of the comparison takes.

What several rungs need is worked out once: the encoder's graph with the declared folds, the decoder's sizes, and the
programs of the packages as facts. It compares nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from export.chunks import Chunk, HeadSplit, head_split
from export.encoder import EncoderGraph
from export.language import whole_sizes
from export.layout import GraphSizes
from export.plan import PARTS, ExportPlan
from export.protection import Protection
from fastvlm.build import ONNX, Build
from fastvlm_ref.model.fastvlm import FastVLM
from validation.counterparts.decoder import DecoderPart, packages_of
from validation.encoder_form import EncoderForm, form_of
from validation.limits import Limit, limits_of, onnx_limits
from validation.program import Function, Program, read_program


@dataclass
class Pair:
    """A build and its reference; `model` may stream its decoder's weights (`load_checkpoint(stream=True)`)."""

    build: Build
    model: FastVLM
    _programs: dict[Path, Program] = field(default_factory=dict)

    @cached_property
    def limits(self) -> Mapping[str, Limit]:
        """What this build is held to, by key: ONNX files and compression have rows of their own."""
        if self.build.format == ONNX:
            return onnx_limits(str(self.build.manifest["compression"].get("scheme")))
        return limits_of(_counted(self.build.manifest["compression"]))

    @cached_property
    def protection(self) -> Protection:
        """What the export scaled, as the manifest records it; BuildError where no export writes that."""
        return Protection.from_record(self.build.manifest.get("protection", {}))

    @cached_property
    def encoder_graph(self) -> EncoderGraph:
        """The encoder with all declared folds, float32: its parameters are what the package's weights should be."""
        return EncoderGraph(self.model, self.protection, self.form.projected)

    @cached_property
    def form(self) -> EncoderForm:
        """How the encoder is called."""
        return form_of(self.build)

    @cached_property
    def plan(self) -> ExportPlan:
        """What the export was asked for, as the manifest has it; how the language model is cut is not among it."""
        build = self.build
        return ExportPlan(build.image_sizes, build.context, build.query, target=build.target, purpose=build.purpose)

    @cached_property
    def sizes(self) -> GraphSizes:
        """The sizes of the whole decoder's graph, and what is folded into it."""
        return whole_sizes(self.model.decoder, self.plan, self.protection)

    @cached_property
    def split(self) -> HeadSplit:
        """How the head is cut into outputs."""
        return head_split(self.model.config.text, self.build.target)

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The packages of the language model, in order."""
        return packages_of(self.build)

    def parts(self) -> Iterator[tuple[Path, DecoderPart]]:
        """Gives each package of the language model with the part of the decoder that it holds."""
        for stage, chunk in zip(self.build.language, self.chunks, strict=True):
            yield stage.package, DecoderPart(self.model.decoder, self.sizes, self.build.target, chunk, self.split)

    def program(self, package: Path) -> Program:
        """Returns what a package holds, read once; PackageError where it cannot be read."""
        if package not in self._programs:
            self._programs[package] = read_program(package)
        return self._programs[package]

    def function(self, package: Path, name: str) -> Function:
        """Returns one function of a package."""
        return next(function for function in self.program(package).functions if function.name == name)


def _counted(compression: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's compression with the layers of each scheme counted: a number that is stated excuses nothing."""
    layers = compression.get("layers", {})
    names = layers.items() if isinstance(layers, dict) else ()
    parts = {part: Counter(scheme for name, scheme in names if name.startswith(f"{part}.")) for part in PARTS}
    return {"embeddings": compression.get("embeddings"), **parts}
