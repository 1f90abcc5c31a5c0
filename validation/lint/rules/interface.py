"""Rules on the edge of a program: what it takes and gives, and which system it asks for.

An image input of Core ML arrives as float32 pixels: one `mul` scales them, one `cast` makes them fp16. A float32
tensor input or output has a cast of its own. Core ML does that around the engine, so it is the price of the interface,
counted apart: neither resident nor an exit.
"""

from __future__ import annotations

from validation.lint.rule import Confidence, Hit, Rule, Scope, Setting, Verdict
from validation.lint.sources import CONTRACT, CT_ENUMERATED, CT_FLEXIBLE, GUIDE_PITFALLS, JR_GUIDE
from validation.program.contents import Function, Op, Program, Value

SCALING = ("mul", "add", "sub", "real_div")
# specificationVersion of Model.proto -> iOS, macOS that load it (coremltools, `_SPECIFICATION_VERSION_IOS_*`)
SYSTEMS = {6: (15, 12), 7: (16, 13), 8: (17, 14), 9: (18, 15), 10: (26, 26)}


def is_edge(op: Op, setting: Setting) -> bool:
    """Whether an op is work at an input or output that the interface asks for."""
    return _image_scaling(op, setting) is not None or _io_cast(op, setting) is not None


def _moving(op: Op) -> Value | None:
    """The one value that the op takes that is no constant, None where there are several or none."""
    values = [value for value in op.values if not value.fixed]
    return values[0] if len(values) == 1 else None


def _from_image(value: Value, function: Function, depth: int = 4) -> bool:
    """Whether a value is an image input, or one that nothing but constants were applied to."""
    if value.origin == "input":
        feature = function.features.get(value.name)
        return feature is not None and feature.image is not None
    maker = function.makers.get(value.name)
    if not depth or maker is None or maker.type not in SCALING:
        return False
    source = _moving(maker)
    return source is not None and _from_image(source, function, depth - 1)


def _is_wide(value: Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.name == "fp32"


def _image_scaling(op: Op, setting: Setting) -> Hit | None:
    source = _moving(op)
    if op.type not in (*SCALING, "cast") or source is None or not _is_wide(source):
        return None
    return Hit(f"{op.type} of {source.type}") if _from_image(source, setting.function) else None


def _io_cast(op: Op, setting: Setting) -> Hit | None:
    if op.type != "cast":
        return None
    source, result = op.need("x"), op.result
    if source.origin == "input" and result.dtype and result.dtype.name == "fp16":
        return Hit(f"input {source.name}: {source.type} to fp16")
    narrow = source.dtype is not None and source.dtype.name == "fp16"
    if narrow and setting.function.returns(result) and not setting.function.readers.get(result.name):
        return Hit(f"output {result.name}: fp16 to {result.type}")
    return None


def _range(function: Function, _: Setting) -> Hit | None:
    for name, feature in function.features.items():
        image = feature.image.ranges if feature.image else ()
        if any(high != low for low, high in (*feature.ranges, *image)):
            return Hit(f"input {name} has a range of sizes")
    return None


def _enumerated(function: Function, _: Setting) -> Hit | None:
    for name, feature in function.features.items():
        count = len(feature.shapes) + (len(feature.image.sizes) if feature.image else 0)
        if count > 1:
            return Hit(f"input {name} has {count} sizes")
    return None


def _target(program: Program, setting: Setting) -> Hit | None:
    device = setting.device
    if device is None or device.last_os is None or program.version not in SYSTEMS:
        return None
    asked = SYSTEMS[program.version][device.kind == "mac"]
    if asked <= device.last_os:
        return None
    return Hit(f"the package asks for {device.system} {asked}, {device.name} ends at {device.last_os}")


RULES = (
    Rule(
        "image-scaling", "An image input is scaled in float32 and cast to fp16: one `mul`, one `cast`.", Verdict.EDGE,
        _image_scaling, (CONTRACT,), Confidence.MEASURED,
    ),
    Rule(
        "io-cast", "A float32 input or output is cast from or to fp16 at the edge: the price of that interface.",
        Verdict.EDGE, _io_cast, (CONTRACT, JR_GUIDE), Confidence.MEASURED,
    ),
    Rule(
        "flexible-range", "A function with a range of input sizes leaves: the engine compiles one size.",
        Verdict.LEAVES, _range, (CT_FLEXIBLE, GUIDE_PITFALLS), Confidence.MEASURED, Scope.FUNCTION,
    ),
    Rule(
        "flexible-enumerated", "Several enumerated input sizes stay for the default one and have left for others.",
        Verdict.RISKS, _enumerated, (CT_FLEXIBLE, CT_ENUMERATED), Confidence.DISPUTED, Scope.FUNCTION,
    ),
    Rule(
        "system", "A package that asks for a newer system than the device ends at does not load.", Verdict.LEAVES,
        _target, (CONTRACT,), Confidence.APPLE, Scope.PACKAGE,
    ),
)  # fmt: skip
