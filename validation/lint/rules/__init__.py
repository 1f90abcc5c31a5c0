"""The rules, in the order in which a report lists them: exits, then costs, risks and the edge."""

from __future__ import annotations

from validation.lint.rule import Rule, Verdict
from validation.lint.rules import interface, ops, shapes, state, values, weights, windows

_ALL = (
    *values.RULES, *shapes.RULES, *ops.RULES, *windows.RULES, *state.RULES, *weights.RULES, *interface.RULES,
)  # fmt: skip
RULES: tuple[Rule, ...] = tuple(rule for verdict in Verdict for rule in _ALL if rule.verdict is verdict)
