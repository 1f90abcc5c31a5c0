"""Several functions into one .mlpackage, the same bytes for the same content.

coremltools can do this too (`save_multifunction`), but it loads every program back into Python objects, deletes the old
package before it writes, names the items with random UUIDs, and stamps the date. Here functions are joined on the
protobuf: programs are copied, and their weights go into one file in which every distinct blob lies once.
Names inside are dealt anew (`export.names`); maps are serialised in sorted order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from export.constexpr import BLOB_FILE, codes_of, store
from export.convert import Converted
from export.names import rename
from export.postcheck import check_package, operations
from export.quiet import import_coremltools
from export.weightfile import WeightReader, WeightWriter
from fastvlm.errors import PackageError
from fastvlm.hashes import sha256_bytes, sha256_file
from fastvlm.mlpackage import MODEL_FILE, WEIGHT_FILE, canonical_manifest

FP16 = 1  # the weight file's code


@dataclass(frozen=True)
class Labels:
    """What Xcode and the shell show of a package; no date, path or machine among it."""

    text: str
    author: str
    licence: str
    version: str
    extra: dict[str, str] = field(default_factory=dict)


def write_package(
    folder: Path, functions: Iterable[Converted], default: str, labels: Labels, compressed: Collection[str] = ()
) -> dict[str, int]:
    """Writes a package of functions, taking them one at a time; `compressed`: layers that must be in it so.

    Returns, by parameter, how many values were too large for fp16 and were clamped. Raises TensorError for a parameter
    of NaN or infinity, PackageError as `check_package`.
    """
    weights = folder / WEIGHT_FILE
    weights.parent.mkdir(parents=True)
    proto = import_coremltools().proto.Model_pb2.Model()
    specs = []
    clamped: dict[str, int] = {}
    wanted: dict[str, str] = {}
    with weights.open("wb") as handle:
        writer = WeightWriter(handle)
        for converted in functions:
            _add_function(proto, converted, writer, clamped)
            specs.append(converted.spec)
            wanted |= {weight.name: weight.layer for weight in converted.parameters.values() if weight.scheme}
        _check_all_stored(wanted, compressed, writer)
        writer.finish()
    if not all(spec.alone for spec in specs):
        proto.description.defaultFunctionName = default
    _label(proto.description.metadata, labels)
    check_package(proto, specs, default)
    model: bytes = proto.SerializeToString(deterministic=True)
    (folder / MODEL_FILE).write_bytes(model)
    manifest = canonical_manifest(sha256_bytes(model), sha256_file(weights))
    (folder / "Manifest.json").write_text(manifest, encoding="utf-8")
    return clamped


def _add_function(proto: Any, converted: Converted, writer: WeightWriter, clamped: dict[str, int]) -> None:
    """Copies one function into `proto`, and those of its weights that are not yet there into the weight file."""
    program = converted.proto.mlProgram
    proto.specificationVersion = converted.proto.specificationVersion
    proto.mlProgram.version = program.version
    function = proto.mlProgram.functions[converted.spec.name]
    function.CopyFrom(program.functions["main"])
    missing = set(converted.parameters)
    with WeightReader(converted.weights) as reader:
        for op in operations(function):
            name = op.outputs[0].name if op.outputs else ""
            if name in converted.parameters:
                store(writer, converted.parameters[name], op, clamped)
                missing.discard(name)
            else:
                _copy_blobs(op, reader, writer)
    if missing:
        raise PackageError(
            f"{converted.spec.name}: the converted graph has no constants for {', '.join(sorted(missing)[:5])}; "
            "install the coremltools and torch of constraints.txt"
        )
    rename(function, kept=converted.parameters)
    description = proto.description
    _describe(description if converted.spec.alone else description.functions.add(name=converted.spec.name), converted)


def _copy_blobs(op: Any, reader: WeightReader, writer: WeightWriter) -> None:
    """Copies what an op has in the converter's weight file, unless it lies in ours already."""
    for value in blobs(op):
        shape = [dimension.constant.size for dimension in op.outputs[0].type.tensorType.dimensions]
        value.offset = writer.add(*filled(reader.read(value.offset), prod(shape)))
        value.fileName = BLOB_FILE


def _check_all_stored(wanted: Mapping[str, str], compressed: Collection[str], writer: WeightWriter) -> None:
    """Raises PackageError where a weight to be compressed is no constant of any function: nothing was done about it.

    wanted: layer by name of the weight, as the graphs have them; compressed: layers, as the recipe has them.
    """
    lost = sorted(name for name in wanted if not writer.holds(codes_of(name)))
    lost += sorted(set(compressed) - set(wanted.values()))
    if lost:
        raise PackageError(
            f"the converted package has no constants for {', '.join(lost[:5])}, which should be compressed; "
            "install the coremltools and torch of constraints.txt"
        )


def _describe(description: Any, converted: Converted) -> None:
    """Copies what the function takes and gives, with the contract's sentence on each."""
    spec, source = converted.spec, converted.proto.description
    description.input.extend(source.input)
    description.output.extend(source.output)
    description.state.extend(source.state)
    texts = {tensor.name: tensor.text for tensor in (*spec.inputs, *spec.outputs, *filter(None, [spec.state]))}
    for feature in (*description.input, *description.output, *description.state):
        feature.shortDescription = texts.get(feature.name, "")


def filled(blob: tuple[int, int, bytes], count: int) -> tuple[int, int, bytes]:
    """Returns a blob of fp16 numbers that are all alike at the length `count`, another blob as it is."""
    dtype, padding, data = blob
    one = data[:2]
    if dtype == FP16 and data == one * (len(data) // 2):
        return dtype, padding, one * count
    return blob


def blobs(op: Any) -> Iterator[Any]:
    """The references into a weight file among an op's attributes."""
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
