"""How tests damage a copy of a package: its program's ops and constants, and the numbers of its weight file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from validation.mil.package import parse_spec
from validation.mil.schema import proto
from validation.program import Function, read_program
from validation.program.anchors import Anchors

METADATA = 64  # bytes of a blob's, ahead of its numbers


class Surgery:
    """One function of a package: names come from the package as it was, edits go into its files."""

    def __init__(self, package: Path, function: str) -> None:
        self.folder = package / "Data" / "com.apple.CoreML"
        self.spec = parse_spec(self.folder / "model.mlmodel")
        self.facts: Function = next(each for each in read_program(package).functions if each.name == function)
        self.anchors = Anchors(self.facts)
        message = self.spec.mlProgram.functions[function]
        self.block = message.block_specializations[message.opset]

    def save(self) -> None:
        (self.folder / "model.mlmodel").write_bytes(self.spec.SerializeToString(deterministic=True))

    def made(self, name: str) -> Any:
        """The op that gives a value."""
        return next(op for op in self.block.operations if any(item.name == name for item in op.outputs))

    def first(self, kind: str, skip: int = 0) -> Any:
        """The first op of a type, behind `skip` others."""
        return [op for op in self.block.operations if op.type == kind][skip]

    def argument(self, op: Any, parameter: str) -> Any:
        """What is stored of an op's constant argument, for this op alone: a tensor value with its numbers or texts."""
        (binding,) = op.inputs[parameter].arguments
        if binding.WhichOneof("binding") == "name":  # several ops may read one constant
            binding.value.CopyFrom(self.made(binding.name).attributes["val"])
        return binding.value.immediateValue.tensor

    def set_number(self, op: Any, parameter: str, change: Callable[[float], float]) -> None:
        """Changes a scalar, or one-element, fp16 or int32 argument."""
        tensor = self.argument(op, parameter)
        if tensor.WhichOneof("value") == "bytes":
            (number,) = np.frombuffer(tensor.bytes.values, np.float16)
            tensor.bytes.values = np.float16(change(float(number))).tobytes()
        else:
            held = getattr(tensor, tensor.WhichOneof("value")).values
            held[0] = type(held[0])(change(held[0]))

    def reroute(self, old: str, new: str) -> None:
        """Lets every op that reads `old` read `new`, and drops the op that made it."""
        self.block.operations.remove(self.made(old))
        for op in self.block.operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.name == old:
                        binding.name = new

    def swap(self, first: str, second: str) -> None:
        """Exchanges where two constants lie in the weight file."""
        one, two = (self.made(name).attributes["val"].blobFileValue for name in (first, second))
        one.offset, two.offset = two.offset, one.offset

    def lift(self, op: Any, parameter: str, name: str) -> None:
        """Puts `name` + 1 in place of `name` in an argument of an op."""
        lifted = f"{name}_and_one"
        place = list(self.block.operations).index(op)
        add = type(op)()
        add.type = "add"
        add.outputs.add(name=lifted).type.CopyFrom(next(item.type for item in self.made(name).outputs))
        add.inputs["x"].arguments.add().name = name
        one = add.inputs["y"].arguments.add().value
        one.type.tensorType.dataType = proto("MIL").DataType.Value("INT32")
        one.immediateValue.tensor.ints.values.append(1)
        for binding in op.inputs[parameter].arguments:
            if binding.name == name:
                binding.name = lifted
        self.block.operations.insert(place, add)

    @contextmanager
    def numbers(self, constant: str) -> Iterator[np.ndarray]:
        """The numbers of a stored fp16 constant, in its shape; what is written into them goes into the file."""
        value = next(value for op in self.facts.ops for value in op.values if value.name == constant)
        offset = value.constant.message.blobFileValue.offset
        held = np.memmap(self.folder / "weights" / "weight.bin", np.float16, "r+", offset + METADATA, value.shape)
        yield held
        held.flush()
