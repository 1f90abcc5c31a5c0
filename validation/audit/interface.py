"""What a package declares to whoever loads it: system, functions, and every name, type and flag of what they take.

Core ML makes arrays and states, and Xcode a Swift class, by the description, not by the program. Apple's sample app
stops at a result that is no float32, and finds `fastvithd.prediction(images:)` by these names alone. A description that
says more than the contract (a range of sizes, an optional input, a default) is another promise, so all of it is held.
The encoder's ends are held to its form too (`validation.encoder_form`), which is stated apart from the contract.
Sentences for people are not held, nor what the program does; labels are `validation.audit.labels`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.contract import IOS16, IOS18, FunctionSpec, TensorSpec, encoder_functions, language_functions
from validation.audit.findings import CONSTANTS, Findings
from validation.audit.told import other_chain
from validation.contents import Feature, FunctionContents, PackageContents, describe_package
from validation.encoder_form import OWN
from validation.mil.package import open_folder
from validation.mil.schema import proto
from validation.pair import Pair

OPSETS = {IOS16: "CoreML6", IOS18: "CoreML8"}  # the programs of these systems (MIL.proto)
TOLD_ALONE = (
    "functions",
    "input",
    "output",
    "state",
    "metadata",
    "defaultFunctionName",
)  # the rest says something else
ENDS = (("takes", "inputs"), ("gives", "outputs"), ("keeps", "states"))
Told = tuple[str, str, tuple[int, ...], str]  # name, kind, shape, dtype


@dataclass(frozen=True)
class Contract:
    """One package and the functions that it should declare; `default` is called where a host names none."""

    package: Path
    specs: tuple[FunctionSpec, ...]
    default: str
    system: str

    @property
    def alone(self) -> bool:
        """Whether its one function is the package itself, without a name."""
        return any(spec.alone for spec in self.specs)


def hold_interface(pair: Pair, findings: Findings) -> None:
    """Counts what packages declare otherwise than their contract has it; PackageError for a damaged one."""
    for contract in contracts(pair):
        package, model = describe_package(contract.package), open_folder(contract.package).spec
        findings.look(CONSTANTS, 2 * len(contract.specs) + 2)
        for words in _differences(pair, contract, package, model):
            findings.count(CONSTANTS, f"{package.name}: {words}")


def contracts(pair: Pair) -> Iterator[Contract]:
    """Gives every package of the build with its contract; none for a chain that is not the checkpoint's."""
    build, config = pair.build, pair.model.config
    if build.encoder is not None:
        specs = encoder_functions(config.vision, config.text.hidden_size, pair.plan)
        yield Contract(build.encoder, specs, specs[0].name, pair.form.system)
    if not build.language or other_chain(pair):
        return
    for stage, chunk in zip(build.language, pair.chunks, strict=True):
        specs = language_functions(config.text, pair.plan, chunk, pair.split)
        yield Contract(stage.package, specs, "decode", OWN.system)


def _differences(pair: Pair, contract: Contract, package: PackageContents, model: Any) -> Iterator[str]:
    if package.target != contract.system:
        yield f"it is made for {package.target}, expected {contract.system}"
    if package.default_function != contract.default:
        yield f"its default function is {package.default_function}, expected {contract.default}"
    yield from _more(model, contract)
    declared = {function.name: function for function in package.functions}
    for spec in contract.specs:  # one that is missing, or another, is unexplained as a whole
        if spec.name in declared:
            yield from _function(pair, contract, declared[spec.name], spec, model)


def _function(
    pair: Pair, contract: Contract, function: FunctionContents, spec: FunctionSpec, model: Any
) -> Iterator[str]:
    held = model.mlProgram.functions[spec.name].block_specializations
    if (opset := OPSETS[spec.system]) != function.opset or list(held) != [opset]:
        yield f"{spec.name} is a program of {', '.join(sorted({function.opset, *held}))}, expected {opset}"
    by_form = list(_form_ends(pair, function, spec)) if contract.package == pair.build.encoder else []
    yield from by_form or _ends(function, spec)
    named = {each.name: each for each in model.description.functions}
    described = named.get(spec.name, model.description)
    yield from _flags(described, spec)
    if described is not model.description:
        for name in _besides(described, ("name", "input", "output", "state")):
            yield f"{spec.name} declares {name}, expected no such thing"


def _more(model: Any, contract: Contract) -> Iterator[str]:
    """What the model or its description says besides what a contract speaks of."""
    for name in _besides(model, ("specificationVersion", "description", "mlProgram")):
        yield f"it declares {name}, expected no such thing"
    unfit = ("functions", "defaultFunctionName") if contract.alone else ("input", "output", "state")
    for name in _besides(model.description, tuple(name for name in TOLD_ALONE if name not in unfit)):
        yield f"it declares {name}, expected no such thing of {contract.system}"


def _besides(message: Any, known: Sequence[str]) -> Iterator[str]:
    """The names of a message's fields that are set and not among `known`."""
    rest = type(message)()
    rest.CopyFrom(message)
    for name in known:
        rest.ClearField(name)
    names = [field.name for field, _ in rest.ListFields()]
    yield from names or (["a field that coremltools does not know"] if rest.ByteSize() else [])


def _ends(function: FunctionContents, spec: FunctionSpec) -> Iterator[str]:
    wanted = (spec.inputs, spec.outputs, (spec.state,) if spec.state else ())
    for (verb, role), tensors in zip(ENDS, wanted, strict=True):
        state = role == "states"
        yield from _held(f"{function.name} {verb}", getattr(function, role), [_told(each, state) for each in tensors])


def _form_ends(pair: Pair, function: FunctionContents, spec: FunctionSpec) -> Iterator[str]:
    """The ends of an encoder by its form; the picture of an image input is held by `validation.audit.encoder`."""
    form, model, side = pair.form, pair.model, spec.inputs[0].shape[-1]
    result = (form.gives, "tensor", (1, model.config.vision.tokens_at(side), form.width(model)), form.dtype)
    yield from _held(f"{function.name} gives", function.outputs, [result])
    if not form.picture:
        taken = (form.takes, "tensor", (1, 3, side, side), "float32")
        yield from _held(f"{function.name} takes", function.inputs, [taken])


def _told(tensor: TensorSpec, state: bool = False) -> Told:
    """How a package declares a tensor of the contract."""
    if tensor.kind == "image":
        return tensor.name, "image", tensor.shape[-2:], "RGB"
    return tensor.name, "state" if state else "tensor", tensor.shape, tensor.dtype


def _held(what: str, found: Sequence[Feature], wanted: Sequence[Told]) -> Iterator[str]:
    told = [(each.name, each.kind, each.shape, each.dtype) for each in found]
    if [each[0] for each in told] != [each[0] for each in wanted]:
        yield f"{what} {_listed(told)}, expected {_listed(wanted)}"
        return
    for mine, theirs in zip(told, wanted, strict=True):
        if mine != theirs:
            yield f"{what} {_words(mine)}, expected {_words(theirs)}"


def _listed(features: Sequence[Told]) -> str:
    return "; ".join(map(_words, features)) or "nothing"


def _words(feature: Told) -> str:
    name, kind, shape, dtype = feature
    return f"{name}, a {kind} {dtype} {list(shape)}"


def _flags(described: Any, spec: FunctionSpec) -> Iterator[str]:
    """What is said of an input, output or state besides its type: it is optional, has a range of sizes, a default."""
    states = (spec.state,) if spec.state else ()
    for tensors, features in (
        (spec.inputs, described.input),
        (spec.outputs, described.output),
        (states, described.state),
    ):
        wanted = {tensor.name: _feature_type(tensor, tensor in states) for tensor in tensors}
        for feature in features:
            if feature.name not in wanted:
                continue  # told by its name
            for path in _paths(feature.type, wanted[feature.name]):
                if path.rpartition(".")[2] not in ("shape", "dataType", "width", "height", "colorSpace"):
                    yield f"{spec.name}: {feature.name} declares {path}, expected no such thing"


def _feature_type(tensor: TensorSpec, state: bool) -> Any:
    """The type that an export declares, as Core ML's protobuf has it."""
    types = proto("FeatureTypes")
    made = types.FeatureType()
    if tensor.kind == "image":
        made.imageType.height, made.imageType.width = tensor.shape[-2:]
        made.imageType.colorSpace = types.ImageFeatureType.RGB
        return made
    array = made.stateType.arrayType if state else made.multiArrayType
    array.shape.extend(tensor.shape)
    array.dataType = types.ArrayFeatureType.ArrayDataType.Value(tensor.dtype.upper())
    return made


def _paths(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """The fields in which two messages of one type differ, by dotted names."""
    if found == wanted:
        return
    names = sorted({field.name for message in (found, wanted) for field, _ in message.ListFields()})
    inner: list[str] = []
    for name in names:
        one, other = getattr(found, name), getattr(wanted, name)
        whole = f"{path}.{name}" if path else name
        if one != other:
            inner += list(_paths(one, other, whole)) if hasattr(one, "ListFields") else [whole]
    yield from inner or [path or "another type"]
