"""Constants bound into a frame: converted once, when a function is first run.

The frame is a list of slots; the first three are `execution`'s: the running frame itself, the hook, and how many more
rounds of loops there may be. Stored blobs are
shared between the functions of a package by what identifies them, and stay views of the mapped file wherever their op
takes fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from fastvlm.errors import PackageError
from validation.mil.execution import FIRST_FREE_SLOT, FRAME_SLOT, MOST_ROUNDS, ROUNDS_SLOT
from validation.mil.package import Package
from validation.mil.registry import Bools, Floats, Ints, Kind, Packing, Tensor

MOST_VALUES = 4096  # of a parameter that becomes Python values: axes, pads, a shape, elements of a list


class Computation(Protocol):
    """What computes constants from others, and keeps its results until they are dropped."""

    @property
    def sources(self) -> Sequence[Computation]:
        """The computations whose results it takes."""

    def drop(self) -> None:
        """Gives back the memory of the results."""


class PlannedConstant(Protocol):
    """A constant whose value is read, or decompressed, when it is first needed."""

    @property
    def type(self) -> Any:
        """Its declared type, see `values`."""

    @property
    def key(self) -> Any:
        """What identifies it within its package, so that functions share it; None where it is not worth sharing."""

    @property
    def digest(self) -> bytes:
        """Differs wherever type or value differ in a single bit."""

    @property
    def computed_by(self) -> Computation | None:
        """What computes it; None for a constant that the program holds."""

    def load(self) -> Any:
        """numpy array, str, or list; PackageError when the value contradicts its type."""

    def forget(self) -> None:
        """Gives back the memory that its mapped values take; they are read again when they are needed again."""


def to_tensor(value: np.ndarray) -> torch.Tensor:
    """A torch view of a numpy array (a copy where torch has no such type or the array cannot be written).

    One value that numpy spreads over a shape stays one value. PackageError for what the next wider type cannot hold.
    """
    if value.size > 1 and not any(value.strides):
        return to_tensor(np.array(value[(0,) * value.ndim])).expand(value.shape)
    if value.dtype == np.uint16:
        return torch.from_numpy(value.astype(np.int32))
    if value.dtype in (np.uint32, np.uint64):
        if value.dtype == np.uint64 and value.size and value.max() > np.iinfo(np.int64).max:
            raise PackageError(
                f"a uint64 value of {value.max()} was found, at most {np.iinfo(np.int64).max} can be held"
            )
        return torch.from_numpy(value.astype(np.int64))
    array = value if value.flags.writeable else value.copy()
    return torch.from_numpy(array)


def _scalar(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise PackageError(f"a parameter that takes one value holds {value.size}; the program is damaged")
        return value.reshape(()).item()
    return value


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray) and value.size > MOST_VALUES:
        raise PackageError(f"a parameter that takes a few values holds {value.size} values; the program is damaged")
    return tuple(value.reshape(-1).tolist()) if isinstance(value, np.ndarray) else tuple(value)


def few(value: Tensor) -> Tensor:
    """A computed tensor that becomes Python values; ValueError where it has more of them than MOST_VALUES."""
    if value.numel() > MOST_VALUES:
        raise ValueError(f"a parameter that takes a few values holds {value.numel()} values")
    return value


_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    int: lambda value: int(_scalar(value)),
    float: lambda value: float(_scalar(value)),
    bool: lambda value: bool(_scalar(value)),
    str: lambda value: str(_scalar(value)),
    Ints: lambda value: tuple(int(item) for item in _flat(value)),
    Floats: lambda value: tuple(float(item) for item in _flat(value)),
    Bools: lambda value: tuple(bool(item) for item in _flat(value)),
}


def converted(value: Any, annotation: Any) -> Any:
    """A loaded constant as a parameter with that annotation takes it: a Python value, or the array unchanged."""
    return _CONVERSIONS[annotation](value) if annotation in _CONVERSIONS else value


@contextmanager
def taking(*constants: PlannedConstant) -> Iterator[None]:
    """Whatever goes wrong inside while the constants' values are taken is one PackageError that names their types."""
    try:
        yield
    except PackageError:
        raise
    except Exception as error:
        kinds = ", ".join(str(constant.type) for constant in constants)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PackageError(f"a constant of type {kinds} cannot be taken ({reason}); the program is damaged") from error


class Binder:
    """Hands out slots and remembers what each constant slot will hold."""

    def __init__(self, package: Package, precision: str, device: torch.device):
        self._package = package
        self._device = device
        self._precision = precision
        self._size = FIRST_FREE_SLOT
        self._values: dict[int, Any] = {}
        self._constants: dict[int, tuple[PlannedConstant, Any, bool]] = {}
        self._known: dict[Any, int] = {}
        self._packed: dict[int, tuple[dict[str, PlannedConstant], Packing]] = {}
        self._template: list[Any] | None = None

    def new_slot(self) -> int:
        """The number of a slot that nothing else has."""
        self._size += 1
        return self._size - 1

    def value(self, value: Any) -> int:
        """A slot that holds `value` from the start."""
        slot = self.new_slot()
        self._values[slot] = value
        return slot

    def constant(self, constant: PlannedConstant, annotation: Any, kind: Kind | None) -> int:
        """A slot for `constant` as its parameter takes it; fp16 tensors are raised to float32 for FLOAT ops."""
        raised = kind is Kind.FLOAT or self._precision == "fp32"
        known = (id(constant), annotation, raised)
        if known not in self._known:
            self._known[known] = self.new_slot()
            self._constants[self._known[known]] = (constant, annotation, raised)
        return self._known[known]

    def packed(self, constants: dict[str, PlannedConstant], packing: Packing) -> int:
        """A slot for the layout that `packing` makes of the constants, which it takes by parameter name."""
        slot = self.new_slot()
        self._packed[slot] = (constants, packing)
        return slot

    def frame(self) -> list[Any]:
        """A fresh frame with every constant in its slot; the first call reads them.

        Raises PackageError when a weight file contradicts the program.
        """
        if self._template is None:
            self._template = self._bound()
        frame = self._template.copy()
        frame[FRAME_SLOT], frame[ROUNDS_SLOT] = frame, MOST_ROUNDS
        return frame

    def _bound(self) -> list[Any]:
        """The frame's first content. What is computed on the way is dropped after the last slot that needs it."""
        template: list[Any] = [None] * self._size
        for slot, value in self._values.items():
            template[slot] = value
        needed = {slot: [constant] for slot, (constant, _, _) in self._constants.items()}
        needed |= {slot: list(constants.values()) for slot, (constants, _) in self._packed.items()}
        last = _last_needs(needed)
        try:
            for slot, constants in needed.items():
                template[slot] = self._filled(slot, constants)
                for computation in last.pop(slot, ()):
                    computation.drop()
        finally:
            for computations in last.values():
                for computation in computations:
                    computation.drop()
        return template

    def _filled(self, slot: int, constants: list[PlannedConstant]) -> Any:
        with taking(*constants):
            if slot in self._packed:
                return self._lay_out(*self._packed[slot])
            return self._bind(*self._constants[slot])

    def _bind(self, constant: PlannedConstant, annotation: Any, raised: bool) -> Any:
        if annotation in _CONVERSIONS:
            return converted(constant.load(), annotation)
        key = constant.key
        if key is None:
            return self._tensor(constant.load(), raised)
        cache = self._package.cache
        place = (key, raised, self._device)
        if place not in cache:
            cache[place] = self._tensor(constant.load(), raised)
        return cache[place]

    def _lay_out(self, constants: dict[str, PlannedConstant], packing: Packing) -> Any:
        cache, keys = self._package.cache, tuple((name, constant.key) for name, constant in constants.items())
        if (packing.pack, keys) in cache:
            return cache[packing.pack, keys]
        layout = packing.pack(**{name: to_tensor(constant.load()) for name, constant in constants.items()})
        for constant in constants.values():
            constant.forget()
        if all(key is not None for _, key in keys):
            cache[packing.pack, keys] = layout
        return layout

    def _tensor(self, value: Any, raised: bool) -> Any:
        tensor = to_tensor(value) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.to(self._device)
        if not (raised and tensor.dtype is torch.float16):
            return tensor
        if tensor.numel() > 1 and not any(tensor.stride()):  # one value that stands for all stays one
            return tensor[(0,) * tensor.ndim].float().expand(tensor.shape)
        return tensor.float()


def _last_needs(needed: dict[int, list[PlannedConstant]]) -> dict[int, list[Computation]]:
    """Slot -> the computations that no later slot needs; `needed` is in the order of filling."""
    seen: set[Computation] = set()
    last: dict[int, list[Computation]] = {}
    for slot, constants in reversed(needed.items()):
        direct = [constant.computed_by for constant in constants]
        fresh = _closure((computation for computation in direct if computation is not None), seen)
        if fresh:
            last[slot] = fresh
    return last


def _closure(computations: Iterable[Computation], seen: set[Computation]) -> list[Computation]:
    """The computations and what they take results of, without what was `seen`, to which they are added."""
    waiting, found = list(computations), []
    while waiting:
        computation = waiting.pop()
        if computation not in seen:
            seen.add(computation)
            found.append(computation)
            waiting += computation.sources
    return found
