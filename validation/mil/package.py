"""Opening an .mlpackage folder, a spec with its weights folder, or an in-memory coremltools model.

A package is a folder with `Manifest.json`, which names the model file (a protobuf) and its weights folder. Its paths
are untrusted: absolute paths, `..` and symbolic links that leave the package are refused. Weights are mapped when a
constant is first used. This file does not know ops or execution.
"""

from __future__ import annotations

import json
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

    def read_blob(self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The values of one blob; PackageError when file, sentinel, offset, size or dtype are wrong."""
        if file_name not in self._files:
            self._files[file_name] = BlobFile(self._weight_path(file_name))
        return self._files[file_name].read(offset, dtype, shape)

    def forget_blob(self, file_name: str, offset: int) -> None:
        """Gives back the memory of a blob that was read; its values are read from the file when they are used again."""
        self._files[file_name].forget(offset)

    def _weight_path(self, file_name: str) -> Path:
        if not file_name.startswith(_WEIGHT_PREFIX):
            raise PackageError(f"weight file name {file_name!r} does not start with {_WEIGHT_PREFIX}")
        relative = file_name[len(_WEIGHT_PREFIX) :]
        if self._weights_folder is not None:
            inner = PurePosixPath(relative)
            inner = inner.relative_to("weights") if inner.parts[:1] == ("weights",) else inner
            return contained(self._weights_folder, str(inner))
        if self._model_folder is None or self._root is None:
            raise PackageError(
                f"the program needs {file_name}, but a spec alone was given; pass its weights folder too"
            )
        return contained(self._root, str((self._model_folder / relative).relative_to(self._root)))


def contained(root: Path, relative: str) -> Path:
    """The path `relative` below `root`; PackageError when it is absolute, holds `..`, or a link leaves the folder."""
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative:
        raise PackageError(f"package {root} names the path {relative!r}, which leaves the package; it is not opened")
    path = root / parts
    if not path.resolve().is_relative_to(root.resolve()):
        raise PackageError(f"package {root}: {relative!r} is a link out of the package; it is not opened")
    return path


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "Manifest.json"
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
    path = contained(folder / "Data", relative)
    if not path.is_file():
        raise PackageError(f"{folder}: the model file Data/{relative} is missing; copy the whole package again")
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
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise PackageError(f"{folder}: expected an .mlpackage folder, found {found}")
    path = _model_path(folder)
    return Package(parse_spec(path), root=folder, model_folder=path.parent)


def open_package(source: Any, weights: str | Path | None = None) -> Package:
    """Open whatever `source` is: a path, a spec (with its weights folder), a Package, or a coremltools MLModel."""
    if isinstance(source, Package):
        return source
    if isinstance(source, (str, Path)):
        return open_folder(Path(source))
    if isinstance(source, Message):
        return Package(source, None, None, None if weights is None else Path(weights))
    if hasattr(source, "get_spec"):  # coremltools' MLModel; duck-typed so that coremltools is never imported here
        folder = weights or getattr(source, "weights_dir", None)
        return Package(source.get_spec(), None, None, None if folder is None else Path(folder))
    raise PackageError(f"cannot open a {type(source).__name__}; give an .mlpackage path, a spec or an MLModel")
