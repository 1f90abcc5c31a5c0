"""How an op's result reaches its declared type: the three precisions.

    fp16             arguments raised to float32, computed in float32, rounded once to the declared type: what a good
                     device does, and the least error that fp16 storage allows
    fp16-accumulate  the same, but sums of products run in float32 over blocks of 32 and the blocks are added in fp16:
                     a pessimistic device
    fp32             everything declared fp16 is held in float32 and never rounded: separates a wrong conversion from
                     a loss of precision

Ops of kind NATIVE and MOVE need no wrapper; see `registry`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from validation.mil.binding import few
from validation.mil.dtypes import BY_NAME, DType
from validation.mil.registry import Bools, Floats, Ints, Kind, Op
from validation.mil.values import TensorType

PRECISIONS = ("fp16", "fp16-accumulate", "fp32")
_HALF = torch.float16
_PIECE = 1 << 16  # 256 KB of float32, twice: within the second-level cache

# A parameter that is a plain Python value for the op, but computed in this program.
_READERS: dict[Any, Callable[[torch.Tensor], Any]] = {
    int: lambda value: int(value.item()),
    float: lambda value: float(value.item()),
    bool: lambda value: bool(value.item()),
    Ints: lambda value: tuple(few(value).reshape(-1).tolist()),
    Floats: lambda value: tuple(few(value).reshape(-1).tolist()),
    Bools: lambda value: tuple(bool(item) for item in few(value).reshape(-1).tolist()),
}


def held_type(dtype: DType, precision: str) -> torch.dtype:
    """The torch type that holds values declared as `dtype`."""
    return torch.float32 if precision == "fp32" and dtype.torch is _HALF else dtype.torch


def read_as_number(annotation: Any) -> bool:
    """Whether a computed argument with that annotation reaches the op as Python numbers, not as a tensor."""
    return annotation in _READERS


def rounded(op: Op, precision: str, dynamic: dict[int, tuple[Any, Any]], results: list[Any]) -> Callable[..., Any]:
    """The op's function, wrapped so that it takes what the frame holds and gives what the program declares.

    dynamic: place of each computed argument -> (annotation, declared type). results: declared types of the results.
    """
    halved = bool(results) and isinstance(results[0], TensorType) and results[0].dtype is BY_NAME["fp16"]
    pessimistic = precision == "fp16-accumulate" and halved and op.blocked is not None
    function = op.blocked if pessimistic and op.blocked is not None else op.function
    readers = _readers(dynamic)
    if readers:
        function = _reading(function, readers)
    if op.kind is not Kind.FLOAT:
        return function
    targets = [
        held_type(kind.dtype, precision) if isinstance(kind, TensorType) and kind.dtype else None for kind in results
    ]
    raising = precision != "fp32"
    if op.pieced is not None and precision == "fp16" and targets == [_HALF] and not readers:
        return op.pieced
    if op.pointwise and raising and targets == [_HALF]:
        return _in_pieces(function)
    return _float_many(function, targets, raising) if op.many else _float_one(function, targets[0], raising)


def in_place(op: Op, dynamic: dict[int, tuple[Any, Any]]) -> Callable[..., Any] | None:
    """The op's in-place form, if it has one, wrapped so that it takes what the frame holds; dynamic: see `rounded`."""
    readers = _readers(dynamic)
    return _reading(op.inplace, readers) if op.inplace is not None and readers else op.inplace


def _readers(dynamic: dict[int, tuple[Any, Any]]) -> dict[int, Callable[[Any], Any]]:
    return {place: _READERS[kind] for place, (kind, _) in dynamic.items() if kind in _READERS}


def _reading(function: Callable[..., Any], readers: dict[int, Callable[[Any], Any]]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return function(*[readers[i](item) if i in readers else item for i, item in enumerate(arguments)])

    return call


def _raised(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.float() if argument.dtype is _HALF else argument
    if isinstance(argument, tuple):
        return tuple(_raised(item) for item in argument)
    return argument


def _float_one(function: Callable[..., Any], target: torch.dtype | None, raising: bool) -> Callable[..., Any]:
    if target is None:
        return function
    if not raising:
        return lambda *arguments: function(*arguments).to(target)
    return lambda *arguments: function(*[_raised(item) for item in arguments]).to(target)


def _in_pieces(function: Callable[..., Any]) -> Callable[..., Any]:
    """`_float_one` for a pointwise op: the float32 values of a large tensor never leave the cache."""
    whole = _float_one(function, _HALF, True)

    def call(x: torch.Tensor, *options: Any) -> Any:
        dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
        if x.numel() <= 2 * _PIECE or not dense or x.dtype is not _HALF:
            return whole(x, *options)
        result = torch.empty_like(x)
        source, target = (tensor.as_strided((x.numel(),), (1,), tensor.storage_offset()) for tensor in (x, result))
        for start in range(0, x.numel(), _PIECE):
            target[start : start + _PIECE] = function(source[start : start + _PIECE].float(), *options)
        return result

    return call


def _float_many(function: Callable[..., Any], targets: list[torch.dtype | None], raising: bool) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        results = function(*([_raised(item) for item in arguments] if raising else arguments))
        return [value if target is None else value.to(target) for value, target in zip(results, targets, strict=True)]

    return call
