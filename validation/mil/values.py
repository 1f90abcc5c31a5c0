"""Types and constant values of a MIL program, decoded from protobuf.

A tensor type becomes a `TensorType`, a list of them a `ListType`, a state a `StateType`. Constant values become numpy
arrays (strings: str or list of str) and keep their declared type beside them. Nothing here knows torch tensors or ops.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvlm.errors import PackageError
from validation.mil.dtypes import BY_PROTO, DType, unpack
from validation.mil.package import Package

_STRING = 2
# Sixteen times the largest tensor of any model that a phone holds; a greater count is a lie or a bomb.
MOST_ELEMENTS = 1 << 32
MOST_AXES = 64  # of numpy and torch


@dataclass(frozen=True)
class TensorType:
    """A tensor's element type (None: string) and shape; None stands for a length known only at run time."""

    dtype: DType | None
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        name = self.dtype.name if self.dtype else "string"
        return f"{name}[{', '.join('?' if length is None else str(length) for length in self.shape)}]"


@dataclass(frozen=True)
class ListType:
    """A list whose elements have one tensor type."""

    element: Any


@dataclass(frozen=True)
class StateType:
    """A tensor that outlives a call."""

    tensor: TensorType


@dataclass(frozen=True)
class OtherType:
    """A tuple or dictionary: only constants and classifier outputs have one."""

    kind: str


def decode_type(message: Any) -> TensorType | ListType | StateType | OtherType:
    """A MILSpec.ValueType as one of the classes above; PackageError for an element type that MIL.proto lacks."""
    kind = message.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(message.tensorType)
    if kind == "listType":
        return ListType(decode_type(message.listType.type))
    if kind == "stateType":
        inner = decode_type(message.stateType.wrappedType)
        if isinstance(inner, TensorType):
            return StateType(inner)
    if kind in ("tupleType", "dictionaryType"):
        return OtherType(kind)
    raise PackageError(f"the program holds a value type that cannot be read ({kind or 'empty'}); it is damaged")


def _tensor_type(message: Any) -> TensorType:
    if message.dataType != _STRING and message.dataType not in BY_PROTO:
        raise PackageError(
            f"the program holds element type {message.dataType}, which is unknown; it is newer or damaged"
        )
    if len(message.dimensions) > MOST_AXES:
        raise PackageError(f"a tensor type has {len(message.dimensions)} dimensions, at most {MOST_AXES} are possible")
    if message.rank != len(message.dimensions):
        raise PackageError(
            f"a tensor type has rank {message.rank} but {len(message.dimensions)} dimensions; it is damaged"
        )
    shape = tuple(
        dim.constant.size if dim.WhichOneof("dimension") == "constant" else None for dim in message.dimensions
    )
    kind = TensorType(BY_PROTO.get(message.dataType), shape)
    if math.prod(length or 1 for length in shape) > MOST_ELEMENTS:  # zeros too: no length may hide behind one
        raise PackageError(
            f"the program declares {kind}, too many elements, at most {MOST_ELEMENTS} are possible; it is damaged"
        )
    return kind


@dataclass(frozen=True)
class Constant:
    """A constant of the program: its type, and where its value comes from; `load` reads it anew each time."""

    type: TensorType | ListType | OtherType
    message: Any
    package: Package

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What identifies a stored blob within its package, so that functions share it; None for inline values."""
        if self.message.WhichOneof("value") != "blobFileValue" or not isinstance(self.type, TensorType):
            return None
        blob = self.message.blobFileValue
        return (blob.fileName, blob.offset, self.type)

    @property
    def digest(self) -> bytes:
        """Differs wherever type or value (of a stored blob: file and place) differ in a single bit."""
        return hashlib.blake2b(self.message.SerializeToString(deterministic=True)).digest()

    @property
    def computed_by(self) -> None:
        """See `binding.PlannedConstant`."""
        return None

    def load(self) -> Any:
        """numpy array, str, or list; PackageError when the value contradicts its type."""
        kind = self.message.WhichOneof("value")
        if kind == "blobFileValue":
            return self._load_blob()
        if kind == "immediateValue":
            return _immediate(self.message.immediateValue, self.type, self.package)
        raise PackageError("the program holds a constant without a value; it is damaged")

    def part(self, first: int, count: int) -> np.ndarray:
        """`count` of the values that `load` gives, flat, from number `first` on; of a stored blob no others are read.

        `first` must begin a byte where a value has fewer than eight bits. PackageError as `load`.
        """
        if self.message.WhichOneof("value") == "blobFileValue":
            return self.package.read_part(*self._place(), first, count)
        return np.asarray(self.load()).reshape(-1)[first : first + count]

    def check(self) -> None:
        """Raises the PackageError that `load` would raise of a stored blob's place, and reads no value."""
        if self.message.WhichOneof("value") == "blobFileValue":
            self.package.check_blob(*self._place())

    def forget(self) -> None:
        """Gives back the memory that a stored blob's mapped values take."""
        if self.key is not None:
            blob = self.message.blobFileValue
            self.package.forget_blob(blob.fileName, blob.offset)

    def _load_blob(self) -> np.ndarray:
        return self.package.read_blob(*self._place())

    def _place(self) -> tuple[str, int, DType, tuple[int, ...]]:
        if not isinstance(self.type, TensorType) or self.type.dtype is None or None in self.type.shape:
            raise PackageError(
                f"a weight file holds a value of type {self.type}, which none can; the program is damaged"
            )
        blob = self.message.blobFileValue
        shape = tuple(int(length or 0) for length in self.type.shape)
        return blob.fileName, blob.offset, self.type.dtype, shape


def decode_constant(message: Any, package: Package) -> Constant:
    """A MILSpec.Value with its type; the value itself is read later."""
    kind = decode_type(message.type)
    if isinstance(kind, StateType):
        raise PackageError("the program holds a constant state, which MIL does not allow; it is damaged")
    return Constant(kind, message, package)


def _immediate(message: Any, kind: Any, package: Package) -> Any:
    holder = message.WhichOneof("value")
    if holder == "tensor" and isinstance(kind, TensorType):
        return _immediate_tensor(message.tensor, kind)
    if holder in ("list", "tuple"):
        return [decode_constant(value, package).load() for value in getattr(message, holder).values]
    if holder == "dictionary":
        return {
            str(decode_constant(pair.key, package).load()): decode_constant(pair.value, package).load()
            for pair in message.dictionary.values
        }
    raise PackageError(f"the program holds a constant of type {kind} stored as {holder or 'nothing'}; it is damaged")


def _immediate_tensor(message: Any, kind: TensorType) -> Any:
    field = message.WhichOneof("value")
    stored = getattr(message, field).values if field else ()
    if kind.dtype is None:
        strings = [str(value) for value in stored]
        return strings if kind.shape else (strings or [""])[0]
    shape = tuple(int(length or 0) for length in kind.shape)
    count = math.prod(shape)
    if field == "bytes":
        values = _from_bytes(bytes(stored), kind.dtype, count)
    else:
        values = _as_declared(np.array(stored), kind.dtype)
    if len(values) == 0 and count == 1:
        values = np.zeros(1, kind.dtype.numpy)  # protobuf drops a lone default value
    if len(values) == 1 and count > 1:
        return np.broadcast_to(values.reshape(()), shape)  # Core ML lets one stored value stand for all
    if len(values) != count:
        raise PackageError(f"a constant of type {kind} stores {len(values)} values; the program is damaged")
    return values.reshape(shape)


def _as_declared(stored: np.ndarray, dtype: DType) -> np.ndarray:
    """The stored numbers in the declared type; PackageError for one that it cannot hold."""
    if stored.dtype.kind not in "fiub":
        raise PackageError(f"a constant of type {dtype.name} is stored as strings; the program is damaged")
    with np.errstate(all="ignore"):
        values = stored.astype(dtype.numpy)
        if dtype.is_float:
            lost = np.isinf(values) & np.isfinite(stored)
        else:
            low, high = dtype.limits
            lost = (values != stored) | (stored < low) | (stored > high)
    if lost.any():
        raise PackageError(
            f"a constant of type {dtype.name} stores {stored[lost][0]}, which {dtype.name} cannot hold; "
            "the program is damaged"
        )
    return values


def _from_bytes(raw: bytes, dtype: DType, count: int) -> np.ndarray:
    if dtype.bits < 8:
        packed = np.frombuffer(raw, np.uint8)
        if len(packed) * 8 < count * dtype.bits:
            raise PackageError(
                f"a constant of {count} {dtype.name} values stores {len(raw)} bytes; the program is damaged"
            )
        return unpack(packed, dtype.bits, count, signed=dtype.name.startswith("int"))
    if len(raw) % dtype.numpy.itemsize:
        raise PackageError(f"a constant of type {dtype.name} stores {len(raw)} bytes; the program is damaged")
    return np.frombuffer(raw, dtype.numpy)
