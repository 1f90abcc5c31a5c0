"""From a function's protobuf to a plan: every argument a slot of one frame, every op one call.

Constants are bound into the frame once; a computed value's slot is cleared after its last reader; the call of a step
is a plain function of slots. Nested blocks (control flow) share the frame of their function. What is unknown or
malformed is found here, before anything runs. This file does not know what any op computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from fastvlm.errors import PackageError, UnsupportedOp
from validation.mil import ops as _ops  # noqa: F401  (registers every op)
from validation.mil.aliasing import Effect, writable_in_place
from validation.mil.binding import Binder, PlannedConstant
from validation.mil.compressed import constexpr_constants
from validation.mil.execution import FRAME_SLOT, BlockPlan, Step
from validation.mil.package import Package
from validation.mil.packing import Packer
from validation.mil.registry import OPS, Blocks, Frame, Kind, Op, Parameter, Tensor, Tensors
from validation.mil.rounding import in_place, read_as_number, rounded
from validation.mil.spending import set_spending, spend_ahead
from validation.mil.values import StateType, TensorType, decode_constant, decode_type
from validation.mil.work import bounded, bounded_packing
from validation.within_memory import half_of_memory


@dataclass
class FunctionPlan:
    """A function made ready: its steps, inputs and outputs by name with their types, and the constants to bind."""

    name: str
    opset: str
    body: BlockPlan
    inputs: dict[str, TensorType | StateType]
    outputs: dict[str, Any]
    binder: Binder


def block_of(function: Any, name: str) -> Any:
    """The block that the function's opset selects; PackageError when it lists none."""
    if function.opset in function.block_specializations:
        return function.block_specializations[function.opset]
    raise PackageError(f"function {name!r} has opset {function.opset!r} but no block for it; the program is damaged")


def _walk(block: Any, path: str) -> Iterator[tuple[str, Any]]:
    for index, operation in enumerate(block.operations):
        position = f"{path}{index}"
        yield position, operation
        for inner in operation.blocks:
            yield from _walk(inner, position + ".")


def check_ops(block: Any, function: str) -> None:
    """Raise UnsupportedOp that lists every op, or parameter of an op, that the runtime does not know."""
    problems = []
    for position, operation in _walk(block, ""):
        if operation.type == "const":
            continue
        known = OPS.get(operation.type)
        if known is None:
            problems.append(f"{operation.type} (position {position})")
            continue
        names = {parameter.name for parameter in known.parameters}
        unknown = sorted(set(operation.inputs) - names)
        problems += [f"{operation.type} with parameter {name} (position {position})" for name in unknown]
    if problems:
        raise UnsupportedOp(f"function {function!r} holds what this runtime does not know: {'; '.join(problems)}")


@dataclass
class _Scope:
    """Names visible in a block: slots of computed values with their types, and constants."""

    slots: dict[str, int] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, PlannedConstant] = field(default_factory=dict)

    def child(self) -> _Scope:
        return _Scope(dict(self.slots), dict(self.types), dict(self.constants))


@dataclass
class _Arguments:
    """What an op takes, in the order of its parameters: slots, and of the computed ones how they arrive.

    dynamic: see `rounding.rounded`. numbers, values: names read as Python numbers, and as tensors. fixed: whether some
    tensor is a constant. constants: the types of all constants. slots: of all that is computed.
    """

    reads: list[str] = field(default_factory=list)
    sources: list[int | tuple[int, ...]] = field(default_factory=list)
    dynamic: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    numbers: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    fixed: bool = False
    constants: list[Any] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


def _constant_types(bindings: Any, scope: _Scope) -> list[Any]:
    types = []
    for binding in bindings:
        if binding.WhichOneof("binding") == "value":
            types.append(decode_type(binding.value.type))
        elif binding.name in scope.constants:
            types.append(scope.constants[binding.name].type)
    return types


def _effect(operation: Any, op: Op, taking: _Arguments) -> Effect:
    nests = bool(operation.blocks)
    return Effect(
        operation.type,
        fresh=op.fresh and not nests,
        can_write=op.inplace is not None and 0 in taking.dynamic,
        reads=tuple(taking.reads),
        writes=tuple(item.name for item in operation.outputs),
        foreign=nests or (taking.fixed and not op.fresh),
        numbers=frozenset() if nests else frozenset(taking.numbers - taking.values),
    )


class Planner:
    """Plans one function; see `plan_function`."""

    def __init__(self, package: Package, name: str, precision: str, device: torch.device):
        self._package = package
        self._name = name
        self._precision = precision
        self.binder = Binder(package, precision, device)
        packs = precision == "fp16" and device.type == "cpu"
        self._packer = Packer(package, half_of_memory() if packs else 0)

    def block(self, message: Any, scope: _Scope, top: bool = False) -> tuple[BlockPlan, set[str]]:
        """Plan a block within `scope`; also returns the names it takes from outside."""
        outside = set(scope.slots)
        inputs = tuple(self._define(scope, item.name, decode_type(item.type)) for item in message.inputs)
        outside -= {item.name for item in message.inputs}
        effects: list[Effect] = []
        steps: list[Step] = []
        for index, operation in enumerate(message.operations):
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                self._constant(operation, scope, index)
                continue
            step, effect = self._step(operation, scope, index)
            effects.append(effect)
            steps.append(step)
        if top:
            for index in writable_in_place(effects, set(message.outputs), outside):
                steps[index].write_in_place()
        spend_ahead(steps)
        outputs = tuple(self._read(name, scope) for name in message.outputs)
        self._free(steps, effects, set(message.outputs), outside, scope)
        captured = {name for effect in effects for name in effect.reads if name in outside}
        return BlockPlan(inputs, outputs, steps), captured | (set(message.outputs) & outside)

    def _define(self, scope: _Scope, name: str, kind: Any) -> int:
        slot = self.binder.new_slot()
        scope.slots[name] = slot
        scope.types[name] = kind
        scope.constants.pop(name, None)
        return slot

    def _constant(self, operation: Any, scope: _Scope, index: int) -> None:
        if operation.type != "const":
            scope.constants |= constexpr_constants(operation, scope.constants, self._package, self._precision)
            return
        if len(operation.outputs) != 1 or "val" not in operation.attributes:
            raise PackageError(f"{self._where(operation, index)} holds no value; the program is damaged")
        scope.constants[operation.outputs[0].name] = decode_constant(operation.attributes["val"], self._package)

    def _step(self, operation: Any, scope: _Scope, index: int) -> tuple[Step, Effect]:
        op = bounded(OPS[operation.type])
        where = self._where(operation, index)
        if not op.many and len(operation.outputs) != op.results:
            found = f"declares {len(operation.outputs)} results, expected {op.results}"
            raise PackageError(f"{where} {found}; the program is damaged")
        layout = self._packer.suited(op, operation, scope.constants, scope.types)
        if layout is not None and self._packer.grants(op, layout):
            return self._packed_step(operation, op, layout.tensors, scope, where)
        taking = self._arguments(operation, op, scope, where, op.kind if layout is None else Kind.NATIVE)
        types = [decode_type(item.type) for item in operation.outputs]
        results = tuple(
            self._define(scope, item.name, kind) for item, kind in zip(operation.outputs, types, strict=True)
        )
        many = op.many or op.results != 1
        function = rounded(op, self._precision, taking.dynamic, types)
        step = Step(str(self._title(operation)), operation.type, function, _taker(taking.sources), results, many)
        step.inplace = in_place(op, taking.dynamic)
        set_spending(step, op, taking.sources, taking.constants, taking.slots)
        return step, _effect(operation, op, taking)

    def _arguments(self, operation: Any, op: Op, scope: _Scope, where: str, kind: Kind) -> _Arguments:
        """kind: how constant tensors are bound, see `Binder.constant`."""
        taking = _Arguments()
        for place, parameter in enumerate(op.parameters):
            if parameter.annotation in (Blocks, Frame):
                taking.reads += self._nested(operation, parameter, scope, taking.sources)
                continue
            bindings = operation.inputs[parameter.name].arguments if parameter.name in operation.inputs else ()
            taking.sources.append(self._argument(bindings, parameter, scope, where, kind, taking.reads))
            computed = [binding.name for binding in bindings if binding.name in scope.slots]
            taking.slots += [scope.slots[name] for name in computed if name not in scope.constants]
            taking.constants += _constant_types(bindings, scope)
            taking.fixed |= len(computed) < len(bindings) and parameter.annotation in (Tensor, Tensors)
            (taking.numbers if read_as_number(parameter.annotation) else taking.values).update(computed)
            if computed and parameter.annotation is not Tensors:
                taking.dynamic[place] = (parameter.annotation, scope.types[computed[0]])
        return taking

    def _packed_step(
        self, operation: Any, op: Op, taken: dict[str, PlannedConstant], scope: _Scope, where: str
    ) -> tuple[Step, Effect]:
        assert op.packing is not None
        reads: list[str] = []
        first = op.parameters[0]
        source = self._argument(operation.inputs[first.name].arguments, first, scope, where, op.kind, reads)
        sources: list[int | tuple[int, ...]] = [source, self.binder.packed(taken, op.packing)]
        (item,) = operation.outputs
        result = self._define(scope, item.name, decode_type(item.type))
        title = str(self._title(operation))
        step = Step(title, operation.type, bounded_packing(op.packing), _taker(sources), (result,), False)
        set_spending(step, op, sources, [constant.type for constant in taken.values()], [scope.slots[reads[0]]])
        return step, Effect(operation.type, True, False, tuple(reads), (item.name,))

    def _nested(self, operation: Any, parameter: Parameter, scope: _Scope, sources: list[Any]) -> list[str]:
        if parameter.annotation is Frame:
            sources.append(FRAME_SLOT)
            return []
        plans, names = [], []
        for message in operation.blocks:
            plan, captured = self.block(message, scope.child())
            plans.append(plan)
            names += sorted(captured)
        sources.append(self.binder.value(tuple(plans)))
        return names

    def _argument(
        self, bindings: Any, parameter: Parameter, scope: _Scope, where: str, kind: Kind, reads: list[str]
    ) -> int | tuple[int, ...]:
        if not bindings:
            if parameter.required:
                raise PackageError(f"{where} lacks its parameter {parameter.name}; the program is damaged")
            return () if parameter.annotation is Tensors else self.binder.value(parameter.default)
        slots = tuple(self._bound(binding, parameter, scope, where, kind, reads) for binding in bindings)
        if parameter.annotation is Tensors:
            return slots
        if len(slots) != 1:
            raise PackageError(f"{where} binds {len(slots)} values to {parameter.name}, expected 1")
        return slots[0]

    def _bound(
        self, binding: Any, parameter: Parameter, scope: _Scope, where: str, kind: Kind, reads: list[str]
    ) -> int:
        if binding.WhichOneof("binding") == "value":
            constant = decode_constant(binding.value, self._package)
            return self.binder.constant(constant, parameter.annotation, kind)
        name = binding.name
        if name in scope.constants:
            return self.binder.constant(scope.constants[name], parameter.annotation, kind)
        if name not in scope.slots:
            raise PackageError(f"{where} reads {name!r}, which nothing before it defines; the program is damaged")
        reads.append(name)
        return scope.slots[name]

    def _read(self, name: str, scope: _Scope) -> int:
        if name in scope.constants:
            return self.binder.constant(scope.constants[name], Tensors, None)
        if name not in scope.slots:
            raise PackageError(
                f"function {self._name!r} returns {name!r}, which nothing defines; the program is damaged"
            )
        return scope.slots[name]

    def _free(self, steps: list[Step], effects: list[Effect], kept: set[str], outside: set[str], scope: _Scope) -> None:
        last: dict[str, int] = {}
        for index, effect in enumerate(effects):
            for name in (*effect.writes, *effect.reads):
                last[name] = index
        freed: dict[int, list[int]] = {}
        for name, index in last.items():
            if name not in kept and name not in outside:
                freed.setdefault(index, []).append(scope.slots[name])
        for index, slots in freed.items():
            steps[index].free = tuple(slots)

    def _title(self, operation: Any) -> str:
        if "name" in operation.attributes:
            return str(decode_constant(operation.attributes["name"], self._package).load())
        return str(operation.outputs[0].name) if operation.outputs else str(operation.type)

    def _where(self, operation: Any, index: int) -> str:
        return f"function {self._name!r}, position {index}: {operation.type} {self._title(operation)!r}"


def _taker(sources: list[int | tuple[int, ...]]) -> Callable[[list[Any]], Any]:
    if any(isinstance(source, tuple) for source in sources):

        def gather(frame: list[Any]) -> list[Any]:
            return [
                tuple(frame[slot] for slot in source) if isinstance(source, tuple) else frame[source]
                for source in sources
            ]

        return gather
    if len(sources) == 1:
        only: Any = sources[0]
        return lambda frame: (frame[only],)
    return itemgetter(*sources) if sources else lambda frame: ()


def plan_function(package: Package, name: str, precision: str, device: torch.device) -> FunctionPlan:
    """Plan the function `name` of the package's program, its constants to lie on `device`.

    Raises PackageError when the function is missing or malformed, UnsupportedOp when it holds unknown ops.
    """
    functions = package.program.functions
    if name not in functions:
        raise PackageError(f"the program has no function {name!r}; it has {', '.join(sorted(functions)) or 'none'}")
    message = functions[name]
    block = block_of(message, name)
    check_ops(block, name)
    planner = Planner(package, name, precision, device)
    scope = _Scope()
    inputs: dict[str, Any] = {}
    for item in message.inputs:
        inputs[item.name] = decode_type(item.type)
        planner._define(scope, item.name, inputs[item.name])
    body, _ = planner.block(block, scope, top=True)
    body.inputs = tuple(scope.slots[item.name] for item in message.inputs)
    types = {
        output: scope.constants[output].type if output in scope.constants else scope.types[output]
        for output in block.outputs
    }
    # A block may return one value twice; a function's results have names, so once is enough.
    body.outputs = tuple(dict(zip(block.outputs, body.outputs, strict=True)).values())
    return FunctionPlan(name, message.opset, body, inputs, types, planner.binder)
