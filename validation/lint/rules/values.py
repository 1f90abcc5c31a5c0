"""Rules on element types: fp16 is what the engine computes in; everything else leaves it or never arrives there.

What stands at an input or output of the function is no exit but an edge (`validation.lint.rules.interface`).
"""

from __future__ import annotations

import numpy as np

from validation.lint.rule import Confidence, Hit, Rule, Setting, Verdict
from validation.lint.rules.interface import is_edge
from validation.lint.sources import (
    ANEFORGE,
    COREAI_IOS,
    COREAI_ISSUES,
    COREAI_QUOTED,
    GUIDE_SURFACE,
    JR_GUIDE,
    PROFILE,
)
from validation.program.contents import Op, Value

WIDE = ("fp32", "fp64")
FEW = 4_096  # numbers of a constant that is looked into
# Operands of arithmetic; scalar attributes such as epsilon are read when the program is compiled.
OPERANDS = ("x", "y", "a", "b", "values", "update", "weight", "bias", "gamma", "beta", "mean", "variance", "query",
            "key", "value", "attn_mask")  # fmt: skip
INDEX_OPS = ("gather", "gather_nd", "gather_along_axis")  # judged by their own rows


def _named(value: Value) -> str:
    return f"{value.name or 'a constant'} is {value.type}"


def _float32(op: Op, setting: Setting) -> Hit | None:
    if op.type == "cast" or is_edge(op, setting):
        return None
    wide = [value for value in (*op.values, *op.outputs) if not value.fixed and value.dtype]
    found = next((value for value in wide if value.dtype and value.dtype.name in WIDE), None)
    return Hit(_named(found)) if found else None


def _float32_constant(op: Op, setting: Setting) -> Hit | None:
    if op.type == "cast" or is_edge(op, setting):
        return None
    operands = (value for name in OPERANDS for value in op.inputs.get(name, ()) if value.fixed)
    found = next((value for value in operands if value.dtype and value.dtype.name in WIDE), None)
    return Hit(_named(found)) if found else None


def _integer(op: Op, setting: Setting) -> Hit | None:
    if op.type == "cast" or op.type in INDEX_OPS or is_edge(op, setting):
        return None
    operands = [value for name in OPERANDS for value in op.inputs.get(name, ()) if not value.fixed]
    for value in (*operands, *op.outputs):
        if value.dtype and not value.dtype.is_float and value.dtype.name != "bool":
            return Hit(_named(value))
    return None


def _cast(op: Op, setting: Setting) -> Hit | None:
    if op.type != "cast" or is_edge(op, setting):
        return None
    return Hit(f"{op.need('x').type} to {op.result.type}")


def _bool_outside(op: Op, setting: Setting) -> Hit | None:
    for value in op.values:
        if value.origin == "input" and value.dtype and value.dtype.name == "bool":
            return Hit(f"input {_named(value)}")
    for value in op.outputs:
        if value.dtype and value.dtype.name == "bool" and setting.function.returns(value):
            return Hit(f"output {_named(value)}")
    return None


def _infinite(op: Op, _: Setting) -> Hit | None:
    for value in op.values:
        held = value.constant
        if held is None or value.dtype is None or not value.dtype.is_float or not 0 < value.elements <= FEW:
            continue
        loaded = held.load()
        if isinstance(loaded, np.ndarray) and not np.isfinite(loaded).all():
            return Hit(f"{value.name or 'a constant'} holds an infinity or NaN")
    return None


RULES = (
    Rule(
        "float32", "An op on float32 values leaves: the engine computes in fp16.", Verdict.LEAVES, _float32,
        (COREAI_QUOTED, GUIDE_SURFACE), Confidence.APPLE,
    ),
    Rule(
        "float32-constant", "An op with a float32 constant operand leaves, whatever else it takes.", Verdict.LEAVES,
        _float32_constant, (COREAI_ISSUES, COREAI_IOS), Confidence.APPLE,
    ),
    Rule(
        "integer", "An op on whole numbers leaves (`Unsupported tensor data type: int32`); it does no FLOPs.",
        Verdict.LEAVES, _integer, (PROFILE, GUIDE_SURFACE), Confidence.MEASURED,
    ),
    Rule(
        "cast", "A cast inside the program leaves: one of its sides is a type that the engine does not compute in.",
        Verdict.LEAVES, _cast, (GUIDE_SURFACE, JR_GUIDE), Confidence.MEASURED,
    ),
    Rule(
        "bool", "Truth values may be compared and selected by inside; as input or output of the program they leave.",
        Verdict.LEAVES, _bool_outside, (ANEFORGE,), Confidence.MEASURED,
    ),
    Rule(
        "infinite", "An infinity or NaN among the constants: softmax does not take -inf as other machines do.",
        Verdict.RISKS, _infinite, (COREAI_ISSUES,), Confidence.APPLE,
    ),
)  # fmt: skip
