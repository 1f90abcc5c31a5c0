"""Following a function op by op, as the reference says that it should run.

Whoever walks asks for the next op by its type, by the values that go into it and by the constants that it should have
(`validation.audit.expected`). The op is looked for among the readers of those values, or where the constant of a
declared parameter is read: so a walk that has lost its way finds it again at the next weight, and one fault is told
where it is. What differs is gathered; ops that nothing asked for are what the reference has not.
It does not know networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from validation.audit.expected import Expected, Parameter, expected, listed
from validation.audit.findings import CONSTANTS, UNEXPLAINED, Findings
from validation.program.contents import Function, Op, Value

COMMUTATIVE = ("add", "mul", "maximum")


@dataclass
class _Match:
    """An op held against what was asked for: values that are not those, constants that differ, arguments too many."""

    op: Op
    links: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int]:
        """The better the match, the smaller."""
        return len(self.links) + len(self.extra), len(self.constants)


class Walk:
    """A walk through one function; `title` names the function in what it finds, `place` where the walk is."""

    def __init__(self, function: Function, title: str, findings: Findings) -> None:
        self.function, self.title, self.findings = function, title, findings
        self.place = "its inputs"
        self.parameters: set[str] = set()  # those that were asked for
        self._order = {id(op): index for index, op in enumerate(function.ops)}
        self._seen: set[int] = set()
        self._given: set[str] = set()

    def input(self, name: str) -> Value | None:
        """Returns an input or state of the function."""
        found = next((value for value in self.function.inputs if value.name == name), None)
        if found is None:
            self._unexplained(f"the function has no input {name}")
        return found

    def op(self, kind: str, **arguments: Any) -> Value | None:
        """Returns the first result of `step`'s op."""
        found = self.step(kind, **arguments)
        return found.outputs[0] if found is not None and found.outputs else None

    def step(self, kind: str, **arguments: Any) -> Op | None:
        """Returns the op of type `kind` with these arguments, None where none is found or too little is known.

        An argument is a Value, None for one that is not known, a tuple of those and of numbers, an Expected, or plain
        numbers and strings.
        """
        judged = [self._judge(op, arguments) for op in self._candidates(kind, arguments)]
        for asked in _parameters(arguments):
            self.parameters.add(asked.name)
        if not judged:
            if known := [value.name for value in _values(arguments)] or [p.constant for p in _parameters(arguments)]:
                self._unexplained(f"no {kind} reads {', '.join(known)}")
            return None
        best = min(judged, key=lambda match: match.rank)
        self._seen.add(id(best.op))
        for problem in (*best.links, *best.extra):
            self._unexplained(f"{best.op.title}: {problem}")
        for problem in best.constants:
            self.findings.count(CONSTANTS, f"{self._where}: {best.op.title}: {problem}")
        self.findings.look(CONSTANTS, sum(isinstance(each, Expected) for each in map(_wanted, arguments.values())))
        return best.op

    def in_order(self, first: Op | None, second: Op | None) -> None:
        """Tells where an op runs before another that no value ties it to."""
        if first is not None and second is not None and self._order[id(first)] > self._order[id(second)]:
            self._unexplained(f"{second.title} runs before {first.title}")

    def gives(self, value: Value | None, name: str) -> None:
        """Holds a result of the function against its name in the contract."""
        self._given.add(name)
        if value is not None and (value.name != name or not self.function.returns(value)):
            self._unexplained(f"{value.name} is computed where the result {name} should be")

    def finish(self) -> None:
        """Tells what nothing asked for: ops, and results of the function."""
        self.place = "anywhere"
        self.findings.look(UNEXPLAINED, len(self.function.ops))
        for op in self.function.ops:
            if id(op) not in self._seen and not self._keeps_an_input(op):
                self._unexplained(f"{op.title} is in nothing that the reference computes")
        for result in self.function.results:
            if result.name not in self._given:
                self._unexplained(f"the result {result.name} is none of the reference's")

    def missing(self, what: str) -> None:
        """Tells that the function lacks what is declared."""
        self._unexplained(what)

    @property
    def _where(self) -> str:
        return f"{self.title}, {self.place}"

    def _unexplained(self, problem: str) -> None:
        self.findings.count(UNEXPLAINED, f"{self._where}: {problem}")

    def _candidates(self, kind: str, arguments: Mapping[str, Any]) -> list[Op]:
        """The ops that may be meant: readers of a declared parameter's constant, else of any value that is known."""
        readers = self.function.readers
        for parameter in _parameters(arguments):
            found = [op for op in readers.get(parameter.constant, ()) if self._open(op, kind)]
            if found:
                return found
        for value in _values(arguments):
            found = [op for op in readers.get(value.name, ()) if self._open(op, kind)]
            if found:
                return found
        return []

    def _open(self, op: Op, kind: str) -> bool:
        return op.type == kind and id(op) not in self._seen

    def _judge(self, op: Op, arguments: Mapping[str, Any]) -> _Match:
        match = _judged(op, arguments)
        if op.type in COMMUTATIVE and match.links and {"x", "y"} <= arguments.keys():
            turned = _judged(op, {**arguments, "x": arguments["y"], "y": arguments["x"]})
            match = min(match, turned, key=lambda each: each.rank)
        return match

    def _keeps_an_input(self, op: Op) -> bool:
        """Whether an op only keeps an input alive that the function takes and does not use."""
        unread = all(
            not self.function.readers.get(value.name) and not self.function.returns(value) for value in op.outputs
        )
        return op.type == "identity" and unread and all(value.origin == "input" for value in op.values)


def _judged(op: Op, arguments: Mapping[str, Any]) -> _Match:
    match = _Match(op)
    covered = set(arguments)
    for parameter, argument in arguments.items():
        wanted = _wanted(argument)
        if isinstance(wanted, Expected):
            covered.update(wanted.covers)
            if problem := wanted.difference(op, parameter):
                (match.links if isinstance(wanted, Parameter) else match.constants).append(problem)
        else:
            _compare(match, parameter, wanted)
    for parameter in op.inputs:
        if parameter not in covered:
            match.extra.append(f"has an argument {parameter}, expected none")
    return match


def _compare(match: _Match, parameter: str, wanted: tuple[Any, ...]) -> None:
    """Holds the values bound to a parameter against those that are wanted, one by one."""
    bound = match.op.inputs.get(parameter, ())
    if len(bound) != len(wanted):
        match.links.append(f"{parameter} are {len(bound)} values, expected {len(wanted)}")
        return
    for found, want in zip(bound, wanted, strict=True):
        if want is None or found is want:
            continue
        if isinstance(want, Value):
            match.links.append(f"{parameter} is {found.name or 'a constant'}, expected {want.name}")
        elif problem := _number_difference(found, want):
            match.constants.append(f"{parameter} {problem}")


def _number_difference(found: Value, want: float) -> str | None:
    loaded = found.constant.load() if found.constant is not None and found.elements == 1 else None
    if not isinstance(loaded, np.ndarray):
        return f"hold {found.name or 'a constant'}, expected {want}"
    return None if loaded.reshape(-1)[0] == want else f"hold {listed(loaded)}, expected {want}"


def _wanted(argument: Any) -> Expected | tuple[Any, ...]:
    """An argument as what it stands for: values as a tuple, everything else as an Expected."""
    if isinstance(argument, tuple):
        return argument
    return (argument,) if argument is None or isinstance(argument, Value) else expected(argument)


def _values(arguments: Mapping[str, Any]) -> Iterator[Value]:
    for argument in arguments.values():
        for each in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(each, Value):
                yield each


def _parameters(arguments: Mapping[str, Any]) -> Iterator[Parameter]:
    return (argument for argument in arguments.values() if isinstance(argument, Parameter))
