"""Holding a package to the rules: every op to each rule of its scope, its cost to what leaves.

A rule of a function or a package that says LEAVES takes all ops of the function along. An op at the edge is judged by
no other rule, since Core ML does it around the engine. Without a device the oldest engine of the table judges, because
each later one takes all that it takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvlm.devices import ENGINES, Device, device
from fastvlm.errors import PackageError, UsageError
from validation.contents import is_package, package_paths
from validation.lint.cost import Cost, cost_of
from validation.lint.report import Broken, FunctionReport, Group, Kind, Leaving, LintReport, PackageReport, Share
from validation.lint.rule import Hit, Rule, Scope, Setting, Verdict
from validation.lint.rules import RULES
from validation.lint.rules.interface import SYSTEMS
from validation.program.contents import Function, Op, Program
from validation.program.reading import read_program

STAYS = "stays"


def lint(path: str | Path, device: str | None = None, rules: Sequence[Rule] = RULES) -> LintReport:
    """Reports what of a package, or of each package of a build folder, the Neural Engine would take.

    path: an `.mlpackage` or a build folder. device: a name of `fastvlm.devices`, None for all of them.
    Raises UsageError for an unknown device or a file, PackageError for a damaged package, BuildError for a folder that
    is neither.
    """
    where = Path(path)
    chosen = _device(device)
    if os.path.isfile(where):
        raise UsageError(f"{where} is a file, expected a package or a build folder; name the folder it lies in")
    alone = os.path.isdir(where) and (is_package(where) or where.suffix == ".mlpackage")
    packages = [where] if alone else package_paths(where)
    reports = tuple(_named(each, chosen, rules) for each in packages)
    engine = chosen.engine if chosen else ENGINES[0]
    return LintReport(str(path), chosen.name if chosen else None, engine.name, reports)


@dataclass(frozen=True)
class Prediction:
    """What the rules say of one op: STAYS, "leaves" or "edge", and which of them say so (none for one that stays)."""

    op: str
    name: str
    verdict: str
    rules: tuple[str, ...]


def predictions(path: Path, device: str | None = None) -> dict[str, tuple[Prediction, ...]]:
    """Returns for each function of one package what is predicted of each op, in the order of the program.

    Raises as `lint`.
    """
    chosen, program = _device(device), read_program(path)
    engine = chosen.engine if chosen else ENGINES[0]
    rules = [rule for rule in RULES if rule.holds_for(engine)]
    found = {}
    for function in program.functions:
        judged, wide = _held(function, Setting(program, function, engine, chosen), rules)
        whole = tuple(rule.id for rule, _ in wide if rule.verdict is Verdict.LEAVES)
        found[function.name] = tuple(_prediction(each, whole) for each in judged)
    return found


def _device(name: str | None) -> Device | None:
    return None if name is None else device(name)


def _named(path: Path, chosen: Device | None, rules: Sequence[Rule]) -> PackageReport:
    """One package; a PackageError names it."""
    try:
        return _package(read_program(path), chosen, rules)
    except PackageError as error:
        if path.name in str(error):
            raise
        raise PackageError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Judged:
    """One op with its cost and the rules that it breaks."""

    op: Op
    cost: Cost
    hits: tuple[tuple[Rule, Hit], ...]

    def broken(self, verdict: Verdict) -> tuple[Broken, ...]:
        return tuple(Broken(rule.id, hit.found) for rule, hit in self.hits if rule.verdict is verdict)


def _package(program: Program, chosen: Device | None, rules: Sequence[Rule]) -> PackageReport:
    engine = chosen.engine if chosen else ENGINES[0]
    asked = [rule for rule in rules if rule.holds_for(engine)]
    functions = tuple(
        _function(function, Setting(program, function, engine, chosen), asked) for function in program.functions
    )
    system = SYSTEMS.get(program.version)
    named = f"iOS {system[0]}, macOS {system[1]}" if system else f"specification version {program.version}"
    return PackageReport(program.name, named, program.program_bytes, program.weight_bytes, functions)


def _function(function: Function, setting: Setting, rules: Sequence[Rule]) -> FunctionReport:
    judged, wide = _held(function, setting, rules)
    whole = tuple(Broken(rule.id, hit.found) for rule, hit in wide if rule.verdict is Verdict.LEAVES)
    leaving = [each for each in judged if each.broken(Verdict.LEAVES) or (whole and not each.broken(Verdict.EDGE))]
    edge = [each for each in judged if each.broken(Verdict.EDGE)]
    groups = (*_wide_groups(wide, judged), *_groups(judged))
    return FunctionReport(
        function.name, function.opset, _share(judged, leaving, edge, "flops"), _share(judged, leaving, edge, "bytes"),
        whole, tuple(_leaving(each, whole) for each in leaving), groups, _kinds(judged, leaving),
    )  # fmt: skip


def _held(function: Function, setting: Setting, rules: Sequence[Rule]) -> tuple[list[_Judged], list[tuple[Rule, Hit]]]:
    """Every op with the rules that it breaks, and the rules that the function or its package breaks as a whole."""
    judged = [_judge(op, setting, [rule for rule in rules if rule.scope is Scope.OP]) for op in function.ops]
    subjects = {Scope.FUNCTION: function, Scope.PACKAGE: setting.program}
    wide = [
        (rule, hit)
        for rule in rules
        if rule.scope is not Scope.OP and (hit := rule.finds(subjects[rule.scope], setting)) is not None
    ]
    return judged, wide


def _prediction(each: _Judged, whole: tuple[str, ...]) -> Prediction:
    edge = tuple(broken.rule for broken in each.broken(Verdict.EDGE))
    leaving = (*whole, *(broken.rule for broken in each.broken(Verdict.LEAVES)))
    verdict, rules = ("edge", edge) if edge else ("leaves", leaving) if leaving else (STAYS, ())
    return Prediction(each.op.type, each.op.name, verdict, rules)


def _judge(op: Op, setting: Setting, rules: Sequence[Rule]) -> _Judged:
    """Raises PackageError where the op's arguments contradict each other."""
    try:
        cost = cost_of(op)
        hits = [(rule, hit) for rule in rules if (hit := rule.finds(op, setting)) is not None]
    except (IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise PackageError(f"{op.title} has arguments that contradict each other; the program is damaged") from error
    if any(rule.verdict is Verdict.EDGE for rule, _ in hits):
        hits = [(rule, hit) for rule, hit in hits if rule.verdict is Verdict.EDGE]
    return _Judged(op, cost, tuple(hits))


def _share(judged: Sequence[_Judged], leaving: Sequence[_Judged], edge: Sequence[_Judged], what: str) -> Share:
    total, gone, outside = (sum(getattr(each.cost, what) for each in part) for part in (judged, leaving, edge))
    return Share(total, gone, outside)


def _leaving(each: _Judged, whole: tuple[Broken, ...]) -> Leaving:
    rules = (*whole, *each.broken(Verdict.LEAVES))
    return Leaving(each.op.type, each.op.name, each.op.where, rules, each.cost.flops, each.cost.bytes)


def _wide_groups(wide: Sequence[tuple[Rule, Hit]], judged: Sequence[_Judged]) -> list[Group]:
    """Costs and risks of a whole function or package."""
    return [
        Group(
            rule.verdict.value, rule.id, f"the {rule.scope.value}", len(judged),
            sum(each.cost.flops for each in judged), sum(each.cost.bytes for each in judged),
            hit.extra_bytes, hit.found,
        )
        for rule, hit in wide
        if rule.verdict is not Verdict.LEAVES
    ]  # fmt: skip


def _groups(judged: Sequence[_Judged]) -> list[Group]:
    """Costs, risks and edges by rule and kind of op, in the order of the rules, then of the program."""
    gathered: dict[tuple[str, str], list[tuple[_Judged, Rule, Hit]]] = {}
    for each in judged:
        for rule, hit in each.hits:
            if rule.verdict is not Verdict.LEAVES:
                gathered.setdefault((rule.id, each.op.type), []).append((each, rule, hit))
    order = {rule.id: place for place, rule in enumerate(RULES)}
    groups = []
    for (identifier, kind), found in sorted(gathered.items(), key=lambda item: order.get(item[0][0], len(order))):
        flops, moved = (sum(getattr(each.cost, what) for each, _, _ in found) for what in ("flops", "bytes"))
        extra = sum(hit.extra_bytes for _, _, hit in found)
        verdict, first = found[0][1].verdict.value, found[0][2].found
        groups.append(Group(verdict, identifier, kind, len(found), flops, moved, extra, first))
    return groups


def _kinds(judged: Sequence[_Judged], leaving: Sequence[_Judged]) -> tuple[Kind, ...]:
    gone = {id(each) for each in leaving}
    rows: dict[str, list[_Judged]] = {}
    for each in judged:
        rows.setdefault(each.op.type, []).append(each)
    kinds = [
        Kind(
            kind, len(found), sum(id(each) in gone for each in found), sum(each.cost.flops for each in found),
            sum(each.cost.bytes for each in found),
        )
        for kind, found in rows.items()
    ]  # fmt: skip
    return tuple(sorted(kinds, key=lambda kind: (-kind.flops, -kind.bytes, kind.op)))
