"""What packages declare, and their labels: every planted difference is found and named, on either kind of package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_builds import Builds, red, tiny
from package_edits import manifest, program

from fastvlm.build import read_build
from validation.audit.findings import CONSTANTS, Findings
from validation.audit.interface import hold_interface
from validation.audit.labels import hold_labels
from validation.pair import Pair

LANGUAGE, ENCODER, APP = "LanguageModel.mlpackage", "VisionEncoder.mlpackage", "fastvithd.mlpackage"
FLOAT32, INT32 = 65568, 131104  # of FeatureTypes.proto
Edit = Callable[[Any], None]


def found(pair: Pair) -> list[str]:
    """Every sentence that these two parts of the audit have to say."""
    findings = Findings()
    hold_interface(pair, findings)
    hold_labels(pair, findings)
    return list(findings.counts.get(CONSTANTS, {}))


def planted(build: Path, package: str, edit: Edit) -> list[str]:
    """The same of a build after an edit of one of its packages."""
    with program(build / package) as spec:
        edit(spec)
    prefix = f"{package}: "
    sentences = found(Pair(read_build(build), tiny()))
    assert all(sentence.startswith(prefix) for sentence in sentences)
    return [sentence.removeprefix(prefix) for sentence in sentences]


def described(spec: Any, name: str) -> Any:
    """A function's description."""
    return next((each for each in spec.description.functions if each.name == name), spec.description)


def of(function: str, role: str, feature: str) -> Callable[[Any], Any]:
    """Finds the type of one input, output or state."""
    return lambda spec: next(each for each in getattr(described(spec, function), role) if each.name == feature).type


def array(find: Callable[[Any], Any], dtype: int | None = None, shape: list[int] | None = None) -> Edit:
    """Declares another type or shape."""

    def edit(spec: Any) -> None:
        kind = find(spec)
        told = kind.stateType.arrayType if kind.WhichOneof("Type") == "stateType" else kind.multiArrayType
        told.dataType = told.dataType if dtype is None else dtype
        told.shape[:] = told.shape if shape is None else shape

    return edit


def optional(find: Callable[[Any], Any]) -> Edit:
    return lambda spec: setattr(find(spec), "isOptional", True)


def pictures_of_any_size(spec: Any) -> None:
    sizes = of("encode_256", "input", "image")(spec).imageType.imageSizeRange
    sizes.widthRange.lowerBound, sizes.widthRange.upperBound = 1, -1


def pixels_of_any_shape(spec: Any) -> None:
    for most in (1, 3, 256, 256):
        of("main", "input", "images")(spec).multiArrayType.shapeRange.sizeRanges.add(lowerBound=1, upperBound=most)


def a_default(spec: Any) -> None:
    of("decode", "input", "position")(spec).multiArrayType.intDefaultValue = 7


def updatable(spec: Any) -> None:
    spec.isUpdatable = True


def version(number: int) -> Edit:
    return lambda spec: setattr(spec, "specificationVersion", number)


def opset(name: str, function: str) -> Edit:
    def edit(spec: Any) -> None:
        held = spec.mlProgram.functions[function]
        held.block_specializations[name].CopyFrom(held.block_specializations[held.opset])
        del held.block_specializations[held.opset]
        held.opset = name

    return edit


def another_specialisation(spec: Any) -> None:
    held = spec.mlProgram.functions["decode"]
    held.block_specializations["CoreML9"].CopyFrom(held.block_specializations[held.opset])


def a_state_more(spec: Any) -> None:
    state = described(spec, "main").state.add(name="foo")
    state.type.stateType.arrayType.shape.append(1)
    state.type.stateType.arrayType.dataType = FLOAT32


def no_state(spec: Any) -> None:
    del described(spec, "prefill").state[:]


def named_function(spec: Any) -> None:
    """A package for iOS 16 that names its one function, which no iOS 16 reads."""
    function = spec.description.functions.add(name="main")
    function.input.extend(spec.description.input)
    function.output.extend(spec.description.output)
    spec.description.defaultFunctionName = "main"


def inputs_outside(spec: Any) -> None:
    spec.description.input.extend(described(spec, "decode").input)


DESCRIBED = [
    (LANGUAGE, array(of("decode", "output", "logits"), FLOAT32), "decode gives logits, a tensor float32 [1, 1, 576]"),
    (LANGUAGE, array(of("decode", "input", "position"), FLOAT32), "decode takes position, a tensor float32 [1], exp"),
    (LANGUAGE, array(of("decode", "state", "kvCache"), shape=[4, 2, 32, 2048]), "decode keeps kvCache, a state floa"),
    (LANGUAGE, array(of("prefill", "input", "inputsEmbeds"), shape=[1, 32, 192]), "prefill takes inputsEmbeds, a te"),
    (LANGUAGE, array(of("prefill", "output", "done"), shape=[1, 1, 3]), "prefill gives done, a tensor float16 [1, 1"),
    (LANGUAGE, lambda spec: setattr(spec.description, "defaultFunctionName", "prefill"), "its default function is p"),
    (LANGUAGE, a_default, "decode: position declares multiArrayType.intDefaultValue, expected no such thing"),
    (LANGUAGE, no_state, "prefill keeps nothing, expected kvCache, a state float16 [8, 2, 32, 2048]"),
    (LANGUAGE, version(10), "it is made for iOS 26, expected iOS 18, macOS 15"),
    (LANGUAGE, updatable, "it declares isUpdatable, expected no such thing"),
    (LANGUAGE, opset("CoreML9", "decode"), "decode is a program of CoreML9, expected CoreML8"),
    (LANGUAGE, another_specialisation, "decode is a program of CoreML8, CoreML9, expected CoreML8"),
    (LANGUAGE, inputs_outside, "it declares input, expected no such thing of iOS 18, macOS 15"),
    (ENCODER, pictures_of_any_size, "encode_256: image declares imageType.imageSizeRange."),
    (ENCODER, optional(of("encode_256", "input", "image")), "encode_256: image declares isOptional, expected no suc"),
    (ENCODER, lambda spec: setattr(spec.description, "defaultFunctionName", ""), "its default function is main, exp"),
    (ENCODER, lambda spec: setattr(described(spec, "encode_256"), "predictedFeatureName", "x"), "encode_256 declare"),
    (APP, pixels_of_any_shape, "main: images declares multiArrayType.shapeRange.sizeRanges, expected no such thing"),
    (APP, optional(of("main", "input", "images")), "main: images declares isOptional, expected no such thing"),
    (APP, updatable, "it declares isUpdatable, expected no such thing"),
    (APP, lambda spec: setattr(spec.description, "predictedFeatureName", "x"), "it declares predictedFeatureName, e"),
    (APP, a_state_more, "main keeps foo, a state float32 [1], expected nothing"),
    (APP, named_function, "it declares functions, expected no such thing of iOS 16, macOS 13"),
    (APP, opset("CoreML7", "main"), "main is a program of CoreML7, expected CoreML6"),
]  # fmt: skip
LABELS = [
    (lambda spec: setattr(spec.description.metadata, "license", "MIT"), ["licence is MIT, expected apache-2.0"]),
    (lambda spec: spec.description.metadata.userDefined.pop("fastvlm.source"), ["fastvlm.source is None, expected"]),
    (
        lambda spec: spec.description.metadata.userDefined.update({"fastvlm.contract": '{"main": {}}'}),
        ["fastvlm.contract."],
    ),
    (
        lambda spec: spec.description.metadata.Clear(),
        ["licence is empty", "version is empty", "fastvlm.version is", "fastvlm.source is", "fastvlm.contract is"],
    ),
]  # fmt: skip


@pytest.fixture
def build_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The build that holds a package, which this test may damage."""
    return lambda package: request.getfixturevalue("app_build" if package == APP else "tiny_build")


@pytest.mark.parametrize(("package", "edit", "says"), DESCRIBED, ids=range(len(DESCRIBED)))
def test_a_description_that_says_otherwise(
    build_of: Callable[[str], Path], package: str, edit: Edit, says: str
) -> None:
    sentences = planted(build_of(package), package, edit)
    assert sentences
    assert sentences[0].startswith(says), sentences


@pytest.mark.parametrize("package", [LANGUAGE, ENCODER, APP])
@pytest.mark.parametrize(("edit", "says"), LABELS, ids=range(len(LABELS)))
def test_a_label_that_says_otherwise(
    build_of: Callable[[str], Path], package: str, edit: Edit, says: list[str]
) -> None:
    sentences = planted(build_of(package), package, edit)
    assert len(sentences) >= len(says)
    for sentence, begin in zip(sentences, says, strict=False):
        assert sentence.startswith(f"its label {begin}"), sentences


def test_it_is_a_row_of_the_audit(tiny_build: Path) -> None:
    with program(tiny_build / LANGUAGE) as spec:
        updatable(spec)
        spec.description.metadata.license = "MIT"
    ((key, subject),) = red(Pair(read_build(tiny_build), tiny())).items()
    assert (key, subject) == (CONSTANTS, f"{LANGUAGE}: it declares isUpdatable, expected no such thing")


def test_an_older_build_may_lack_labels(tiny_build: Path) -> None:
    for package in (LANGUAGE, ENCODER):
        with program(tiny_build / package) as spec:
            spec.description.metadata.Clear()
    with manifest(tiny_build) as content:
        content["schema"] = "0.2"
    assert found(Pair(read_build(tiny_build), tiny())) == []
    with program(tiny_build / LANGUAGE) as spec:
        spec.description.metadata.license = "MIT"
    assert found(Pair(read_build(tiny_build), tiny())) == [f"{LANGUAGE}: its label licence is MIT, expected apache-2.0"]


def test_sentences_for_people_may_read_otherwise(tiny_build: Path) -> None:
    def reworded(spec: Any) -> None:
        spec.description.metadata.shortDescription = "A model."
        for function in spec.description.functions:
            function.input[0].shortDescription = "Rows."

    assert planted(tiny_build, LANGUAGE, reworded) == []


@pytest.mark.parametrize("name", ["chain", "gpu", pytest.param("bare", marks=pytest.mark.long)])
def test_no_false_alarm(builds: Builds, name: str) -> None:
    assert found(builds.pair(name)) == []
