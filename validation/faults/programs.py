"""A package's programs, open for damage: find an op from a weight, bind it anew, put in ops, change numbers, save.

It works on the protobuf and on the weight file, and knows nothing of what an op computes. What it leaves is a program
that runs: names are defined before they are read, types are declared. That it computes something else is the purpose.
Ops are found along the flow of values (`ahead`, `behind`), never by their number, so that a program that is converted
otherwise is still damaged in the same place, or the search fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.convert import constant_name
from export.weightfile import METADATA
from validation.mil.dtypes import BY_NAME, DTYPES
from validation.mil.package import Package, open_folder
from validation.mil.schema import proto
from validation.mil.values import decode_constant

Array = NDArray[Any]
Input = str | Array | Sequence[str]  # a value's name, a constant, or several names
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
STORED = {dtype.blob: dtype.numpy for dtype in DTYPES if dtype.blob is not None and dtype.bits >= 8}


class NotThere(LookupError):
    """A program lacks what a fault is to be planted into: the fault, not the program, has to be mended."""


@contextmanager
def opened(package: Path) -> Iterator[ProgramEdit]:
    """Opens a package for editing; what was changed is written when the block ends well."""
    edit = ProgramEdit(package)
    yield edit
    edit.save()


class ProgramEdit:
    """The functions and the stored numbers of one package."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self._opened = open_folder(package)
        self.spec = self._opened.spec
        functions = self.spec.mlProgram.functions
        self.functions = {name: FunctionEdit(functions[name], self._opened) for name in sorted(functions)}
        self._file = np.memmap(package / WEIGHTS, np.uint8, "r+")

    def stored(self, parameter: str, leaf: str = "weight", part: str = "val") -> Array:
        """Returns the numbers of a graph's parameter as they lie in the weight file; writing to them writes there.

        part: "val" of a plain constant; "data", "indices", "scale", "lut" of one that is compressed.
        """
        name = constant_name(f"{parameter}.{leaf}")
        for function in self.functions.values():
            if function.has(name):
                op = function.maker(name)
                value = op.attributes["val"] if part == "val" else op.inputs[part].arguments[0].value
                return self._blob(value.blobFileValue.offset).reshape(_lengths(value.type))
        raise NotThere(f"{self.package.name} has no constant {name}")

    def _blob(self, offset: int) -> Array:
        _, code, size, start, _ = METADATA.unpack(bytes(self._file[offset : offset + METADATA.size]))
        values: Array = self._file[start : start + size].view(STORED[code])
        return values

    def save(self) -> None:
        """Writes the program and the weight file."""
        self._file.flush()
        (self.package / MODEL).write_bytes(self.spec.SerializeToString(deterministic=True))


class FunctionEdit:
    """One function: its ops, by what they give and read."""

    def __init__(self, function: Any, package: Package) -> None:
        self._package = package
        self.block = next(iter(function.block_specializations.values()))
        self._inputs = {item.name: item.type for item in function.inputs}
        self._added = 0

    def has(self, value: str) -> bool:
        """Whether an op gives that value."""
        return any(value in _given(op) for op in self.block.operations)

    def maker(self, value: str) -> Any:
        """Returns the op that gives a value."""
        return self._one((op for op in self.block.operations if value in _given(op)), f"gives {value}")

    def weighted(self, parameter: str, leaf: str = "weight") -> Any:
        """Returns the op that reads a graph's parameter (`layers.0.mlp.up_proj`)."""
        name = constant_name(f"{parameter}.{leaf}")
        return self._one(self.readers(name), f"reads {name}")

    def readers(self, value: str) -> list[Any]:
        """Returns the ops that read a value, in order."""
        return [op for op in self.block.operations if value in _read(op)]

    def ahead(self, op: Any, kind: str) -> Any:
        """Returns the first op of a type into which the result of `op` flows."""
        reached, passed = _given(op), False
        for later in self.block.operations:
            passed = passed or _given(later) == _given(op)
            if passed and reached & _read(later):
                if later.type == kind:
                    return later
                reached = reached | _given(later)
        raise NotThere(f"no {kind} ahead of {result(op)}")

    def behind(self, op: Any, kind: str) -> Any:
        """Returns the last op of a type from which what `op` takes flows."""
        wanted, passed = _read(op), False
        for earlier in reversed(self.block.operations):
            if passed and wanted & _given(earlier):
                if earlier.type == kind:
                    return earlier
                wanted = wanted | _read(earlier)
            passed = passed or _given(earlier) == _given(op)
        raise NotThere(f"no {kind} behind {result(op)}")

    def ops(self, kind: str) -> list[Any]:
        """Returns all ops of a type, in order."""
        return [op for op in self.block.operations if op.type == kind]

    def bind(self, op: Any, **inputs: Input) -> None:
        """Makes an op take something else; numbers become constants of their own, those that others read stay."""
        for name, value in inputs.items():
            names = [self.constant(value)] if isinstance(value, np.ndarray) else _listed(value)
            arguments = op.inputs[name].arguments
            del arguments[:]
            for source in names:
                arguments.add().name = source

    def constant(self, numbers: Array) -> str:
        """Puts in a constant (fp16, float32, int32, bool, or one string), ahead of all ops; returns its name."""
        op = proto("MIL").Operation(type="const")
        output = op.outputs.add(name=self._name())
        _fill(op.attributes["val"], numbers)
        output.type.CopyFrom(op.attributes["val"].type)
        self.block.operations.insert(0, op)
        return str(output.name)

    def redirect(self, old: str, new: str, but: Iterable[Any] = ()) -> None:
        """Makes all readers of a value, but those that are named, and the function's end take another."""
        spared = [_given(op) for op in but]
        for op in self.block.operations:
            for argument in () if _given(op) in spared else _arguments(op):
                argument.name = new if argument.name == old else argument.name
        self.block.outputs[:] = [new if name == old else name for name in self.block.outputs]

    def add(self, kind: str, like: str, lengths: Sequence[int] | None = None, **inputs: Input) -> str:
        """Puts in an op as soon as what it takes is there; returns its result, typed as `like` but for its lengths."""
        op = proto("MIL").Operation(type=kind)
        output = op.outputs.add(name=self._name())
        output.type.CopyFrom(self._type(like))
        if lengths is not None:
            _declare(output.type, output.type.tensorType.dataType, lengths)
        self.bind(op, **inputs)
        self.block.operations.insert(1 + max(map(self.place, _read(op))), op)
        return str(output.name)

    def cut(self, value: str, axis: int, begin: int, end: int) -> str:
        """Puts in a slice of a value along one axis; returns its name."""
        lengths = np.array(self.shape(value), np.int32)
        first, last = np.zeros_like(lengths), lengths.copy()
        first[axis], last[axis] = begin, end
        return self.add("slice_by_index", value, (last - first).tolist(), x=value, begin=first, end=last)

    def join(self, values: Sequence[str], axis: int) -> str:
        """Puts values together along one axis; returns the name of the whole."""
        lengths = list(self.shape(values[0]))
        lengths[axis] = sum(self.shape(value)[axis] for value in values)
        number, flag = np.array(axis, np.int32), np.array(False)
        return self.add("concat", values[0], lengths, values=values, axis=number, interleave=flag)

    def value(self, constant: str) -> Array:
        """Returns the numbers of a constant."""
        loaded: Array = decode_constant(self.maker(constant).attributes["val"], self._package).load()
        return loaded

    def numbers(self, op: Any, name: str) -> Array:
        """Returns the numbers of a constant that an op takes."""
        return self.value(taken(op, name))

    def shape(self, value: str) -> tuple[int, ...]:
        """Returns the declared shape of a value."""
        return _lengths(self._type(value))

    def _type(self, value: str) -> Any:
        if value in self._inputs:
            return self._inputs[value]
        return next(output.type for output in self.maker(value).outputs if output.name == value)

    def _name(self) -> str:
        self._added += 1
        return f"planted_{self._added}"

    def place(self, value: str) -> int:
        """Returns the place of the op that gives a value; −1 for what the function is given."""
        places = (index for index, op in enumerate(self.block.operations) if value in _given(op))
        return -1 if value in self._inputs else next(places)

    def _one(self, found: Iterable[Any], what: str) -> Any:
        ops = list(found)
        if len(ops) != 1:
            raise NotThere(f"{len(ops)} ops found of which each {what}, expected 1")
        return ops[0]


def result(op: Any) -> str:
    """Returns the name of an op's first result."""
    return str(op.outputs[0].name)


def taken(op: Any, name: str, at: int = 0) -> str:
    """Returns the name of what an op takes."""
    return str(op.inputs[name].arguments[at].name)


def _given(op: Any) -> frozenset[str]:
    return frozenset(output.name for output in op.outputs)


def _arguments(op: Any) -> list[Any]:
    """What an op takes by name."""
    bound = (argument for value in op.inputs.values() for argument in value.arguments)
    return [argument for argument in bound if argument.WhichOneof("binding") == "name"]


def _read(op: Any) -> frozenset[str]:
    return frozenset(argument.name for argument in _arguments(op))


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _lengths(kind: Any) -> tuple[int, ...]:
    return tuple(dimension.constant.size for dimension in kind.tensorType.dimensions)


def _declare(kind: Any, dtype: int, shape: Sequence[int]) -> None:
    kind.tensorType.dataType, kind.tensorType.rank = dtype, len(shape)
    del kind.tensorType.dimensions[:]
    for length in shape:
        kind.tensorType.dimensions.add().constant.size = length


def _fill(value: Any, numbers: Array) -> None:
    """Makes a constant of numbers (fp16, float32, int32, bool) or of one string."""
    tensor = value.immediateValue.tensor
    if numbers.dtype.kind == "U":
        _declare(value.type, proto("MIL").DataType.Value("STRING"), numbers.shape)
        tensor.strings.values[:] = [str(numbers)]
        return
    name = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool"}[numbers.dtype.name]
    _declare(value.type, BY_NAME[name].proto, numbers.shape)
    if name == "fp16":
        tensor.bytes.values = numbers.tobytes()
    else:
        field = {"fp32": tensor.floats, "int32": tensor.ints, "bool": tensor.bools}[name]
        field.values[:] = numbers.reshape(-1).tolist()
