"""From the package that ships to `validation.program.contents`: every function's ops with their types, walked in order.

The protobuf is opened as the MIL runtime opens it (`validation.mil.package`), so a hostile package is one PackageError
here too. Weights are located in their files and never read: their bytes follow from types. An op that the MIL runtime
does not know is read all the same, because a rule is to say that nothing is known of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.errors import PackageError
from validation.mil.features import describe
from validation.mil.package import Package, open_folder
from validation.mil.plan import block_of
from validation.mil.values import Constant, decode_constant, decode_type
from validation.program.contents import Function, Op, Program, Value

DEEPEST = 40  # blocks within blocks, and constexpr ops computed from one another; coremltools nests three


def read_program(path: str | Path) -> Program:
    """Reads one `.mlpackage` folder; PackageError where it cannot be opened or contradicts itself."""
    folder = Path(path)
    package = open_folder(folder)
    description = package.spec.description
    declared = {entry.name: entry for entry in description.functions} or {"main": description}
    held = package.program.functions
    if declared.keys() != held.keys():
        raise PackageError(
            f"{folder} declares the functions {sorted(declared)} and holds {sorted(held)}; export it again"
        )
    functions = tuple(_Reader(package, name).read(held[name], declared[name]) for name in sorted(held))
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    weights = sum(size for file, size in sizes.items() if file.suffix == ".bin")
    program = sum(size for file, size in sizes.items() if file.suffix == ".mlmodel")
    default = description.defaultFunctionName or "main"
    return Program(folder.name, package.spec.specificationVersion, functions, program, weights, default)


class _Reader:
    """Reads one function."""

    def __init__(self, package: Package, name: str) -> None:
        self._package, self._name = package, name
        self._ops: list[Op] = []

    def read(self, message: Any, described: Any) -> Function:
        block = block_of(message, self._name)
        scope: dict[str, Value] = {}
        for item in message.inputs:
            kind = decode_type(item.type)
            origin = "state" if item.type.WhichOneof("type") == "stateType" else "input"
            scope[item.name] = Value(item.name, kind, origin)
        inputs = tuple(scope.values())
        self._block(block, scope, "", None, 0)
        results = tuple(self._named(name, scope, "returns") for name in block.outputs)
        features = {
            item.name: describe(item, scope[item.name].type)
            for item in (*described.input, *described.state)
            if item.name in scope
        }
        readers: dict[str, list[Op]] = defaultdict(list)
        for op in self._ops:
            for name in {value.name for value in op.values if value.name}:
                readers[name].append(op)
        makers = {value.name: op for op in self._ops for value in op.outputs}
        found = {name: tuple(ops) for name, ops in readers.items()}
        return Function(self._name, message.opset, tuple(self._ops), inputs, results, features, found, makers)

    def _block(self, block: Any, scope: dict[str, Value], path: str, inside: str | None, depth: int) -> None:
        if depth > DEEPEST:
            raise PackageError(f"function {self._name!r} nests more than {DEEPEST} blocks; the program is damaged")
        for item in block.inputs:
            scope[item.name] = Value(item.name, decode_type(item.type), "computed")
        for index, operation in enumerate(block.operations):
            where = f"{path}{index}"
            if operation.type == "const":
                self._const(operation, scope, where)
                continue
            op = self._op(operation, scope, where, inside)
            if operation.type.startswith("constexpr_"):
                scope |= {item.name: Value(item.name, item.type, "constant", made_by=op) for item in op.outputs}
                self._check_depth(op)
                continue
            self._ops.append(op)
            for inner in operation.blocks:
                self._block(inner, dict(scope), f"{where}.", inside or operation.type, depth + 1)
            scope |= {item.name: item for item in op.outputs}

    def _const(self, operation: Any, scope: dict[str, Value], where: str) -> None:
        if len(operation.outputs) != 1 or "val" not in operation.attributes:
            raise PackageError(f"function {self._name!r}, position {where}: const holds no value; it is damaged")
        constant = decode_constant(operation.attributes["val"], self._package)
        constant.check()
        name = operation.outputs[0].name
        scope[name] = Value(name, constant.type, "constant", constant)

    def _op(self, operation: Any, scope: dict[str, Value], where: str, inside: str | None) -> Op:
        inputs = {
            parameter: tuple(self._bound(binding, scope, operation.type) for binding in argument.arguments)
            for parameter, argument in sorted(operation.inputs.items())
        }
        # iOS16 stores the arguments of its constexpr ops as attributes.
        for parameter, message in sorted(operation.attributes.items()):
            if parameter != "name" and parameter not in inputs:
                inputs[parameter] = (self._inline(decode_constant(message, self._package)),)
        outputs = tuple(Value(item.name, decode_type(item.type), "computed") for item in operation.outputs)
        name = outputs[0].name if outputs else operation.type
        return Op(operation.type, name, f"{self._name}:{where}", inputs, outputs, inside)

    def _bound(self, binding: Any, scope: dict[str, Value], kind: str) -> Value:
        if binding.WhichOneof("binding") == "value":
            return self._inline(decode_constant(binding.value, self._package))
        return self._named(binding.name, scope, f"{kind} reads")

    def _inline(self, constant: Constant) -> Value:
        constant.check()
        return Value("", constant.type, "constant", constant)

    def _named(self, name: str, scope: dict[str, Value], what: str) -> Value:
        if name not in scope:
            raise PackageError(
                f"function {self._name!r}: {what} {name!r}, which nothing before it defines; the program is damaged"
            )
        return scope[name]

    def _check_depth(self, op: Op) -> None:
        depth, waiting = 0, list(_makers(op))
        while waiting:
            depth, waiting = depth + 1, [other for each in waiting for other in _makers(each)]
            if depth > DEEPEST or len(waiting) > DEEPEST:
                raise PackageError(f"{op.title} is computed from too many constexpr ops; the program is damaged")


def _makers(op: Op) -> Iterator[Op]:
    """The constexpr ops whose results an op takes, each once."""
    seen: set[int] = set()
    for value in op.values:
        if value.made_by is not None and id(value.made_by) not in seen:
            seen.add(id(value.made_by))
            yield value.made_by
