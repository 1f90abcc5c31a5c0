"""A program of four layers becomes one of any number: layer 2 is copied for the layers between it and the last.

Converted with four layers, a decoder is a beginning with its layer 0, layer 1, layer 2, and layer 3 with the end; a
layer's part ends with its last weight. Layers 1 and 2 must be the same ops with the same constants, each argument of
their own part, of the part before, or of the beginning. Anything else is a PackageError, because the result would not
be the program that converting all layers gives.
It knows that weights are named layers_<number>_…, not what a layer computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastvlm.errors import PackageError

CONVERTED = 4  # layers of the program that is repeated
REPEATED = 2  # the layer that is copied
_NUMBERED = re.compile(r"layers_\d+_")

Place = tuple[int, int]  # of a value within its part: which op, which of its outputs


def repeat_layers(block: Any, layers: int, row: int) -> None:
    """Makes the block of a program of four layers one of `layers`, at least four.

    In layer 2 the integers `row`, `row` + 1 and `row` + 2 stand for 2l, 2l + 1 and 2l + 2 of its number l. PackageError
    as said above.
    """
    operations = list(block.operations)
    one, two, three = (_end(operations, layer) for layer in (0, 1, 2))
    first, second, last = operations[one:two], operations[two:three], operations[three:]
    before, own = _places(first), _places(second)
    _check_alike(first, second, before, own)
    _check_constants(first, second, _rows(row, REPEATED - 1))
    made, earlier = operations[:two], {place: name for name, place in before.items()}
    for layer in range(REPEATED, layers - 1):
        names = {name: _name(name, layer) for name in own}
        known = names | {name: earlier[place] for name, place in before.items()}
        integers = _rows(row, layer)
        made += [_copied(op, known, integers) for op in second]
        earlier = {place: names[name] for name, place in own.items()}
    known = {name: earlier[place] for name, place in own.items()}
    known |= {name: _name(name, layers - 1) for name in _places(last) if _NUMBERED.match(name)}
    made += [_copied(op, known, {}) for op in last]
    del block.operations[:]
    block.operations.extend(made)


def _end(operations: Sequence[Any], layer: int) -> int:
    """The place after the last weight of a layer."""
    mark = f"layers_{layer}_"
    found = [index for index, op in enumerate(operations) if op.outputs and op.outputs[0].name.startswith(mark)]
    if not found:
        raise _unlike(f"no weight of layer {layer} was found")
    return found[-1] + 1


def _unlike(why: str) -> PackageError:
    return PackageError(
        f"the converted layers do not repeat: {why}; install the coremltools and torch of constraints.txt"
    )


def _places(operations: Sequence[Any]) -> dict[str, Place]:
    return {output.name: (index, at) for index, op in enumerate(operations) for at, output in enumerate(op.outputs)}


def _arguments(op: Any) -> Iterator[Any]:
    """Every argument of an op that is another op's result, in one order."""
    for key in sorted(op.inputs):
        yield from (argument for argument in op.inputs[key].arguments if argument.WhichOneof("binding") == "name")


def _check_alike(
    first: Sequence[Any], second: Sequence[Any], before: Mapping[str, Place], own: Mapping[str, Place]
) -> None:
    """Raises PackageError unless the parts of layers 1 and 2 are the same ops that read alike."""
    if [op.type for op in first] != [op.type for op in second]:
        raise _unlike("their ops differ")
    for a, b in zip(first, second, strict=True):
        for one, two in zip(_arguments(a), _arguments(b), strict=True):
            if two.name in own:
                alike = before.get(one.name) == own[two.name]
            else:
                alike = two.name in before or one.name == two.name
            if not alike:
                raise _unlike(f"a {b.type} reads {one.name} in one and {two.name} in the other")


def _rows(row: int, layer: int) -> dict[int, int]:
    """What the integers that mark layer 2's place in the state are in another layer."""
    return {row + part: 2 * layer + part for part in range(3)}


def _check_constants(first: Sequence[Any], second: Sequence[Any], rows: Mapping[int, int]) -> None:
    """Raises PackageError unless layer 1's results and stored constants are layer 2's, at its own rows of the state."""
    for a, b in zip(first, second, strict=True):
        same = [output.type for output in a.outputs] == [output.type for output in b.outputs]
        if a.type == "const" and a.attributes["val"].WhichOneof("value") == "immediateValue":
            same = same and a.attributes["val"] == _copied(b, {}, rows).attributes["val"]
        if not same:
            raise _unlike(f"a {b.type} of one differs from that of the other")


def _name(name: str, layer: int) -> str:
    """What a result of layer 2 is called in another layer."""
    return _NUMBERED.sub(f"layers_{layer}_", name) if _NUMBERED.match(name) else f"{name}.layer{layer}"


def _copied(op: Any, names: Mapping[str, str], integers: Mapping[int, int]) -> Any:
    """A copy of the op with other names and other stored integers."""
    copy = type(op)()
    copy.CopyFrom(op)
    for output in copy.outputs:
        output.name = names.get(output.name, output.name)
    for argument in _arguments(copy):
        argument.name = names.get(argument.name, argument.name)
    if copy.type == "const":
        replace_integers(copy.attributes["val"], integers)
    return copy


def replace_integers(value: Any, new: Mapping[int, int]) -> None:
    """Replaces, in a value that is stored in the program, every integer that `new` names."""
    if value.WhichOneof("value") == "immediateValue" and value.immediateValue.tensor.WhichOneof("value") == "ints":
        stored = value.immediateValue.tensor.ints.values
        stored[:] = [new.get(number, number) for number in stored]
