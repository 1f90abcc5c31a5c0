"""Several functions into one .mlpackage, the same bytes for the same content.

coremltools can do this too (`save_multifunction`), but it loads every program back into Python objects, deletes the old
package before it writes, names the items with random UUIDs, and stamps the date. Here functions are joined on the
protobuf: programs are copied, and their weights go into one file in which every distinct blob lies once.
Names inside are the converter's, its numbers dealt anew (`export.names`); maps are serialised in sorted order.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.contract import FunctionSpec
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


class PackageWriter:
    """A package folder in the making: add functions one by one, then `finish`."""

    def __init__(self, folder: Path, labels: Labels) -> None:
        self.folder, self.labels = folder, labels
        (folder / "Data" / WEIGHTS).mkdir(parents=True)
        self._weights_path = folder / "Data" / WEIGHTS / "weight.bin"
        self._handle = self._weights_path.open("wb")
        self._writer = WeightWriter(self._handle)
        self._specs: list[FunctionSpec] = []
        self._proto = import_coremltools().proto.Model_pb2.Model(specificationVersion=IOS18)

    def add(self, converted: Converted) -> None:
        """Copies one converted function into the package; its weights are shared with those already there."""
        program = converted.proto.mlProgram
        if not self._specs:
            self._proto.mlProgram.version = program.version
        function = self._proto.mlProgram.functions[converted.spec.name]
        function.CopyFrom(program.functions["main"])
        renumber(function)
        reader = WeightReader(converted.weights)
        try:
            for value in blob_values(function):
                value.offset = self._writer.add(*reader.read(value.offset))
                value.fileName = BLOB_FILE
        finally:
            reader.close()
        self._describe(converted)
        self._specs.append(converted.spec)

    def finish(self, default: str) -> None:
        """Checks the whole against its contract and writes model and Manifest.json; raises PackageError."""
        self._writer.finish()
        self._handle.close()
        self._proto.description.defaultFunctionName = default
        _label(self._proto.description.metadata, self.labels)
        check_package(self._proto, self._specs, default)
        model = self._proto.SerializeToString(deterministic=True)
        (self.folder / "Data" / MODEL).write_bytes(model)
        manifest = _manifest(sha256_bytes(model), sha256_file(self._weights_path))
        (self.folder / "Manifest.json").write_text(manifest, encoding="utf-8")

    def _describe(self, converted: Converted) -> None:
        spec, source = converted.spec, converted.proto.description
        description = self._proto.description.functions.add(name=spec.name)
        description.input.extend(source.input)
        description.output.extend(source.output)
        description.state.extend(source.state)
        texts = {tensor.name: tensor.text for tensor in (*spec.inputs, *spec.outputs, *filter(None, [spec.state]))}
        for feature in (*description.input, *description.output, *description.state):
            feature.shortDescription = texts.get(feature.name, "")


def write_package(
    folder: Path, functions: Iterator[Converted] | Sequence[Converted], default: str, labels: Labels
) -> None:
    """Writes one package of several functions, taking them one at a time."""
    writer = PackageWriter(folder, labels)
    for converted in functions:
        writer.add(converted)
    writer.finish(default)


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
