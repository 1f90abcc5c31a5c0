"""What the encoder's package declares to whoever loads it: system, functions, names and types of inputs and results.

Core ML makes arrays and Xcode makes a Swift class by the description, not by the program. Apple's sample app stops at a
result that is no float32, and finds `fastvithd.prediction(images:)` by these names alone.
The picture of an image input is held by `validation.audit.encoder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from validation.audit.findings import CONSTANTS, Findings
from validation.contents import Feature, FunctionContents, PackageContents, describe_package
from validation.pair import Pair


def hold_interface(pair: Pair, findings: Findings) -> None:
    """Counts what the encoder's package declares otherwise than its form has it; PackageError for a damaged one."""
    if pair.build.encoder is None:
        return
    package, form = describe_package(pair.build.encoder), pair.form
    sides = {form.function(side): side for side in pair.build.image_sizes}
    findings.look(CONSTANTS, 2 * len(sides) + 2)
    for words in _differences(pair, package, sides):
        findings.count(CONSTANTS, f"{package.name}: {words}")


def _differences(pair: Pair, package: PackageContents, sides: dict[str, int]) -> Iterator[str]:
    if package.target != pair.form.system:
        yield f"it is made for {package.target}, expected {pair.form.system}"
    if package.default_function != next(iter(sides)):
        yield f"its default function is {package.default_function}, expected {next(iter(sides))}"
    for function in package.functions:
        if function.name in sides:  # another is unexplained as a whole
            yield from _ends(pair, function, sides[function.name])


def _ends(pair: Pair, function: FunctionContents, side: int) -> Iterator[str]:
    form, model = pair.form, pair.model
    result = (form.gives, "tensor", (1, model.config.vision.tokens_at(side), form.width(model)), form.dtype)
    yield from _held(f"{function.name} gives", function.outputs, result)
    if not form.picture:
        yield from _held(
            f"{function.name} takes", function.inputs, (form.takes, "tensor", (1, 3, side, side), "float32")
        )


def _held(what: str, found: Sequence[Feature], wanted: tuple[str, str, tuple[int, ...], str]) -> Iterator[str]:
    told = [(each.name, each.kind, each.shape, each.dtype) for each in found]
    if told != [wanted]:
        yield f"{what} {'; '.join(map(_words, told)) or 'nothing'}, expected {_words(wanted)}"


def _words(feature: tuple[str, str, tuple[int, ...], str]) -> str:
    name, kind, shape, dtype = feature
    return f"{name}, a {kind} {dtype} {list(shape)}"
