"""What a rule is: a sentence, a test over facts, a verdict, and where it comes from. Rules are data.

No document of Apple's lists what the Neural Engine takes, and nothing here ran on a device. So every rule carries its
sources and how sure it is, and a result from a device corrects one row of `validation.lint.rules`, nothing else.

    LEAVES   the engine would not take the op (the function, the package): it goes to the GPU or the CPU
    COSTS    the engine takes it, and it costs more than it need; the price is estimated where it can be
    RISKS    it stays, and numbers or the load itself have gone wrong for others
    EDGE     work at an input or output that Core ML does around the engine: the price of that interface
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from fastvlm.devices import ENGINES, Device, Engine
from validation.program.contents import Function, Program


class Verdict(enum.Enum):
    """What follows where a rule is broken."""

    LEAVES = "leaves"
    COSTS = "costs"
    RISKS = "risks"
    EDGE = "edge"


class Confidence(enum.Enum):
    """How sure a rule is."""

    APPLE = "Apple says"
    MEASURED = "measured by others"
    REPORTED = "reported once"
    READ = "read from Apple's compiler"
    DISPUTED = "sources disagree"
    UNKNOWN = "unknown"


class Scope(enum.Enum):
    """What a rule looks at; a broken rule of a function or a package takes all of its ops along."""

    OP = "op"
    FUNCTION = "function"
    PACKAGE = "package"


@dataclass(frozen=True)
class Source:
    """Where a fact comes from."""

    title: str
    url: str


@dataclass(frozen=True)
class Hit:
    """A rule that is broken: what was found, with the values. extra_bytes: moved beyond need, of a price in bytes."""

    found: str
    extra_bytes: int = 0


@dataclass(frozen=True)
class Setting:
    """What a rule may look at besides its subject. device: None stands for all of the table."""

    program: Program
    function: Function
    engine: Engine
    device: Device | None


@dataclass(frozen=True)
class Rule:
    """One rule.

    finds: (subject, setting) -> Hit or None, the subject being an `Op`, the `Function` or the `Program` by `scope`.
    first, last: the generations of engines that it holds for, both included; None is open.
    """

    id: str
    says: str
    verdict: Verdict
    finds: Callable[..., Hit | None]
    sources: tuple[Source, ...]
    confidence: Confidence
    scope: Scope = Scope.OP
    first: str | None = None
    last: str | None = None

    def holds_for(self, engine: Engine) -> bool:
        """Whether the rule is about that generation."""
        order = [each.name for each in ENGINES]
        at = order.index(engine.name)
        low = 0 if self.first is None else order.index(self.first)
        high = len(order) if self.last is None else order.index(self.last)
        return low <= at <= high

    @property
    def engines(self) -> str:
        """The generations in words."""
        if self.first is None and self.last is None:
            return "all"
        if self.first is None:
            return f"to {self.last}"
        return f"from {self.first}" if self.last is None else f"{self.first} to {self.last}"
