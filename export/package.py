"""Several functions into one .mlpackage, the same bytes for the same content.

coremltools can do this too (`save_multifunction`), but it loads every program back into Python objects, deletes the old
package before it writes, names the items with random UUIDs, and stamps the date. Here functions are joined on the
protobuf: programs are copied, and their weights go into one file in which every distinct blob lies once.
Names inside are the converter's, its numbers dealt anew (`export.names`); maps are serialised in sorted order.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.convert import Converted
from export.names import renumber
from export.postcheck import check_package, operations
from export.quiet import import_coremltools
from export.weightfile import WeightReader, WeightWriter
from fastvlm.hashes import sha256_bytes, sha256_file

IOS18 = 9  # specification version, the first with functions and state
MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "com.apple.CoreML/weights"
BLOB_FILE = "@model_path/weights/weight.bin"


@dataclass(frozen=True)
class Labels:
    """What Xcode and the shell show of a package; no date, path or machine among it."""

    text: str
    author: str
    licence: str
    version: str
    extra: dict[str, str] = field(default_factory=dict)


def write_package(folder: Path, functions: Iterable[Converted], default: str, labels: Labels) -> None:
    """Writes a package of several functions, taking them one at a time; raises PackageError as `check_package`."""
    data = folder / "Data"
    (data / WEIGHTS).mkdir(parents=True)
    weights = data / WEIGHTS / "weight.bin"
    proto = import_coremltools().proto.Model_pb2.Model(specificationVersion=IOS18)
    specs = []
    with weights.open("wb") as handle:
        writer = WeightWriter(handle)
        for converted in functions:
            _add_function(proto, converted, writer)
            specs.append(converted.spec)
        writer.finish()
    proto.description.defaultFunctionName = default
    _label(proto.description.metadata, labels)
    check_package(proto, specs, default)
    model: bytes = proto.SerializeToString(deterministic=True)
    (data / MODEL).write_bytes(model)
    manifest = _manifest(sha256_bytes(model), sha256_file(weights))
    (folder / "Manifest.json").write_text(manifest, encoding="utf-8")


def _add_function(proto: Any, converted: Converted, writer: WeightWriter) -> None:
    """Copies one function into `proto`, and those of its weights that are not yet there into the weight file."""
    program = converted.proto.mlProgram
    proto.mlProgram.version = program.version
    function = proto.mlProgram.functions[converted.spec.name]
    function.CopyFrom(program.functions["main"])
    renumber(function)
    with WeightReader(converted.weights) as reader:
        for value in blob_values(function):
            value.offset = writer.add(*reader.read(value.offset))
            value.fileName = BLOB_FILE
    _describe(proto.description.functions.add(name=converted.spec.name), converted)


def _describe(description: Any, converted: Converted) -> None:
    """Copies what the function takes and gives, with the contract's sentence on each."""
    spec, source = converted.spec, converted.proto.description
    description.input.extend(source.input)
    description.output.extend(source.output)
    description.state.extend(source.state)
    texts = {tensor.name: tensor.text for tensor in (*spec.inputs, *spec.outputs, *filter(None, [spec.state]))}
    for feature in (*description.input, *description.output, *description.state):
        feature.shortDescription = texts.get(feature.name, "")


def blob_values(function: Any) -> Iterator[Any]:
    """Every reference of a function into its weight file, in the order of its operations."""
    for op in operations(function):
        for key in sorted(op.attributes):
            value = op.attributes[key]
            if value.WhichOneof("value") == "blobFileValue":
                yield value.blobFileValue


def _label(metadata: Any, labels: Labels) -> None:
    metadata.shortDescription = labels.text
    metadata.author = labels.author
    metadata.license = labels.licence
    metadata.versionString = labels.version
    for key, value in sorted(labels.extra.items()):
        metadata.userDefined[key] = value


def _manifest(model_hash: str, weights_hash: str) -> str:
    """Returns Manifest.json; item identifiers are UUIDs derived from what the items hold."""
    model, weights = (
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path}:{digest}")).upper()
        for path, digest in ((MODEL, model_hash), (WEIGHTS, weights_hash))
    )
    author = "com.apple.CoreML"
    entries = {
        model: {"author": author, "description": "CoreML Model Specification", "name": "model.mlmodel", "path": MODEL},
        weights: {"author": author, "description": "CoreML Model Weights", "name": "weights", "path": WEIGHTS},
    }
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": model}
    return json.dumps(content, sort_keys=True, indent=4) + "\n"
