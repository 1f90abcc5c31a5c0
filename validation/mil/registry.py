"""The table of ops that the runtime knows, and how each takes its arguments.

An op is one function whose parameters carry MIL's parameter names; its annotations say how an argument arrives:

    Tensor                 a torch tensor (constant or computed)
    Tensors                all arguments bound to that name, as a tuple of tensors
    int float bool str     one Python value
    Ints Bools Floats      a tuple of Python values
    Array                  a numpy array (compressed constants, evaluated before anything runs)
    Blocks, Frame          nested blocks and the running frame (control flow)
    State                  the box that holds a state

A parameter without default is required. Constants are converted once, when the function is planned. Three kinds:

    FLOAT   (default) fp16 arguments are raised to float32, the result is rounded once to its declared type
    NATIVE  torch's own fp16 kernel already computes in float32 and rounds once (tests hold it to that)
    MOVE    values are moved or compared, never computed

An op is `fresh` when its results lie in memory of their own. That is what in-place updates rest on (`aliasing`), so it
is said op by op, never assumed, and tests/mil/test_mil_fresh.py holds every fresh op to it.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor
Tensors = typing.NewType("Tensors", tuple)  # type: ignore[type-arg]
Ints = tuple[int, ...]
Floats = tuple[float, ...]
Bools = tuple[bool, ...]


Array = np.ndarray
Arrays = typing.NewType("Arrays", tuple)  # type: ignore[type-arg]


class Frame(list):  # type: ignore[type-arg]
    """Annotation only: the running frame, for control flow."""


class Blocks(tuple):  # type: ignore[type-arg]
    """Annotation only: an op's nested blocks, in order."""


class State:
    """A tensor that outlives a call: ops read and replace `tensor`."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def numel(self) -> int:
        """None of its own: what is read of it is a result, and what is written an argument."""
        return 0


class Kind(enum.Enum):
    """How an op's numbers are rounded; see the file's docstring."""

    FLOAT = "float"
    NATIVE = "native"
    MOVE = "move"


@dataclass(frozen=True)
class Parameter:
    """One parameter of an op: MIL's name, how the argument arrives, its default (`Parameter.empty`: required)."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether a program must give it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Packing:
    """Another form of an op whose one computed argument is its first, in fp16: its tensors are laid out at first use.

    suits: whether they can be, from the declared types of the argument and of the constant tensors (all of them fp16)
    and the values of the other constants, by parameter name. Tensors that suit are never raised to float32 as a whole,
    laid out or not: the op's other forms take them in fp16. pays: whether it is worth it, for an argument of that
    declared type on this machine. pack: makes the layout from the tensors. function: computes the op, as if its kind
    were NATIVE, from the argument and the layout.
    """

    suits: Callable[..., bool]
    pays: Callable[[Any], bool]
    pack: Callable[..., Any]
    function: Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Op:
    """A registered op: the function that computes it, its parameters, and how its result is rounded.

    fresh: no result shares memory with an argument, with another result, or with what an earlier call gave; no element
    of a result shares memory with another. results: how many it gives; None: as many as the program declares, as a
    tuple. pointwise: each element of the result depends on one element of the first argument alone, so that a large
    fp16 tensor can be done in pieces. blocked: the same op with fp16 accumulation in blocks, for precision
    "fp16-accumulate". inplace: the same op writing into its first argument, used where no reader of that argument
    remains. pieced: the same op for an fp16 result, of kind FLOAT in precision "fp16": it raises and rounds by itself,
    so that what it raises stays in the cache. packing: see `Packing`; taken in precision "fp16", on the CPU.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    results: int | None
    kind: Kind
    fresh: bool
    pointwise: bool
    blocked: Callable[..., Any] | None
    inplace: Callable[..., Any] | None
    pieced: Callable[..., Any] | None
    packing: Packing | None

    @property
    def many(self) -> bool:
        """Whether it gives a tuple of results."""
        return self.results is None


OPS: dict[str, Op] = {}


def only_moves(name: str) -> bool:
    """Returns whether the op returns nothing that did not come in: kind MOVE."""
    return OPS[name].kind is Kind.MOVE


def _plain(annotation: Any) -> Any:
    """The annotation without `| None`: an argument that is there arrives as its other half."""
    rest = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return rest[0] if union and len(rest) == 1 else annotation


def _parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)
    return tuple(
        Parameter(name, _plain(hints.get(name, Tensor)), value.default) for name, value in signature.parameters.items()
    )


def _results(function: Callable[..., Any]) -> int | None:
    returned = typing.get_type_hints(function).get("return")
    if returned in (Tensors, Arrays):
        return None
    return 0 if returned is type(None) else 1


def op(
    *names: str,
    kind: Kind = Kind.FLOAT,
    fresh: bool = False,
    pointwise: bool = False,
    blocked: Callable[..., Any] | None = None,
    inplace: Callable[..., Any] | None = None,
    pieced: Callable[..., Any] | None = None,
    packing: Packing | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function under MIL's op names; the rest is described at `Op`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPS:
                raise ValueError(f"op {name} is registered twice")
            OPS[name] = Op(
                name=name,
                function=function,
                parameters=_parameters(function),
                results=_results(function),
                kind=kind,
                fresh=fresh,
                pointwise=pointwise,
                blocked=blocked,
                inplace=inplace,
                pieced=pieced,
                packing=packing,
            )
        return function

    return register
