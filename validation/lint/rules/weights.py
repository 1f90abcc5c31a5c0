"""Rules on stored weights: how finely they are quantised, and how large they are."""

from __future__ import annotations

from collections.abc import Iterator

from validation.lint.rule import Confidence, Hit, Rule, Scope, Setting, Verdict
from validation.lint.sources import (
    COREAI_BLOCKS,
    CT_BLOCKS,
    CT_PALETTE_SCALE,
    CT_PALETTE_STATE,
    GUIDE_WEIGHTS,
    JR_LESSONS,
    SIZE,
)
from validation.program.contents import Op, Program, Value

LARGEST = 1_000_000_000  # bytes of one weight file
SCALED = ("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize")
FOUR_BITS = 16  # values of a palette
DATA = ("data", "quantized_data")  # iOS18, iOS16


def _compressed(op: Op) -> Iterator[tuple[str, Value, Op]]:
    """(parameter, value, the constexpr op that makes it) for each compressed constant that an op takes."""
    for parameter, values in op.inputs.items():
        for value in values:
            if value.made_by is not None:
                yield parameter, value, value.made_by


def _source(maker: Op) -> Op | None:
    """The constexpr op from whose result another is computed."""
    codes = next((value for name in DATA if (value := maker.value(name)) is not None), None)
    return codes.made_by if codes is not None else None


def _output_axis(op: Op, parameter: str, value: Value) -> int:
    """Which axis of a weight holds the outputs: the last of a matmul's second factor, the first everywhere else."""
    if op.type == "matmul" and parameter == "y" and len(value.shape) > 1:
        return len(value.shape) - (2 if op.flag("transpose_y") else 1)
    return 1 if op.type == "conv_transpose" and len(value.shape) > 1 else 0


def _blocks(op: Op, _: Setting) -> Hit | None:
    for parameter, value, maker in _compressed(op):
        scale = maker.value("scale")
        if maker.type not in SCALED or scale is None:
            continue
        axis, shape = _output_axis(op, parameter, value), scale.shape
        if maker.type == "constexpr_affine_dequantize":
            along = (maker.whole("axis") or (0,))[0] % max(1, len(value.shape))
            shape = tuple(scale.elements if place == along else 1 for place in range(len(value.shape)))
        lengths = [count for place, count in enumerate(shape) if count > 1 and place != axis]
        outputs = shape[axis] if axis < len(shape) else 1
        if lengths or outputs not in (1, value.shape[axis] if axis < len(value.shape) else 1):
            return Hit(f"{parameter} {list(value.shape)} has scales {list(shape)}")
    return None


def _palette_scale(op: Op, _: Setting) -> Hit | None:
    for parameter, _value, maker in _compressed(op):
        inner = _source(maker)
        if maker.type in SCALED and inner is not None and "lut" in inner.type:
            return Hit(f"{parameter}: a palette and a scale for each channel")
    return None


def _palettes(op: Op) -> Iterator[tuple[str, Op]]:
    for parameter, _, maker in _compressed(op):
        for each in (maker, _source(maker)):
            if each is not None and each.type == "constexpr_lut_to_dense":
                yield parameter, each


def _palette_axis(op: Op, _: Setting) -> Hit | None:
    for parameter, maker in _palettes(op):
        table, weight = maker.value("lut"), maker.result
        groups = table.shape[: len(weight.shape)] if table is not None and len(table.shape) > 1 else ()
        wrong = [count for place, count in enumerate(groups) if place and count > 1]
        if wrong:
            return Hit(f"{parameter} {list(weight.shape)} has palettes {list(groups)}")
    return None


def _palette_vector(op: Op, _: Setting) -> Hit | None:
    for parameter, maker in _palettes(op):
        table = maker.value("lut")
        if table is not None and len(table.shape) > 2 and table.shape[-1] > 1:
            return Hit(f"{parameter}: palette entries of {table.shape[-1]} numbers")
    return None


def _palette_state(op: Op, setting: Setting) -> Hit | None:
    if not setting.function.states:
        return None
    for parameter, maker in _palettes(op):
        table = maker.value("lut")
        entries = table.shape[-2 if len(table.shape) > 1 else -1] if table is not None and table.shape else 0
        if entries == FOUR_BITS:
            return Hit(f"{parameter}: a palette of {entries} values beside a state")
    return None


def _offset(op: Op, _: Setting) -> Hit | None:
    for parameter, _value, maker in _compressed(op):
        for name in ("offset", "zero_point"):
            shifts = maker.numbers(name) if maker.type in SCALED else None
            if shifts and any(shifts):
                return Hit(f"{parameter} has offsets")
    return None


def _folded(op: Op, _: Setting) -> Hit | None:
    extra = [(name, value) for name, value, maker in _compressed(op) if maker.type in SCALED]
    if not extra:
        return None
    return Hit(f"{extra[0][0]} is made fp16 before it is read", sum(value.size - value.stored for _, value in extra))


def _size(program: Program, setting: Setting) -> Hit | None:
    if setting.device is not None and setting.device.kind == "mac":
        return None
    if program.weight_bytes <= LARGEST:
        return None
    return Hit(f"{program.weight_bytes:,} bytes of weights, the most is {LARGEST:,}")


RULES = (
    Rule(
        "blocks", "Weights with a scale for each block leave: one for each output or one for all is taken.",
        Verdict.LEAVES, _blocks, (CT_BLOCKS, COREAI_BLOCKS), Confidence.MEASURED,
    ),
    Rule(
        "palette-scale", "A palette with a scale for each channel fails when the engine loads it.", Verdict.LEAVES,
        _palette_scale, (CT_PALETTE_SCALE,), Confidence.MEASURED,
    ),
    Rule(
        "palette-axis", "Palettes for groups of outputs are taken; groups along another axis are not known to be.",
        Verdict.LEAVES, _palette_axis, (GUIDE_WEIGHTS, CT_PALETTE_SCALE), Confidence.UNKNOWN,
    ),
    Rule(
        "package-size", "A weight file of more than 1 GB leaves on a phone or tablet, silently.", Verdict.LEAVES, _size,
        (SIZE, JR_LESSONS), Confidence.APPLE, Scope.PACKAGE,
    ),
    Rule(
        "palette-state", "4-bit palettes beside a state, made by coremltools 9.0, have crashed or given wrong numbers.",
        Verdict.RISKS, _palette_state, (CT_PALETTE_STATE, CT_PALETTE_SCALE), Confidence.MEASURED,
    ),
    Rule(
        "palette-vector", "Palettes whose entries are several numbers: nobody has said whether the engine takes them.",
        Verdict.RISKS, _palette_vector, (GUIDE_WEIGHTS,), Confidence.UNKNOWN,
    ),
    Rule(
        "offsets", "Scales with offsets: symmetric ones are known to be taken, these are not.", Verdict.RISKS, _offset,
        (GUIDE_WEIGHTS,), Confidence.UNKNOWN,
    ),
    Rule(
        "scales-fold", "Scaled weights are made fp16 before they are read: smaller files, no faster reading.",
        Verdict.COSTS, _folded, (GUIDE_WEIGHTS,), Confidence.MEASURED, last="H13",
    ),
)  # fmt: skip
