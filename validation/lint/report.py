"""What the linter found, as frozen data: by function what stays, what leaves and why, what costs, what is at risk.

Every op that leaves is listed with each rule that says so; costs, risks and edges are gathered by rule and kind of op.
The same package gives the same report everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from validation.lint.rule import Verdict
from validation.lint.rules import RULES

SCHEMA = "0.1"
_BY_ID = {rule.id: rule for rule in RULES}


@dataclass(frozen=True)
class Broken:
    """A rule that is broken, and what was found."""

    rule: str
    found: str


@dataclass(frozen=True)
class Leaving:
    """One op that the engine would not take."""

    op: str
    name: str
    where: str  # function:position
    rules: tuple[Broken, ...]
    flops: int
    bytes: int


@dataclass(frozen=True)
class Group:
    """All ops of one kind for which one rule says the same: costs, risks, the edge. extra_bytes: moved beyond need."""

    verdict: str
    rule: str
    op: str
    count: int
    flops: int
    bytes: int
    extra_bytes: int
    found: str  # at the first of them


@dataclass(frozen=True)
class Kind:
    """One kind of op in a function."""

    op: str
    count: int
    leaving: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class Share:
    """How much of something there is, how much of it leaves, and how much of it is work at the edge."""

    total: int
    leaving: int
    edge: int

    @property
    def percent(self) -> float:
        """What stays, of all that is not at the edge."""
        counted = self.total - self.edge
        return 100.0 * (counted - self.leaving) / counted if counted else 100.0

    @classmethod
    def sum(cls, shares: Iterable[Share]) -> Share:
        """Several together."""
        given = [(share.total, share.leaving, share.edge) for share in shares]
        return cls(*(sum(column) for column in zip(*given, strict=True))) if given else cls(0, 0, 0)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, with the percentage to six digits."""
        return {**asdict(self), "resident_percent": shown(self.percent)}


def shown(percent: float) -> float:
    """A percentage to six digits that is 100 only where nothing is missing."""
    return 100.0 if percent == 100 else min(float(f"{percent:.6g}"), 99.9999)


@dataclass(frozen=True)
class FunctionReport:
    """One function. whole: rules that take all of its ops along."""

    name: str
    opset: str
    flops: Share
    bytes: Share
    whole: tuple[Broken, ...]
    leaving: tuple[Leaving, ...]
    groups: tuple[Group, ...]
    kinds: tuple[Kind, ...]

    @property
    def resident_percent(self) -> float:
        """The share of its FLOPs that stays; of its bytes where it only moves them."""
        return (self.flops if self.flops.total > self.flops.edge else self.bytes).percent

    def by_rule(self) -> tuple[Group, ...]:
        """What leaves, gathered like the rest, then the rest; in the order of the rules. Not what leaves as a whole."""
        whole = {broken.rule for broken in self.whole}
        found: dict[tuple[str, str], list[tuple[Leaving, str]]] = {}
        for op in self.leaving:
            for broken in op.rules:
                if broken.rule not in whole:
                    found.setdefault((broken.rule, op.op), []).append((op, broken.found))
        leaving = [
            Group(
                Verdict.LEAVES.value, rule, kind, len(ops), sum(op.flops for op, _ in ops),
                sum(op.bytes for op, _ in ops), 0, ops[0][1],
            )
            for (rule, kind), ops in found.items()
        ]  # fmt: skip
        order = {rule.id: place for place, rule in enumerate(RULES)}
        return tuple(sorted((*leaving, *self.groups), key=lambda group: order.get(group.rule, len(order))))

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "flops": self.flops.as_json(), "bytes": self.bytes.as_json()}


@dataclass(frozen=True)
class Total:
    """The functions of one name over all packages that have it: a step through a chain calls them all."""

    name: str
    packages: int
    flops: Share
    bytes: Share

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "flops": self.flops.as_json(), "bytes": self.bytes.as_json()}


@dataclass(frozen=True)
class PackageReport:
    """One package; `system` is what it asks for, by iOS."""

    name: str
    system: str
    program_bytes: int
    weight_bytes: int
    functions: tuple[FunctionReport, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "functions": [function.as_json() for function in self.functions]}


@dataclass(frozen=True)
class LintReport:
    """A package, or all packages of a build. device: None for all of the table, judged by its oldest engine."""

    path: str
    device: str | None
    engine: str
    packages: tuple[PackageReport, ...]

    @property
    def functions(self) -> tuple[FunctionReport, ...]:
        """All functions of all packages."""
        return tuple(function for package in self.packages for function in package.functions)

    @property
    def totals(self) -> tuple[Total, ...]:
        """What each name of a function comes to over all packages, in the order of the packages."""
        named: dict[str, list[FunctionReport]] = {}
        for function in self.functions:
            named.setdefault(function.name, []).append(function)
        return tuple(
            Total(name, len(found), Share.sum(each.flops for each in found), Share.sum(each.bytes for each in found))
            for name, found in named.items()
        )

    @property
    def resident_percent(self) -> float:
        """The share of FLOPs (of bytes where there are none) that stays in the function where the least does."""
        return min((function.resident_percent for function in self.functions), default=100.0)

    def broken_rules(self) -> tuple[str, ...]:
        """The ids of all rules that are broken somewhere, in the order of the table."""
        found = set(_broken(self.functions))
        return tuple(rule.id for rule in RULES if rule.id in found)

    def as_json(self) -> dict[str, Any]:
        """The whole report with the rules that it names."""
        return {
            "schema": SCHEMA,
            "device": self.device,
            "engine": self.engine,
            "resident_percent": shown(self.resident_percent),
            "totals": [total.as_json() for total in self.totals],
            "packages": [package.as_json() for package in self.packages],
            "rules": [rule_as_json(rule) for rule in self.broken_rules()],
        }


def rule_as_json(identifier: str) -> dict[str, Any]:
    """A rule as plain data: what it says, its verdict, how sure it is, and its sources."""
    rule = _BY_ID[identifier]
    return {
        "id": rule.id,
        "says": rule.says,
        "verdict": rule.verdict.value,
        "confidence": rule.confidence.value,
        "engines": rule.engines,
        "sources": [asdict(source) for source in rule.sources],
    }


def _broken(functions: tuple[FunctionReport, ...]) -> Iterator[str]:
    for function in functions:
        yield from (broken.rule for broken in function.whole)
        yield from (broken.rule for op in function.leaving for broken in op.rules)
        yield from (group.rule for group in function.groups)
