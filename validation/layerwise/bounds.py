"""A function's ops in order, what each reads, and between which of them it can be cut.

- Every layer of every function writes the state once, so that "behind the k-th write" is the same layer in all of them,
  and a piece's state holds the rows of its own layers.
- Between two writes the cut lies where the fewest bytes are handed over: between a layer's last op and the next one's
  first.
- The state's value is not handed over but read again by whoever updates it next. Its rows of other layers may be
  another call's by then, so a cut never parts a write from the read behind it, nor that from who looks into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

from fastvlm.errors import PackageError
from validation.mil.plan import block_of
from validation.mil.values import StateType, TensorType, decode_type

HALF = 2  # bytes of a weight as it is computed with, whatever it is stored in


class Steps:
    """The ops of a function (`message`) that compute, apart from constants; PackageError for control flow."""

    def __init__(self, message: Any, name: str) -> None:
        self.message, self.name = message, name
        self.block = block_of(message, name)
        nested = next((op.type for op in self.block.operations if op.blocks), None)
        if nested is not None:
            raise PackageError(f"function {name!r} holds {nested}, and a program with control flow cannot be cut")
        self.constants = {output.name: op for op in self.block.operations if _fixed(op) for output in op.outputs}
        self.steps = [op for op in self.block.operations if not _fixed(op)]
        self.made = {output.name: index for index, op in enumerate(self.steps) for output in op.outputs}
        self.types = {output.name: decode_type(output.type) for op in self.steps for output in op.outputs}
        self.states = {item.name for item in message.inputs if isinstance(decode_type(item.type), StateType)}

    @cached_property
    def bytes(self) -> list[int]:
        """Bytes in fp16 of the constants that each step is the first to read."""
        seen: set[str] = set()
        found = []
        for op in self.steps:
            fresh = {name for name in _reads(op) if name in self.constants} - seen
            seen |= fresh
            found.append(sum(_bytes(self._constant_type(name)) for name in fresh))
        return found

    @cached_property
    def last(self) -> dict[str, int]:
        """The last step that reads a computed value, by its name."""
        return {name: index for index, op in enumerate(self.steps) for name in _reads(op) if name in self.made}

    def bounds(self) -> list[int]:
        """The places where the function can be cut, its two ends included: one between each two writes of the state."""
        writes = [index for index, op in enumerate(self.steps) if op.type == "write_state"]
        return [0, *(self._between(*pair) for pair in pairwise(writes)), len(self.steps)]

    def _between(self, written: int, writes: int) -> int:
        """The place behind one write, and behind the read of what it wrote, where the fewest bytes are handed over."""
        own = (index for index in range(written, writes) if self.steps[index].type == "read_state")
        allowed = [place for place in range(next(own, written) + 1, writes + 1) if self._may_part(place, written)]
        if not allowed:
            raise PackageError(
                f"function {self.name!r} reads its state across layers (steps {written} to {writes}) and cannot be "
                "opened in parts; validate it where it fits into half of the memory"
            )
        return min(allowed, key=self._handed.__getitem__)

    def _may_part(self, place: int, written: int) -> bool:
        """Whether all that is used on of the state at a place is its newest value, and only to be updated."""
        for name in self._state_values:
            if self.made[name] < place <= self.last.get(name, -1):
                users = [op for op in self.steps[place:] if name in _reads(op)]
                if self.made[name] < written or any(op.type != "slice_update" for op in users):
                    return False
        return True

    @cached_property
    def _state_values(self) -> list[str]:
        return [output.name for op in self.steps if op.type == "read_state" for output in op.outputs]

    @cached_property
    def _handed(self) -> list[int]:
        """By place, how many bytes of computed values are made before it and read behind it; the state's aside."""
        change = [0] * (len(self.steps) + 2)
        for name, last in self.last.items():
            if name not in self._state_values:
                change[self.made[name] + 1] += _bytes(self.types[name])
                change[last + 1] -= _bytes(self.types[name])
        return list(accumulate(change))

    def piece(self, first: int, last: int) -> Any:
        """Returns the steps first … last − 1 as a function of their own."""
        own = self.steps[first:last]
        read = {name for op in own for name in _reads(op)}
        before = {name for name in read if self.made.get(name, first) < first}
        again = [self.steps[index] for index in sorted({self.made[name] for name in before & set(self._state_values)})]
        read |= {name for op in again for name in _reads(op)}
        piece = type(self.message)(opset=self.message.opset)
        piece.inputs.extend(item for item in self.message.inputs if item.name in read)
        for name in sorted(before - set(self._state_values)):
            piece.inputs.add(name=name).type.CopyFrom(self._type_of(name))
        block = piece.block_specializations[self.message.opset]
        needed = self._with_sources(read)
        block.operations.extend(op for op in self.block.operations if _fixed(op) and _names(op) & needed)
        block.operations.extend([*again, *own])
        block.outputs.extend(self._handed_on(first, last))
        return piece

    def _handed_on(self, first: int, last: int) -> Iterator[str]:
        """What the steps make that later ones take, or that the function returns."""
        for name, index in self.made.items():
            if first <= index < last and name not in self._state_values:
                if self.last.get(name, -1) >= last or name in self.block.outputs:
                    yield name

    def _with_sources(self, names: set[str]) -> set[str]:
        """The constants among `names`, and those that they are computed from."""
        found: set[str] = set()
        waiting = [name for name in names if name in self.constants]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [source for source in _reads(self.constants[name]) if source in self.constants]
        return found

    def _type_of(self, name: str) -> Any:
        return next(output.type for output in self.steps[self.made[name]].outputs if output.name == name)

    def _constant_type(self, name: str) -> Any:
        return next(decode_type(output.type) for output in self.constants[name].outputs if output.name == name)


def _fixed(op: Any) -> bool:
    kind: str = op.type
    return kind == "const" or kind.startswith("constexpr_")


def _names(op: Any) -> set[str]:
    return {output.name for output in op.outputs}


def _reads(op: Any) -> Iterator[str]:
    """The names that an op is bound to."""
    for argument in op.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name


def _bytes(kind: Any) -> int:
    return HALF * prod(length or 1 for length in kind.shape) if isinstance(kind, TensorType) else 0
