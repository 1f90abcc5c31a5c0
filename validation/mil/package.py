"""Opening an .mlpackage folder, a spec with its weights folder, or an in-memory coremltools model.

A package is a folder with `Manifest.json`, which names the model file (a protobuf) and its weights folder. Its paths
are untrusted: they and what lies there go by the path rule of all files (`fastvlm.paths`), so no link is followed.
Weights are mapped when a constant is first used. This file does not know ops or execution.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from fastvlm.errors import PackageError
from fastvlm.json_file import parse
from fastvlm.paths import check_tree, open_contained, read_contained
from fastvlm.quoting import printable
from validation.mil.blob import BlobFile
from validation.mil.dtypes import DType
from validation.mil.schema import model_message

_WEIGHT_PREFIX = "@model_path/"
MOST_MANIFEST = 1 << 20  # bytes of a Manifest.json; one of two items has 600
MOST_PROGRAM = 16 << 20  # bytes of a program, which holds no weights; 7B's has 3 MB. In memory 75 times as many

MOST_OPS = 100_000  # of a program, constants among them; 0.5B's two functions have 8,500, and each is looked at
MOST_BLOCKS = 1_000  # within ops: each is planned with all names that it sees


class Package:
    """A spec (Model.proto) and the weight files its program refers to.

    spec: the protobuf message. root: the folder that no file may leave; None for a program without weight files.
    model_folder: what `@model_path` stands for, below root. weights_folder: overrides it for specs given in memory.
    """

    def __init__(self, spec: Any, root: Path | None, model_folder: str | None, weights_folder: Path | None = None):
        kind = spec.WhichOneof("Type")
        if kind != "mlProgram":
            raise PackageError(
                f"the model is of type {kind or 'none'}, not an ML program; convert it with convert_to='mlprogram'"
            )
        self.spec = spec
        self.program = spec.mlProgram
        _check_size(self.program)
        self._root = root
        self._model_folder = model_folder
        self._weights_folder = weights_folder
        self._files: dict[str, BlobFile] = {}
        self.cache: dict[Any, Any] = {}

    def with_program(self, spec: Any) -> Package:
        """Returns a package of the same weight files with another program; they share nothing that was read."""
        return Package(spec, self._root, self._model_folder, self._weights_folder)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files that were opened: all that a function needs once its constants are bound."""
        return sum(file.size for file in self._files.values())

    def read_blob(self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The values of one blob; PackageError when file, sentinel, offset, size or dtype are wrong."""
        return self._file(file_name).read(offset, dtype, shape)

    def read_part(
        self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...], first: int, count: int
    ) -> np.ndarray:
        """`count` values of one blob from number `first` on, flat; PackageError as `read_blob`."""
        return self._file(file_name).part(offset, dtype, shape, first, count)

    def check_blob(self, file_name: str, offset: int, dtype: DType, shape: tuple[int, ...]) -> None:
        """Raises what `read_blob` would raise, and reads no value."""
        self._file(file_name).check(offset, dtype, shape)

    def forget_blob(self, file_name: str, offset: int) -> None:
        """Gives back the memory of a blob that was read; its values are read from the file when they are used again."""
        self._files[file_name].forget(offset)

    def _file(self, file_name: str) -> BlobFile:
        if file_name not in self._files:
            root, name = self._weight_path(file_name)
            try:
                file = open_contained(root, name, PackageError)
            except FileNotFoundError as error:
                raise PackageError(
                    f"weight file {printable(name)} of {root} is missing; copy the whole package again"
                ) from error
            with file:
                self._files[file_name] = BlobFile(root / name, file)
        return self._files[file_name]

    def _weight_path(self, file_name: str) -> tuple[Path, str]:
        """The folder that a weight file may not leave, and its path there."""
        if not file_name.startswith(_WEIGHT_PREFIX):
            raise PackageError(f"weight file name {file_name!a:.60} does not start with {_WEIGHT_PREFIX}")
        relative = file_name[len(_WEIGHT_PREFIX) :]
        if self._weights_folder is not None:
            return self._weights_folder, relative.removeprefix("weights/")
        if self._model_folder is None or self._root is None:
            raise PackageError(
                f"the program needs {printable(file_name)}, but a spec alone was given; pass its weights folder too"
            )
        return self._root, f"{self._model_folder}/{relative}"


def _check_size(program: Any) -> None:
    """Raises PackageError for more ops, or blocks within ops, than anybody plans."""
    ops = blocks = 0
    functions = program.functions.values()
    waiting = [block for function in functions for block in function.block_specializations.values()]
    while waiting:
        for operation in waiting.pop().operations:
            waiting.extend(operation.blocks)
            ops, blocks = ops + 1, blocks + len(operation.blocks)
            if ops > MOST_OPS or blocks > MOST_BLOCKS:
                raise PackageError(
                    f"the program has more than {MOST_OPS:,} ops, or {MOST_BLOCKS:,} blocks within ops, expected at "
                    "most that many; it is damaged"
                )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "Manifest.json"
    try:
        manifest = parse(read_contained(folder, "Manifest.json", MOST_MANIFEST, PackageError))
    except FileNotFoundError as error:
        raise PackageError(
            f"{folder} holds no Manifest.json; it is no .mlpackage, or was only partly copied"
        ) from error
    except ValueError as error:
        raise PackageError(f"{path} cannot be read as JSON ({str(error)[:80]})") from error
    entries = manifest.get("itemInfoEntries") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise PackageError(f"{path} lists no items (itemInfoEntries)")
    return dict(manifest)


def _model_name(folder: Path) -> str:
    """The model file's path in the package, as the manifest names it."""
    manifest = _read_manifest(folder)
    identifier = manifest.get("rootModelIdentifier")
    entry = manifest["itemInfoEntries"].get(identifier) if isinstance(identifier, str) else None
    relative = entry.get("path") if entry else None
    if not isinstance(relative, str):
        raise PackageError(f"{folder}/Manifest.json names no root model (rootModelIdentifier {identifier!a:.60})")
    return f"Data/{relative}"


def parse_spec(path: Path) -> Any:
    """The Model message stored in `path`; PackageError when it cannot be read or is not that message."""
    return _spec(path.parent, path.name)


def check_package(folder: Path) -> None:
    """Raises PackageError for a package that may not be given to Core ML, which follows whatever lies in it.

    As `open_folder`, and for a link, a pipe or a device anywhere in it.
    """
    check_tree(folder, PackageError)
    open_folder(folder)


def _spec(root: Path, name: str) -> Any:
    spec = model_message()
    try:
        spec.ParseFromString(read_contained(root, name, MOST_PROGRAM, PackageError))
    except FileNotFoundError as error:
        raise PackageError(
            f"{root}: the model file {printable(name)} is missing; copy the whole package again"
        ) from error
    except DecodeError as error:
        raise PackageError(
            f"{root / name} is not a readable Core ML model ({str(error)[:80]}); it is damaged or was cut"
        ) from error
    return spec


def open_folder(folder: Path) -> Package:
    """Open an .mlpackage folder; PackageError names what is missing or damaged."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes any text
        found = "a file" if os.path.exists(folder) else "nothing"
        raise PackageError(f"{str(folder)!r}: expected an .mlpackage folder, found {found}")
    name = _model_name(folder)
    return Package(_spec(folder, name), root=folder, model_folder=name.rpartition("/")[0])


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
