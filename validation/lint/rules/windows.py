"""Rules on convolutions, pools, padding, and products that could be convolutions."""

from __future__ import annotations

from validation.lint.rule import Confidence, Hit, Rule, Setting, Verdict
from validation.lint.rules.shapes import of_parts
from validation.lint.sources import (
    APPLE_TRANSFORMERS,
    COREAI_IOS,
    COREAI_QUOTED,
    CT_STRIDE,
    GUIDE_PITFALLS,
    GUIDE_RULES,
    GUIDE_SURFACE,
    ORION,
    POOL,
)
from validation.program.contents import Op

CONVOLUTIONS = ("conv", "conv_transpose")
POOLS = ("avg_pool", "max_pool", "l2_pool")
POOL_WINDOW, POOL_STRIDE = 13, 2
CONV_HEIGHT = 29
ORION_CHANNELS = 32_768


def _kernel(op: Op) -> tuple[int, ...]:
    weight = op.value("weight")
    return weight.shape[2:] if weight is not None else ()


def _conv_kernel(op: Op, setting: Setting) -> Hit | None:
    sides = _kernel(op) if op.type in CONVOLUTIONS else ()
    if not sides:
        return None
    widest, highest = setting.engine.kernel_width, CONV_HEIGHT
    if sides[-1] > widest:
        return Hit(f"kernel {list(sides)}, the widest is {widest} ({setting.engine.name})")
    return Hit(f"kernel {list(sides)}, the highest is {highest}") if len(sides) > 1 and sides[-2] > highest else None


def _factors(op: Op, parameter: str) -> Hit | None:
    if op.type not in CONVOLUTIONS:
        return None
    wrong = [count for count in op.whole(parameter) or () if not of_parts(count)]
    return Hit(f"{parameter} {list(op.whole(parameter) or ())}") if wrong else None


def _conv_stride(op: Op, _: Setting) -> Hit | None:
    return _factors(op, "strides")


def _conv_dilation(op: Op, _: Setting) -> Hit | None:
    return _factors(op, "dilations")


def _palette_stride(op: Op, _: Setting) -> Hit | None:
    weight = op.value("weight")
    if op.type not in CONVOLUTIONS or weight is None or weight.made_by is None or "lut" not in weight.made_by.type:
        return None
    strides = op.whole("strides") or ()
    return Hit(f"strides {list(strides)} with a palette") if any(count > 2 for count in strides) else None


def _conv_3d(op: Op, _: Setting) -> Hit | None:
    sides = _kernel(op) if op.type in CONVOLUTIONS else ()
    return Hit(f"kernel {list(sides)}") if len(sides) > 2 else None


def _conv_weight(op: Op, _: Setting) -> Hit | None:
    weight = op.value("weight")
    if op.type not in CONVOLUTIONS or weight is None or weight.fixed:
        return None
    batch = op.result.shape[0] if op.result.shape else 1
    return Hit(f"a computed weight at batch {batch}") if batch > 1 else None


def _conv_channels(op: Op, _: Setting) -> Hit | None:
    if op.type not in CONVOLUTIONS or (weight := op.value("weight")) is None:
        return None
    most = max(weight.shape[:2], default=0)
    return Hit(f"{most:,} channels") if most >= ORION_CHANNELS else None


def _pool_window(op: Op, _: Setting) -> Hit | None:
    sides = op.whole("kernel_sizes") or () if op.type in POOLS else ()
    return Hit(f"window {list(sides)}, the most is {POOL_WINDOW}") if any(n > POOL_WINDOW for n in sides) else None


def _pool_stride(op: Op, _: Setting) -> Hit | None:
    strides = op.whole("strides") or () if op.type in POOLS else ()
    return Hit(f"strides {list(strides)}, the most is {POOL_STRIDE}") if any(n > POOL_STRIDE for n in strides) else None


def _pad_axis(op: Op, _: Setting) -> Hit | None:
    pad = op.whole("pad") if op.type == "pad" else None
    if not pad:
        return None
    rank = len(op.need("x").shape)
    first = rank - len(pad) // 2  # amounts are given for the last axes, two each
    padded = [first + place // 2 for place, amount in enumerate(pad) if amount]
    return Hit(f"pads axis {padded[0]} of {rank}") if rank > 2 and padded and padded[0] < rank - 2 else None


def _pad_mode(op: Op, _: Setting) -> Hit | None:
    mode = op.text("mode") if op.type == "pad" else None
    return Hit(f"mode {mode}") if mode in ("reflect", "symmetric") else None


def _linear(op: Op, _: Setting) -> Hit | None:
    if op.type == "linear":
        return Hit(f"linear {list(op.need('weight').shape)}")
    other = op.value("y") if op.type == "matmul" else None
    return Hit(f"matmul with a constant of {list(other.shape)}") if other is not None and other.fixed else None


RULES = (
    Rule(
        "conv-kernel", "A convolution kernel wider than 13 (15 from H16) or higher than 29 leaves.", Verdict.LEAVES,
        _conv_kernel, (GUIDE_RULES, GUIDE_SURFACE), Confidence.MEASURED,
    ),
    Rule(
        "conv-stride", "A stride with another prime factor than 2 and 3 leaves.", Verdict.LEAVES, _conv_stride,
        (COREAI_QUOTED, CT_STRIDE), Confidence.APPLE,
    ),
    Rule(
        "conv-dilation", "A dilation with another prime factor than 2 and 3 leaves.", Verdict.LEAVES, _conv_dilation,
        (COREAI_QUOTED,), Confidence.APPLE,
    ),
    Rule(
        "conv-3d", "A convolution over three axes leaves: its compiler lists it and no device lowers it.",
        Verdict.LEAVES, _conv_3d, (GUIDE_SURFACE,), Confidence.MEASURED,
    ),
    Rule(
        "conv-weight", "A convolution whose weight is computed leaves at a batch above 1.", Verdict.LEAVES,
        _conv_weight, (GUIDE_PITFALLS,), Confidence.MEASURED,
    ),
    Rule(
        "conv-channels", "A convolution of 32,768 channels or more leaves.", Verdict.LEAVES, _conv_channels, (ORION,),
        Confidence.REPORTED,
    ),
    Rule(
        "palette-stride", "A convolution with palette weights leaves at a stride above 2.", Verdict.LEAVES,
        _palette_stride, (COREAI_QUOTED,), Confidence.APPLE,
    ),
    Rule(
        "pool-window", "A pooling window wider than 13 leaves; a mean over the axes (`reduce_mean`) does not.",
        Verdict.LEAVES, _pool_window, (POOL, GUIDE_RULES), Confidence.DISPUTED,
    ),
    Rule(
        "pool-stride", "A pooling stride above 2 leaves.", Verdict.LEAVES, _pool_stride, (POOL,), Confidence.REPORTED,
    ),
    Rule(
        "pad-axis", "Padding another axis than the last two leaves.", Verdict.LEAVES, _pad_axis, (GUIDE_RULES,),
        Confidence.READ,
    ),
    Rule(
        "pad-mode", "Reflecting and symmetric padding need the texture engine.", Verdict.LEAVES, _pad_mode,
        (GUIDE_RULES,), Confidence.READ, last="H13",
    ),
    Rule(
        "linear", "A product with a constant is fastest as a 1×1 convolution: up to 3 times a matrix product's speed.",
        Verdict.COSTS, _linear, (APPLE_TRANSFORMERS, COREAI_IOS, ORION), Confidence.APPLE,
    ),
)  # fmt: skip
