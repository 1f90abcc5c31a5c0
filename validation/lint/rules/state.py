"""Rules on states: how many, how they are laid out, and how they are written."""

from __future__ import annotations

from validation.lint.rule import Confidence, Hit, Rule, Scope, Setting, Verdict
from validation.lint.sources import CT_STATE, CT_TWO_STATES, JR_LESSONS, MOBIUS, PROFILE
from validation.program.contents import Function, Op, Value

WRITES = ("write_state", "coreml_update_state")
STATE_STEP = 32
MOST_STATES = 2


def _alignment(function: Function, _: Setting) -> Hit | None:
    for state in function.states:
        last = state.shape[-1] if state.shape else 0
        if last % STATE_STEP or not last:
            return Hit(f"state {state.name} is {state.tensor}, its last axis no multiple of {STATE_STEP}")
    return None


def _many(function: Function, _: Setting) -> Hit | None:
    count = len(function.states)
    return Hit(f"{count} states, the most is {MOST_STATES}") if count > MOST_STATES else None


def _two(function: Function, _: Setting) -> Hit | None:
    return Hit("2 states, 1 is best") if len(function.states) == MOST_STATES else None


def _is_state(value: Value, setting: Setting) -> bool:
    maker = setting.function.makers.get(value.name)
    return maker is not None and maker.type == "read_state"


def _standalone(op: Op, setting: Setting) -> Hit | None:
    if op.type != "slice_update":
        return None
    if not _is_state(op.need("x"), setting):
        return Hit("updates what is not read from a state")
    readers = setting.function.readers.get(op.result.name, ())
    others = [reader.title for reader in readers if reader.type not in WRITES]
    if others or not readers or setting.function.returns(op.result):
        return Hit(f"its result is read by {others[0]}" if others else "its result is not written to the state alone")
    return None


def _written(function: Function, _: Setting) -> Hit | None:
    writes = sum(op.type in WRITES for op in function.ops)
    return Hit(f"written {writes} times in one call") if writes else None


RULES = (
    Rule(
        "state-alignment", "A function whose state's last axis is no multiple of 32 fails on the engine.",
        Verdict.LEAVES, _alignment, (CT_STATE,), Confidence.REPORTED, Scope.FUNCTION,
    ),
    Rule(
        "state-count", "A function with more than two states fails on the engine when it runs.", Verdict.LEAVES, _many,
        (JR_LESSONS,), Confidence.REPORTED, Scope.FUNCTION,
    ),
    Rule(
        "state-standalone", "An updated slice leaves unless it goes into `write_state` alone and is read back.",
        Verdict.LEAVES, _standalone, (PROFILE,), Confidence.MEASURED,
    ),
    Rule(
        "state-two", "Two states have run on an iPhone, and a decoder with two has not run on a Mac's engine.",
        Verdict.RISKS, _two, (JR_LESSONS, CT_TWO_STATES), Confidence.DISPUTED, Scope.FUNCTION,
    ),
    Rule(
        "state-written", "A state written inside the graph has run on an iPhone and been refused on an M5 Pro.",
        Verdict.RISKS, _written, (JR_LESSONS, MOBIUS), Confidence.DISPUTED, Scope.FUNCTION,
    ),
)  # fmt: skip
