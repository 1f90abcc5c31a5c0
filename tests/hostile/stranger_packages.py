"""Small `.mlpackage` folders, written message by message, and what a stranger may make of them, file by file."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mutations import changed_bytes, changed_json, changed_message, names_in

from validation.mil.schema import model_message

MODEL, WEIGHTS, MANIFEST = "Data/com/model.mlmodel", "Data/com/weights/weight.bin", "Manifest.json"
STORED = "@model_path/weights/weight.bin"
OPSET = "CoreML8"
CODES = {"string": 2, "bool": 1, "fp16": 10, "fp32": 11, "int8": 21, "int32": 23, "uint8": 31, "uint4": 35}
BLOBS = {"fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "uint4": 11}
NUMPY = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "int32": np.int32,
    "uint8": np.uint8,
}
Shape = Sequence[int]
WAYS = {"fields": 62, "bytes": 12, "blob": 14, "cut": 3, "manifest": 6, "text": 3}  # of changing a package, how often


@dataclass(frozen=True)
class Stored:
    """A constant in the weight file: its type, shape and packed bytes."""

    dtype: str
    shape: Shape
    data: bytes


def stored(array: np.ndarray) -> Stored:
    """An array as a constant of the weight file."""
    (dtype,) = (name for name, kind in NUMPY.items() if array.dtype == kind)
    return Stored(dtype, array.shape, array.tobytes())


class Program:
    """A package in the making: one function, its ops in order, and the weight file beside it."""

    def __init__(self) -> None:
        self.spec = model_message()
        self.spec.specificationVersion = 9
        self.function = self.spec.mlProgram.functions["main"]
        self.function.opset = OPSET
        self.block = self.function.block_specializations[OPSET]
        self.weights = bytearray(struct.pack("<II", 0, 2).ljust(64, b"\0"))

    def input(self, name: str, dtype: str, shape: Shape) -> str:
        """An array that goes in."""
        declare(self.function.inputs.add(name=name).type, dtype, shape)
        self.spec.description.input.add(name=name).type.multiArrayType.SetInParent()
        return f"@{name}"

    def image(self, name: str, side: int) -> str:
        """A picture that goes in."""
        declare(self.function.inputs.add(name=name).type, "fp16", (1, 3, side, side))
        kind = self.spec.description.input.add(name=name).type.imageType
        kind.width, kind.height, kind.colorSpace = side, side, 20
        return f"@{name}"

    def state(self, name: str, shape: Shape) -> str:
        """A state of fp16."""
        declare(self.function.inputs.add(name=name).type.stateType.wrappedType, "fp16", shape)
        array = self.spec.description.state.add(name=name).type.stateType.arrayType
        array.shape.extend(shape)
        return f"@{name}"

    def op(self, kind: str, name: str, dtype: str, shape: Shape, block: Any = None, /, **given: Any) -> str:
        """One op with one result."""
        operation = self.none(kind, name, block, **given)
        declare(operation.outputs.add(name=name).type, dtype, shape)
        return f"@{name}"

    def none(self, kind: str, name: str, block: Any = None, /, **given: Any) -> Any:
        """One op without a result; given: arrays, texts, names that begin with @, `Stored`, or lists of these."""
        operation = (self.block if block is None else block).operations.add(type=kind)
        self._fill(operation.attributes["name"], name)
        for parameter, value in given.items():
            for item in value if isinstance(value, list) else [value]:
                binding = operation.inputs[parameter].arguments.add()
                if isinstance(item, str) and item.startswith("@"):
                    binding.name = item[1:]
                else:
                    self._fill(binding.value, item)
        return operation

    def give(self, *names: str) -> None:
        """What comes out."""
        for name in names:
            self.block.outputs.append(name[1:])
            self.spec.description.output.add(name=name[1:]).type.multiArrayType.SetInParent()

    def write(self, folder: Path) -> Path:
        """The package, in `folder`."""
        (folder / WEIGHTS).parent.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(self.weights)
        (folder / MODEL).write_bytes(self.spec.SerializeToString(deterministic=True))
        items = {
            "1": {"author": "com.apple.CoreML", "name": "model.mlmodel", "path": "com/model.mlmodel"},
            "2": {"author": "com.apple.CoreML", "name": "weights", "path": "com/weights"},
        }
        manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "1"}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    def _fill(self, message: Any, value: Any) -> None:
        if isinstance(value, str):
            declare(message.type, "string", ())
            message.immediateValue.tensor.strings.values.append(value)
        elif isinstance(value, Stored):
            declare(message.type, value.dtype, value.shape)
            message.blobFileValue.fileName = STORED
            message.blobFileValue.offset = self._blob(value)
        else:
            _fill_array(message, np.asarray(value))

    def _blob(self, value: Stored) -> int:
        place = len(self.weights)
        header = struct.pack("<IIQQQ", 0xDEADBEEF, BLOBS[value.dtype], len(value.data), place + 64, 0)
        self.weights += header.ljust(64, b"\0") + value.data + bytes(-len(value.data) % 64)
        struct.pack_into("<I", self.weights, 0, struct.unpack_from("<I", self.weights)[0] + 1)
        return place


def declare(message: Any, dtype: str, shape: Shape) -> None:
    """Fills a ValueType."""
    tensor = message.tensorType
    tensor.dataType, tensor.rank = CODES[dtype], len(shape)
    for length in shape:
        tensor.dimensions.add().constant.size = length


def _fill_array(message: Any, array: np.ndarray) -> None:
    kinds = {"b": "bools", "f": "floats", "i": "ints"}
    array = array.astype(np.int32) if array.dtype == np.int64 else array
    (dtype,) = (name for name, kind in NUMPY.items() if array.dtype == kind)
    declare(message.type, dtype, array.shape)
    tensor = message.immediateValue.tensor
    if dtype in ("bool", "fp32", "int32"):
        getattr(tensor, kinds[array.dtype.kind]).values.extend(array.reshape(-1).tolist())
    else:
        tensor.bytes.values = array.tobytes()


@dataclass(frozen=True)
class Original:
    """A package that is whole, and what its files may become."""

    folder: Path
    parts: tuple[str, str, str] = (MODEL, WEIGHTS, MANIFEST)

    @cached_property
    def data(self) -> dict[str, bytes]:
        return {part: (self.folder / part).read_bytes() for part in self.parts}

    @cached_property
    def spec(self) -> Any:
        return model_message().FromString(self.data[self.parts[0]])

    @cached_property
    def names(self) -> list[str]:
        return names_in(self.spec)

    @cached_property
    def blobs(self) -> list[int]:
        """Where the metadata of its blobs begin."""
        data, mark = self.data[self.parts[1]], struct.pack("<I", 0xDEADBEEF)
        return [place for place in range(64, len(data), 64) if data[place : place + 4] == mark]

    def changed(self, way: str, draw: random.Random) -> tuple[str, bytes]:
        """Which file another one takes the place of, and what that holds; `way`: one of WAYS."""
        model, weights, manifest = self.parts
        if way == "fields" or (not self.blobs and way in ("blob", "cut")):
            return model, changed_message(self.spec, draw, self.names)
        if way == "bytes":
            return model, changed_bytes(self.data[model], draw)
        if way == "blob":
            return weights, self._other_blob(draw)
        if way == "cut":
            return weights, self.data[weights][: draw.randrange(len(self.data[weights]))]
        if way == "manifest":
            return manifest, changed_json(json.loads(self.data[manifest]), draw)
        return manifest, changed_bytes(self.data[manifest], draw)

    def _other_blob(self, draw: random.Random) -> bytes:
        """One field of one blob's metadata, or of the file's header, is another number."""
        data = bytearray(self.data[self.parts[1]])
        if draw.random() < 0.1:
            struct.pack_into("<I", data, draw.choice((0, 4)), draw.choice((0, 1, 3, (1 << 32) - 1)))
            return bytes(data)
        place, (offset, form) = draw.choice(self.blobs), draw.choice(((0, "<I"), (4, "<I"), (8, "<Q"), (16, "<Q")))
        (held,) = struct.unpack_from(form, data, place + offset)
        most = (1 << 8 * struct.calcsize(form)) - 1
        number = draw.choice((0, 1, 2, held + 1, held - 1, held + 64, 2 * held, len(data), most, most - held + 1))
        struct.pack_into(form, data, place + offset, number & most)
        return bytes(data)

    def lay(self, target: Path, changes: Mapping[str, bytes]) -> Path:
        """The package at `target` with other files in the place of those named; the rest are the same files."""
        for part in self.parts:
            path = target / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if part in changes:
                path.write_bytes(changes[part])
            else:
                os.link(self.folder / part, path)
        return target
