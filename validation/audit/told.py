"""What the manifest tells a host of a build, held against what the reference and the plan make of it.

A device reads the manifest, not this project's code: the image input, the contract of every function, which layers are
compressed how, and how the decoder is cut into packages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from export.build import stage_record
from export.contract import encoder_functions, language_functions
from export.parameters import graph_weights
from export.sizes import language_shapes
from validation.audit.findings import CONSTANTS, UNEXPLAINED, Findings
from validation.differences import different, short
from validation.pair import Pair


def hold_manifest(pair: Pair, findings: Findings) -> None:
    """Counts every field of the manifest that is otherwise than an export of this checkpoint writes it."""
    build = pair.build
    if build.encoder is not None:
        image = {"scale": pair.form.scale, "bias": [0, 0, 0], "color": "RGB"}  # the reference divides bytes by 255
        findings.look(CONSTANTS, len(image))
        for name, wanted in image.items():
            if (told := build.manifest["image"].get(name)) != wanted:
                findings.count(CONSTANTS, f"manifest.json: image.{name} is {short(told)}, expected {short(wanted)}")
    if build.language and (other := other_chain(pair)):
        findings.count(UNEXPLAINED, other)
        return
    findings.look(CONSTANTS, 2)
    for words in (*_functions(pair), *_compression(pair)):
        findings.count(CONSTANTS, f"manifest.json: {words}")


def _functions(pair: Pair) -> Iterator[str]:
    """How the contract of a function is otherwise than the graphs have it."""
    build, config, plan = pair.build, pair.model.config, pair.plan
    wanted: dict[str, Any] = {}
    if build.encoder is not None:
        specs = encoder_functions(config.vision, config.text.hidden_size, plan)
        wanted["encoder"] = {spec.name: spec.as_json() for spec in specs}
    if build.language:
        wanted["language"] = []
        for chunk in pair.chunks:
            specs = language_functions(config.text, plan, chunk, pair.split)
            wanted["language"].append(stage_record(specs))
    told = dict(build.manifest["functions"])
    if isinstance(told.get("language"), dict):  # schema 0.1
        told["language"] = [told["language"]]
    yield from different("functions", told, json.loads(json.dumps(wanted)))


def _compression(pair: Pair) -> Iterator[str]:
    """How the counts of compressed layers are otherwise than their list, or the list names what no model has."""
    told = pair.build.manifest["compression"]
    layers = told.get("layers", {})
    known = {name.removesuffix(".weight") for name in language_shapes(pair.model.config.text, pair.split)}
    if pair.build.encoder is not None:
        known |= {weight.layer for weight in graph_weights(pair.encoder_graph, "vision_encoder").values()}
    for name in sorted(layers.keys() - known):
        yield f"compression.layers names {name}, expected a layer of this model"
    for part in ("language", "encoder"):
        counts = dict(sorted(Counter(layers[name] for name in layers if name.startswith(f"{part}.")).items()))
        if (stated := told.get(part) or {}) != counts:
            yield f"compression.{part} is {short(stated)}, expected {counts} as compression.layers has it"


def other_chain(pair: Pair) -> str | None:
    """Returns how the manifest's chain is not the checkpoint's decoder: then nothing in it can be compared."""
    found = sum(chunk.layers for chunk in pair.chunks), sum(len(chunk.parts) for chunk in pair.chunks)
    wanted = pair.model.config.text.layers, pair.split.count
    if found == wanted:
        return None
    words = [f"{layers} layers and {parts} parts of the head" for layers, parts in (found, wanted)]
    return f"the packages hold {words[0]} by manifest.json, the checkpoint has {words[1]}"
