"""Compressed constants as the planner sees them: computed from other constants when they are first needed.

A constexpr_* op never runs with the program. iOS16 stores its arguments as attributes, iOS18 as inputs that may name
other constexpr ops; both become a graph of which every op is evaluated once, while a function's constants are bound
(`binding`), and whose results are shared between the functions of a package by what they were computed from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastvlm.errors import PackageError
from validation.mil.binding import Computation, PlannedConstant, converted
from validation.mil.package import Package
from validation.mil.registry import OPS
from validation.mil.values import Constant, TensorType, decode_constant, decode_type

DEEPEST = 100  # coremltools' joint compression nests three


@dataclass(eq=False)
class Evaluation:
    """One constexpr op: its function and its arguments, each a constant with the annotation of its parameter.

    results: how many the program declares. Raises PackageError when `DEEPEST` is exceeded.
    """

    title: str
    function: Callable[..., Any]
    many: bool
    arguments: dict[str, tuple[PlannedConstant, Any]]
    results: int

    def __post_init__(self) -> None:
        self._computed: tuple[Any, ...] | None = None
        self._depth: int = 1 + max((source._depth for source in self.sources), default=0)
        if self._depth > DEEPEST:
            raise PackageError(
                f"{self.title} is the last of {self._depth} constexpr ops in a row, at most {DEEPEST} can be computed"
            )

    @property
    def sources(self) -> list[Evaluation]:
        """The evaluations whose results it takes."""
        return [constant.evaluation for constant, _ in self.arguments.values() if isinstance(constant, _Result)]

    @cached_property
    def digest(self) -> bytes:
        """What was computed from what: differs wherever an argument differs in a single bit."""
        parts = [f"{name}: {constant.digest.hex()}" for name, (constant, _) in self.arguments.items()]
        return hashlib.blake2b("\n".join([self.function.__name__, *parts]).encode()).digest()

    @cached_property
    def stored(self) -> bool:
        """Whether anything in it is stored in a weight file."""
        return any(constant.key is not None for constant, _ in self.arguments.values())

    def run(self) -> tuple[Any, ...]:
        """The results, kept until `drop`; PackageError when the arguments contradict one another."""
        if self._computed is None:
            self._computed = self._compute()
        return self._computed

    def drop(self) -> None:
        """Gives back the memory of the results; they are computed again when they are needed again."""
        self._computed = None

    def forget(self) -> None:
        """Gives back the memory that stored arguments take, those of the evaluations it takes results of too."""
        seen, waiting = {self}, [self]
        while waiting:
            evaluation = waiting.pop()
            for constant, _ in evaluation.arguments.values():
                if isinstance(constant, Constant):
                    constant.forget()
            waiting += set(evaluation.sources) - seen
            seen |= set(evaluation.sources)

    def _compute(self) -> tuple[Any, ...]:
        try:
            values = {name: converted(constant.load(), kind) for name, (constant, kind) in self.arguments.items()}
            with np.errstate(all="ignore"):
                result = self.function(**values)
        except PackageError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PackageError(f"{self.title}: {reason}; the program is damaged") from error
        found = tuple(result) if self.many else (result,)
        if len(found) != self.results:
            raise PackageError(f"{self.title} gives {len(found)} of {self.results} results; the program is damaged")
        return found


@dataclass(frozen=True)
class _Result:
    """One result of an evaluation, in its declared type (fp16 kept in float32 where nothing is rounded)."""

    type: TensorType
    evaluation: Evaluation
    index: int
    target: np.dtype

    @property
    def computed_by(self) -> Computation:
        """See `PlannedConstant`."""
        return self.evaluation

    @property
    def digest(self) -> bytes:
        """See `PlannedConstant`."""
        return self.evaluation.digest + self.index.to_bytes(4, "little") + f"{self.type} {self.target}".encode()

    @property
    def key(self) -> bytes | None:
        """What identifies the result within a package; None when nothing in it is stored in a weight file."""
        return self.digest if self.evaluation.stored else None

    def load(self) -> Any:
        """The values as a numpy array; PackageError when they are not of the declared shape."""
        value = self.evaluation.run()[self.index]
        if tuple(value.shape) != self.type.shape:
            raise PackageError(f"{self.evaluation.title} gives shape {list(value.shape)}, declared is {self.type}")
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(self.target, copy=False)

    def forget(self) -> None:
        """See `PlannedConstant`."""
        self.evaluation.forget()


def constant_argument(
    operation: Any, name: str, constants: dict[str, PlannedConstant], package: Package
) -> PlannedConstant | None:
    """The one constant that an operation's attribute or input of that name is bound to, None where it is not one."""
    if name in operation.attributes:
        return decode_constant(operation.attributes[name], package)
    if name not in operation.inputs or len(operation.inputs[name].arguments) != 1:
        return None
    binding = operation.inputs[name].arguments[0]
    if binding.WhichOneof("binding") == "value":
        return decode_constant(binding.value, package)
    return constants.get(binding.name)


def constexpr_constants(
    operation: Any, constants: dict[str, PlannedConstant], package: Package, precision: str
) -> dict[str, PlannedConstant]:
    """Name -> constant for every output of a constexpr_* operation; PackageError when it is malformed."""
    op = OPS[operation.type]
    title = f"{operation.type} {operation.outputs[0].name if operation.outputs else ''!r}"
    arguments = {}
    for parameter in op.parameters:
        found = constant_argument(operation, parameter.name, constants, package)
        if found is not None:
            arguments[parameter.name] = (found, parameter.annotation)
        elif parameter.required:
            raise PackageError(f"{title} has no constant {parameter.name}; the program is damaged")
    evaluation = Evaluation(title, op.function, op.many, arguments, len(operation.outputs))
    results: dict[str, PlannedConstant] = {}
    for index, output in enumerate(operation.outputs):
        kind = decode_type(output.type)
        if not isinstance(kind, TensorType) or kind.dtype is None:
            raise PackageError(f"{title} gives {kind}, expected a tensor; the program is damaged")
        half = kind.dtype.numpy == np.float16 and precision == "fp32"
        results[output.name] = _Result(kind, evaluation, index, np.dtype(np.float32) if half else kind.dtype.numpy)
    return results
