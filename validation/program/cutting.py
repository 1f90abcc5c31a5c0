"""A piece of a function as a program of its own: from the values where it begins to those where it ends.

The piece holds the ops between and the constants that they read, as they are in the package, and refers to the
package's own weight files: nothing is copied but the program's text. A state is handed over as it is behind a value
(`since`); what the piece writes into it, the caller finds in it afterwards.

A cut is strict, because it is how a comparison learns that a program is not what it should be: every end must come from
the beginnings, every beginning must be needed, and nothing else that is computed may be. It does not know what any op
computes, but for those whose meaning no length of an axis changes (`ANY_LENGTH`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvlm.errors import PackageError
from validation.mil.package import Package
from validation.mil.plan import block_of
from validation.mil.schema import model_message, proto
from validation.program.anchors import Unmatched

MAIN = "main"  # the one function of a piece
_WRITES = ("write_state", "coreml_update_state")
# Each result's lengths along the axes that a caller frees are those of the arguments, or 1.
ANY_LENGTH = frozenset(
    ("conv", "linear", "gelu", "silu", "sigmoid", "relu", "clip", "mul", "add", "sub", "maximum", "minimum")
)
_BROADCASTS = frozenset(("mul", "add", "sub", "maximum", "minimum"))
_ARRAY_TYPES = {1: "INT32", 10: "FLOAT16", 11: "FLOAT32", 12: "DOUBLE"}  # by MIL's element type, INT32 for others


@dataclass(frozen=True)
class Cut:
    """A piece. package: what `MILModel` opens, one function "main" whose inputs and outputs keep their values' names.

    places: of its ops in the function's block, constants left out. free: the axes whose lengths its inputs may choose.
    """

    package: Package
    places: frozenset[int]
    free: tuple[int, ...]


class Cutter:
    """One function of a package, ready to be cut; PackageError where the package lacks it."""

    def __init__(self, package: Package, function: str) -> None:
        if function not in package.program.functions:
            held = ", ".join(sorted(package.program.functions))
            raise PackageError(f"the program has no function {function!r}; it has {held}")
        self.package, self.name = package, function
        self.message = package.program.functions[function]
        self.block = block_of(self.message, function)
        self.inputs = {item.name: item for item in self.message.inputs}
        self.states = {name for name, item in self.inputs.items() if item.type.WhichOneof("type") == "stateType"}
        self.operations = list(self.block.operations)
        self.reads = [tuple(_read_by(operation)) for operation in self.operations]
        self.makers = {item.name: place for place, op in enumerate(self.operations) for item in op.outputs}
        self.types = {item.name: item.type for op in self.operations for item in op.outputs}
        self.types |= {name: item.type for name, item in self.inputs.items()}
        writing = [place for place, operation in enumerate(self.operations) if operation.type in _WRITES]
        self.writes = {name: [place for place in writing if name in self.reads[place]] for name in self.states}
        described = package.spec.description
        self.described = next((entry for entry in described.functions if entry.name == function), described)

    def cut(
        self, begins: Sequence[str], ends: Sequence[str], *, since: str = "", until: str = "", free: Sequence[int] = ()
    ) -> Cut:
        """Returns the piece between values of these names.

        Inputs and states of the function are beginnings as well, an end may be a state. since: the value behind which a
        state is handed over; what was written up to there is in it, without it nothing was. until: the value up to
        which an end that is a state is followed, without it the function's last. free: axes that the piece's inputs
        may have of any length, granted where all of its ops allow it.

        Raises Unmatched where the ends are not made of the beginnings and of nothing else computed, PackageError for a
        name that the function lacks.
        """
        missing = [name for name in (*begins, *ends, since, until) if name and name not in self.types]
        if missing:
            raise PackageError(f"function {self.name!r} has no value {', '.join(missing)}")
        walk = _Walk(self, frozenset(begins), self.makers.get(since, -1))
        for end in ends:
            walk.follow(end, self.makers.get(until, len(self.operations)))
        unused = [name for name in begins if name not in walk.used]
        if unused:
            raise Unmatched(f"{self.name}: {', '.join(ends)} is made without {', '.join(unused)}")
        places = sorted(walk.places)
        computing = [place for place in places if not _fixed(self.operations[place])]
        granted = tuple(free) if all(self._any_length(place, free) for place in computing) else ()
        model = self._model(begins, ends, places, granted)
        return Cut(self.package.with_program(model), frozenset(computing), granted)

    def _any_length(self, place: int, free: Sequence[int]) -> bool:
        """Whether an op, and each constant that it spreads, means the same for any length of the axes `free`."""
        operation = self.operations[place]
        if operation.type not in ANY_LENGTH:
            return False
        if operation.type not in _BROADCASTS:
            return True
        constants = [self.types[name] for name in self.reads[place] if _fixed(self._maker(name))]
        shapes = [_lengths(kind) for kind in constants]
        return all(axis >= len(shape) or shape[axis] == 1 for shape in shapes for axis in free)

    def _maker(self, name: str) -> Any:
        return self.operations[self.makers[name]] if name in self.makers else None

    def _model(self, begins: Sequence[str], ends: Sequence[str], places: Iterable[int], free: Sequence[int]) -> Any:
        model = model_message()
        model.specificationVersion = self.package.spec.specificationVersion
        model.mlProgram.version = self.package.program.version
        function = model.mlProgram.functions[MAIN]
        function.opset = self.message.opset
        block = function.block_specializations[function.opset]
        for name in begins:
            function.inputs.add(name=name).type.CopyFrom(self.types[name])
        block.operations.extend(self.operations[place] for place in places)
        block.outputs.extend(name for name in ends if name not in self.states)
        for item in (*function.inputs, *(item for op in block.operations if not _fixed(op) for item in op.outputs)):
            _free(item.type, free)
        self._describe(model.description, begins, ends)
        return model

    def _describe(self, description: Any, begins: Sequence[str], ends: Sequence[str]) -> None:
        known = {item.name: item for item in (*self.described.input, *self.described.state)}
        for name in begins:
            side = description.state if name in self.states else description.input
            if name in known:
                side.add().CopyFrom(known[name])
            else:
                _describe_array(side.add(name=name), self.types[name])
        for name in ends:
            if name not in self.states:
                _describe_array(description.output.add(name=name), self.types[name])


@dataclass
class _Walk:
    """Gathers, from the ends back to the beginnings, what a piece is made of."""

    cutter: Cutter
    begins: frozenset[str]
    since: int
    places: set[int] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    def follow(self, end: str, until: int) -> None:
        """Gathers what makes an end; Unmatched where it needs anything else, or no beginning at all."""
        cutter = self.cutter
        if end in cutter.states:
            waiting = [place for place in cutter.writes[end] if self.since < place <= until]
        else:
            waiting = [cutter.makers[end]] if end in cutter.makers and end not in self.begins else []
        if not waiting:
            raise Unmatched(f"{cutter.name}: nothing is computed between {', '.join(sorted(self.begins))} and {end}")
        seen, used = set(waiting), set()
        while waiting:
            place = waiting.pop()
            for name in cutter.reads[place]:
                if name in self.begins:
                    used.add(name)
                found = [*self._makers(name, end), *self._writes(place, name, end)]
                waiting += [other for other in found if other not in seen]
                seen |= set(found)
        if not used:
            raise Unmatched(f"{cutter.name}: {end} is made of constants alone")
        self.places |= seen
        self.used |= used

    def _makers(self, name: str, end: str) -> list[int]:
        """The op that makes a value on the way to `end`."""
        if name in self.begins:
            return []
        if name in self.cutter.makers:
            return [self.cutter.makers[name]]
        raise Unmatched(f"{self.cutter.name}: {end} is also made of {name}")

    def _writes(self, place: int, name: str, end: str) -> list[int]:
        """The ops that write what the op at `place` reads of a state, if `name` is one."""
        if name not in self.cutter.states or self.cutter.operations[place].type in _WRITES:
            return []
        writes = self.cutter.writes[name]
        lost = [write for write in writes if place < write <= self.since]
        if lost:
            raise Unmatched(f"{self.cutter.name}: {end} is also made of {name} as it was before the piece")
        return [write for write in writes if self.since < write < place]


def _fixed(operation: Any) -> bool:
    """Whether an op is a constant, or makes one of others."""
    return operation is not None and (operation.type == "const" or operation.type.startswith("constexpr_"))


def _read_by(operation: Any) -> Iterator[str]:
    """The names of all values that an op takes, those that its nested blocks take from outside among them."""
    for argument in operation.inputs.values():
        yield from (binding.name for binding in argument.arguments if binding.WhichOneof("binding") == "name")
    for block in operation.blocks:
        inside = {item.name for item in block.inputs}
        inside |= {item.name for inner in block.operations for item in inner.outputs}
        named = [name for inner in block.operations for name in _read_by(inner)]
        yield from (name for name in (*named, *block.outputs) if name not in inside)


def _lengths(kind: Any) -> list[int]:
    """The lengths of a tensor type, 0 for one that is not known."""
    return [dimension.constant.size for dimension in kind.tensorType.dimensions]


def _free(kind: Any, axes: Sequence[int]) -> None:
    """Makes the lengths of a tensor type along those of `axes` that it has unknown."""
    dimensions = kind.tensorType.dimensions
    for axis in axes:
        if axis < len(dimensions):
            dimensions[axis].unknown.variadic = False


def _describe_array(feature: Any, kind: Any) -> None:
    types = proto("FeatureTypes").ArrayFeatureType
    array = feature.type.multiArrayType
    array.dataType = types.ArrayDataType.Value(_ARRAY_TYPES.get(kind.tensorType.dataType, "INT32"))
    array.shape.extend(max(1, length) for length in _lengths(kind) or [1])
