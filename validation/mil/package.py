"""Opening an .mlpackage folder, a spec with its weights folder, or an in-memory coremltools model.

A package is a folder with `Manifest.json`, which names the model file (a protobuf) and its weights folder. Its paths
are untrusted: absolute paths, `..`, symbolic links that leave the package and whatever is no plain file are refused.
Weights are mapped when a constant is first used. This file does not know ops or execution.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from fastvlm.errors import PackageError
from validation.mil.blob import BlobFile
from validation.mil.dtypes import DType
from validation.mil.schema import model_message

_WEIGHT_PREFIX = "@model_path/"


class Package:
    """A spec (Model.proto) and the weight files its program refers to.

    spec: the protobuf message. root: the folder that no file may leave; None for a program without weight files.
    model_folder: what `@model_path` stands for. weights_folder: overrides it for specs handed over in memory.
    """

    def __init__(self, spec: Any, root: Path | None, model_folder: Path | None, weights_folder: Path | None = None):
        kind = spec.WhichOneof("Type")
        if kind != "mlProgram":
            raise PackageError(
                f"the model is of type {kind or 'none'}, not an ML program; convert it with convert_to='mlprogram'"
            )
        self.spec = spec
        self.program = spec.mlProgram
        self._root = root
        self._model_folder = model_folder
        self._weights_folder = weights_folder
        self._files: dict[str, BlobFile] = {}
        self.cache: dict[Any, Any] = {}

    def with_program(self, spec: Any) -> Package:
        """Returns a package of the same weight files with another program; they share nothing that was read."""
        return Package(spec, self._root, self._model_folder, self._weights_folder)

    def read_blob(self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The values of one blob; PackageError when file, sentinel, offset, size or dtype are wrong."""
        return self._file(file_name).read(offset, dtype, shape)

    def check_blob(self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...]) -> None:
        """Raises what `read_blob` would raise, and reads no value."""
        self._file(file_name).check(offset, dtype, shape)

    def forget_blob(self, file_name: str, offset: int) -> None:
        """Gives back the memory of a blob that was read; its values are read from the file when they are used again."""
        self._files[file_name].forget(offset)

    def _file(self, file_name: str) -> BlobFile:
        if file_name not in self._files:
            self._files[file_name] = BlobFile(self._weight_path(file_name))
        return self._files[file_name]

    def _weight_path(self, file_name: str) -> Path:
        if not file_name.startswith(_WEIGHT_PREFIX):
            raise PackageError(f"weight file name {file_name!r} does not start with {_WEIGHT_PREFIX}")
        relative = file_name[len(_WEIGHT_PREFIX) :]
        if self._weights_folder is not None:
            inner = PurePosixPath(relative)
            inner = inner.relative_to("weights") if inner.parts[:1] == ("weights",) else inner
            return contained(self._weights_folder, str(inner))  # str, so that an absolute rest stays absolute
        if self._model_folder is None or self._root is None:
            raise PackageError(
                f"the program needs {file_name}, but a spec alone was given; pass its weights folder too"
            )
        return contained(self._root, relative, str(self._model_folder.relative_to(self._root)))


def contained(root: Path, relative: str, below: str = "") -> Path:
    """The path `relative` from the folder `below` of `root`, which it may not leave.

    Raises PackageError when it is absolute, holds `..`, is no name that a file can have, or a link on the way leaves
    `root` or runs in a circle.
    """
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative:
        raise PackageError(f"package {root} names the path {relative!r}, which leaves the package; it is not opened")
    path = root / below / parts
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise PackageError(f"package {str(root)!r}: the path {relative!r} cannot be followed ({reason})") from error
    if not inside:
        raise PackageError(f"package {root}: {relative!r} is a link out of the package; it is not opened")
    return path


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = contained(folder, "Manifest.json")
    if path.exists() and not path.is_file():
        raise PackageError(f"{path} is no plain file; copy the whole package again")
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PackageError(
            f"{folder} holds no Manifest.json; it is no .mlpackage, or was only partly copied"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{path} cannot be read as JSON ({error})") from error
    entries = manifest.get("itemInfoEntries") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise PackageError(f"{path} lists no items (itemInfoEntries)")
    return dict(manifest)


def _model_path(folder: Path) -> Path:
    manifest = _read_manifest(folder)
    identifier = manifest.get("rootModelIdentifier")
    entry = manifest["itemInfoEntries"].get(identifier) if isinstance(identifier, str) else None
    relative = entry.get("path") if entry else None
    if not isinstance(relative, str):
        raise PackageError(f"{folder}/Manifest.json names no root model (rootModelIdentifier {identifier!r})")
    path = contained(folder, relative, "Data")
    if not os.path.isfile(path):  # a pipe or a device would be read without end
        raise PackageError(f"{folder}: the model file {'Data/' + relative!r} is missing; copy the whole package again")
    return path


def parse_spec(path: Path) -> Any:
    """The Model message stored in `path`; PackageError when it cannot be read or is not that message."""
    spec = model_message()
    try:
        spec.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise PackageError(f"{path} is not a readable Core ML model ({error}); it is damaged or was cut") from error
    return spec


def open_folder(folder: Path) -> Package:
    """Open an .mlpackage folder; PackageError names what is missing or damaged."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes any text
        found = "a file" if os.path.exists(folder) else "nothing"
        raise PackageError(f"{str(folder)!r}: expected an .mlpackage folder, found {found}")
    path = _model_path(folder)
    return Package(parse_spec(path), root=folder, model_folder=path.parent)


def open_package(source: Any, weights: str | Path | None = None) -> Package:
    """Open whatever `source` is: a path, a spec (with its weights folder), a Package, or a coremltools MLModel.

    A spec is copied, so that the caller may go on editing its own.
    """
    if isinstance(source, Package):
        return source
    if isinstance(source, (str, Path)):
        return open_folder(Path(source))
    if isinstance(source, Message):
        return Package(copy.deepcopy(source), None, None, _weights_folder(weights))
    if hasattr(source, "get_spec"):  # coremltools' MLModel; duck-typed so that coremltools is never imported here
        folder = weights or getattr(source, "weights_dir", None)
        return Package(source.get_spec(), None, None, _weights_folder(folder))
    raise PackageError(f"cannot open a {type(source).__name__}; give an .mlpackage path, a spec or an MLModel")


def _weights_folder(weights: Any) -> Path | None:
    if weights is None or isinstance(weights, (str, Path)):
        return None if weights is None else Path(weights)
    raise PackageError(f"weights of type {type(weights).__name__} given, expected the path of the weights folder")
