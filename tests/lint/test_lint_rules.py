"""One test a rule: a package that breaks exactly it is told, one beside it is not, and switched off it is silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coremltools.converters.mil import Builder as mb
from lint_cases import CASES, OTHER_SIDES, PLAIN, Case
from lint_programs import builder, package

from fastvlm.devices import device
from validation.lint import checking
from validation.lint.checking import lint
from validation.lint.report import LintReport
from validation.lint.rule import Verdict
from validation.lint.rules import RULES

BY_ID = {rule.id: rule for rule in RULES}
# Tested below: what they look at is no program.
OTHERWISE = {"package-size", "system"}


Build = Callable[[Case], Path]


@pytest.fixture(scope="module")
def broken_package(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The package of a case that breaks its rule, made once."""
    made: dict[str, Path] = {}

    def build(case: Case) -> Path:
        if case.rule not in made:
            made[case.rule] = package(case.broken(), tmp_path_factory.mktemp("broken"))
        return made[case.rule]

    return build


def broken(report: LintReport, verdict: Verdict) -> set[str]:
    return {rule for rule in report.broken_rules() if BY_ID[rule].verdict is verdict}


def test_every_rule_has_a_case() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert sorted({case.rule for case in CASES} | OTHERWISE) == sorted(BY_ID)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case: Case, broken_package: Build, tmp_path: Path) -> None:
    rule = BY_ID[case.rule]
    report = lint(broken_package(case), case.device)
    assert broken(report, rule.verdict) == {case.rule, *case.also}
    clean = lint(package(case.clean(), tmp_path), case.device)
    assert case.rule not in clean.broken_rules()
    (function,) = report.functions
    if rule.verdict is Verdict.LEAVES:
        assert function.leaving
        assert function.bytes.leaving or case.rule == "rank"  # a reshape moves nothing
    else:
        assert not function.leaving or case.rule == "argmax"
        assert [group for group in function.groups if group.rule == case.rule]


@pytest.mark.parametrize("case", OTHER_SIDES, ids=lambda case: case.rule)
def test_the_other_sides_of_rules(case: Case, tmp_path: Path) -> None:
    assert case.rule in lint(package(case.broken(), tmp_path, "Broken"), case.device).broken_rules()
    assert case.rule not in lint(package(case.clean(), tmp_path, "Clean"), case.device).broken_rules()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_switched_off_says_nothing(case: Case, broken_package: Build) -> None:
    """The test above can fail: without its rule the same package is told clean."""
    rest = [rule for rule in RULES if rule.id not in {case.rule, *case.also}]
    report = lint(broken_package(case), case.device, rest)
    assert case.rule not in report.broken_rules()
    if BY_ID[case.rule].verdict is Verdict.LEAVES:
        assert report.functions[0].leaving == ()
        assert report.resident_percent == 100


@pytest.mark.parametrize(
    ("rule", "older", "newer"),
    [
        ("later-engine", "iPhone 13", "iPhone 14 Pro"),
        ("axis", "MacBook Air M3", "iPhone 15 Pro"),
        ("conv-kernel", "iPhone 14 Pro", "MacBook Pro M4"),
        ("pad-mode", "iPhone 12", "iPhone 13"),
        ("offset-slice", "iPad Air M2", "iPad Air M3"),
        ("scales-fold", "iPhone 12 mini", "iPhone 13 mini"),
    ],
)
def test_a_rule_of_some_generations_is_silent_for_others(
    rule: str, older: str, newer: str, broken_package: Build
) -> None:
    path = broken_package(next(case for case in CASES if case.rule == rule))
    assert rule in lint(path, older).broken_rules()
    assert rule not in lint(path, newer).broken_rules()


def test_a_result_that_is_read_inside_too_is_no_edge(tmp_path: Path) -> None:
    """A cast that the program goes on with is not the price of its interface."""

    def body(x0: Any) -> Any:
        wide = mb.cast(x=x0, dtype="fp32")
        return wide, mb.cast(x=wide, dtype="fp16")

    (function,) = lint(package(builder(body), tmp_path)).functions
    assert "cast" in {broken.rule for op in function.leaving for broken in op.rules}
    assert len(function.leaving) == 2


def test_package_size(tmp_path: Path) -> None:
    path = package(PLAIN(), tmp_path)
    weights = path / "Data" / "com" / "weights" / "weight.bin"
    for size, told in ((1_000_000_000, False), (1_000_000_001, True)):
        with weights.open("wb") as file:
            file.truncate(size)  # a hole: no byte of it is written
        assert ("package-size" in {broken.rule for broken in lint(path).functions[0].whole}) is told
    assert "package-size" not in {broken.rule for broken in lint(path, "Mac mini M4").functions[0].whole}
    assert lint(path).resident_percent == 0
    assert lint(path, rules=[rule for rule in RULES if rule.id != "package-size"]).resident_percent == 100


def test_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package(PLAIN(), tmp_path)
    for last, stays in ((None, 100), (18, 100), (17, 0)):
        ended = dataclasses.replace(device("iPhone 12"), last_os=last)
        monkeypatch.setattr(checking, "device", lambda _, ended=ended: ended)
        assert lint(path, "iPhone 12").resident_percent == stays
    (found,) = lint(path, "iPhone 12").functions[0].whole
    assert found.found == "the package asks for iOS 18, iPhone 12 ends at 17"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rules_say_where_they_come_from(rule: checking.Rule) -> None:
    assert rule.sources
    assert all(source.title and source.url for source in rule.sources)
    assert rule.says.endswith(".")
    assert rule.says[0].isupper() or rule.says[0].isdigit()
