"""What is inside a package or a build, read from the files as they lie there: the data behind `fastvlm inspect`.

A package is read from its protobuf alone: nothing is executed, weights are only measured. Numbers are counts and
bytes, so the same package gives the same description everywhere.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import BuildError, PackageError
from fastvlm.manifest import NAME, read_manifest
from fastvlm.paths import contained

# specificationVersion of Model.proto -> the systems that load it (coremltools, `_SPECIFICATION_VERSION_IOS_*`)
_TARGETS = {6: "iOS 15, macOS 12", 7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15", 10: "iOS 26"}
_ARRAY_TYPES = {65568: "float32", 65552: "float16", 131104: "int32", 65600: "float64", 131080: "int8"}
_COLORS = {10: "gray", 20: "RGB", 30: "BGR", 40: "gray float16"}


@dataclass(frozen=True)
class Feature:
    """One input, output or state as the package declares it; an image's shape is height × width."""

    name: str
    kind: str  # "tensor" | "image" | "state"
    shape: tuple[int, ...]
    dtype: str
    text: str


@dataclass(frozen=True)
class FunctionContents:
    """One function: its contract and how often each op occurs (constants counted apart)."""

    name: str
    opset: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]
    ops: dict[str, int]
    constants: int


@dataclass(frozen=True)
class PackageContents:
    """One `.mlpackage`."""

    name: str
    target: str
    default_function: str
    functions: tuple[FunctionContents, ...]
    program_bytes: int
    weight_bytes: int
    metadata: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def describe_package(path: str | Path) -> PackageContents:
    """Describe one `.mlpackage` folder; PackageError when it cannot be opened."""
    from validation.mil.package import open_folder

    folder = Path(path)
    spec = open_folder(folder).spec
    description = spec.description
    declared = {entry.name: entry for entry in description.functions} or {"main": description}
    functions = spec.mlProgram.functions
    if declared.keys() != functions.keys():
        raise PackageError(
            f"{folder} declares the functions {sorted(declared)} and holds {sorted(functions)}; export it again"
        )
    size = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    weights = sum(count for file, count in size.items() if file.suffix == ".bin")
    program = sum(count for file, count in size.items() if file.suffix == ".mlmodel")
    version = spec.specificationVersion
    return PackageContents(
        folder.name, _TARGETS.get(version, f"specification version {version}"),
        description.defaultFunctionName or "main",
        tuple(_function(name, functions[name], declared[name]) for name in sorted(functions)),
        program, weights, _metadata(description.metadata),
    )  # fmt: skip


def describe_build(build: str | Path) -> tuple[dict[str, Any], list[PackageContents]]:
    """The manifest of a build and the contents of its packages; BuildError or PackageError when one cannot be read."""
    return read_manifest(build), [describe_package(path) for path in package_paths(build)]


def package_paths(build: str | Path) -> list[Path]:
    """The packages of a build folder, as its manifest lists them; BuildError where it cannot be read."""
    root = Path(build)
    return [contained(root, name) for name in _package_names(read_manifest(root))]


def is_package(path: str | Path) -> bool:
    """Whether `path` looks like a package and not like a build: it has no manifest.json but Core ML's own."""
    return os.path.isfile(Path(path) / "Manifest.json") and NAME not in {entry.name for entry in Path(path).iterdir()}


def _package_names(manifest: dict[str, Any]) -> Iterator[str]:
    for name, part in manifest["packages"].items():
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            yield from part
        elif part is not None:
            raise BuildError(f"packages.{name} in manifest.json is {str(part)[:60]!r}, expected names; export again")


def _function(name: str, function: Any, declared: Any) -> FunctionContents:
    block = function.block_specializations[function.opset]
    ops = Counter(_op_types(block))
    constants = ops.pop("const", 0)
    inputs, outputs, states = (tuple(map(_feature, side)) for side in (declared.input, declared.output, declared.state))
    return FunctionContents(name, function.opset, inputs, outputs, states, dict(sorted(ops.items())), constants)


def _op_types(block: Any) -> Iterator[str]:
    for operation in block.operations:
        yield operation.type
        for inner in operation.blocks:
            yield from _op_types(inner)


def _feature(feature: Any) -> Feature:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        color = _COLORS.get(image.colorSpace, f"colour space {image.colorSpace}")
        return Feature(feature.name, "image", (image.height, image.width), color, feature.shortDescription)
    array = feature.type.stateType.arrayType if kind == "stateType" else feature.type.multiArrayType
    dtype = _ARRAY_TYPES.get(array.dataType, f"data type {array.dataType}")
    name = "state" if kind == "stateType" else "tensor"
    return Feature(feature.name, name, tuple(array.shape), dtype, feature.shortDescription)


def _metadata(metadata: Any) -> dict[str, str]:
    named = {
        "description": metadata.shortDescription,
        "author": metadata.author,
        "licence": metadata.license,
        "version": metadata.versionString,
    }
    return {key: value for key, value in [*named.items(), *sorted(metadata.userDefined.items())] if value}
