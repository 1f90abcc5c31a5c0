"""`validate` on the encoder for Apple's sample app: good against the reference's tower, and red for what is planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_builds import audited, every_exponent, red, tiny
from package_edits import edit_constant, find, manifest, operations, program, set_argument
from row_faults import reseal

from export.api import export_model
from export.contract import app_function
from export.package import Labels, write_package
from export.vision import converted_encoder
from fastvlm.build import APPLE_APP, read_build
from fastvlm.errors import BuildError, UsageError
from fastvlm.manifest import holds_build_alone
from validation import open_session, validate
from validation.blocks import compare_blocks
from validation.expected_time import seconds_of
from validation.limits import LIMITS
from validation.pair import Pair
from validation.rungs import excused, lower_rungs

pytestmark = pytest.mark.usefixtures("one_thread")

PACKAGE = "fastvithd.mlpackage"
WEIGHTS, CONSTANTS, UNEXPLAINED = "audit.differing_weights", "audit.differing_constants", "audit.unexplained"
MEASURED = {
    *("audit.differing_weights", "audit.differing_constants", "audit.unexplained"),
    *("op.weights_db", "op.plain_db", "op.unmatched", "op.uncovered", "encoder_blocks.snr_loss_db", "blocks.unmatched"),
    *("encoder.psnr_db", "encoder.snr_loss_db", "encoder.cosine_loss_db", "encoder.worst_token_loss_db"),
    *("encoder.peak", "manifest.differing_fields", "preprocess.differing_bytes"),
}
FLOAT16, FLOAT32 = 65552, 65568  # of FeatureTypes.proto
ROOT_OF_EPS = float(np.float16(1e-5**0.5))


def edited(build: Path, edit: Callable[[Path], None]) -> Pair:
    """The build, which an edit changes, with its checkpoint."""
    edit(build / PACKAGE)
    return Pair(read_build(build), tiny())


@pytest.fixture(scope="module")
def validated(exported_app: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A copy of the build with its verdict."""
    build = Path(shutil.copytree(exported_app, tmp_path_factory.mktemp("validated") / "app"))
    return build, validate(build)


def test_it_passes_every_row_that_an_encoder_alone_has(validated: tuple[Path, Any]) -> None:
    build, verdict = validated
    assert verdict.passed, [f"{row.limit.key} = {row.value}" for row in verdict.rows if not row.passed]
    assert {row.limit.key for row in verdict.rows} == MEASURED
    assert (
        set(verdict.not_measured) == LIMITS.keys() - MEASURED == excused(Pair(read_build(build), tiny()), "mil", False)
    )
    assert verdict.lacking == ()
    assert json.loads((build / "validation.json").read_text())["verdict"] == "passed"
    assert not (build / "selftest").exists(), "nothing here could answer"
    assert holds_build_alone(build)


def test_it_is_compared_with_the_tower_alone(validated: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny()), "encode_image", lambda self, pixels: pytest.fail("the projector was run"))
    validate(validated[0])


def test_exponents_are_followed_to_the_features(tmp_path: Path) -> None:
    """All of them but the projector's, neighbours different; rungs constants, ops and blocks."""
    sites = {name: exponent for name, exponent in every_exponent().encoder.items() if not name.startswith("projector")}
    build = export_model(
        tiny(), tmp_path / "app", purpose=APPLE_APP, protection=replace(every_exponent(), encoder=sites)
    )
    pair = Pair(read_build(build), tiny())
    assert sites["conv_exp"] != 0
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with torch.no_grad():
        rows = [*lower_rungs(pair), *compare_blocks(pair, [picture], None).measurements]
    assert [f"{row.limit.key}: {row.subject}" for row in rows if not row.passed] == []
    assert UNEXPLAINED in red(edited(build, without_the_last_power))


def without_the_last_power(package: Path) -> None:
    """The features stay as they are stored: the last `mul` is passed by."""
    with program(package) as spec:
        last = find(spec, "main", "reshape", -1)
        power = find(spec, "main", "mul", -1)
        assert power.outputs[0].name == last.inputs["x"].arguments[0].name
        last.inputs["x"].arguments[0].name = power.inputs["x"].arguments[0].name


def one_sign(package: Path) -> None:
    def flip(numbers: np.ndarray) -> None:
        numbers[5, 7] ^= 0x8000

    edit_constant(package, "main", "network_4_0_convffn_fc1_weight_to_fp16", flip)


def eps(package: Path) -> None:
    """The first norm has √1e-6 where √1e-5 belongs."""
    with program(package) as spec:
        rooted = next(
            op for op in operations(spec, "main") if op.type == "mul" and constant_of(spec, op) == ROOT_OF_EPS
        )
        set_argument(spec, "main", rooted, "y", 1e-3)


def constant_of(spec: Any, op: Any) -> float | None:
    """The number that an op reads as y, None where that is computed or stored elsewhere."""
    name = op.inputs["y"].arguments[0].name
    made = next(
        (each for each in operations(spec, "main") if each.type == "const" and each.outputs[0].name == name), None
    )
    stored = made.attributes["val"].immediateValue.tensor.bytes.values if made is not None else b""
    return float(np.frombuffer(stored, np.float16)[0]) if len(stored) == 2 else None


def bytes_for_pixels(package: Path) -> None:
    """The first convolution is given pixels · 255, as towers take them that divide by themselves."""
    with program(package) as spec:
        cast = find(spec, "main", "cast")
        name = cast.outputs[0].name
        scaled = find(spec, "main", "mul")
        made = type(scaled)()
        made.CopyFrom(scaled)
        made.outputs[0].CopyFrom(cast.outputs[0])
        made.outputs[0].name = "scaled"
        made.inputs["x"].arguments[0].name = name
        made.inputs["y"].arguments[0].CopyFrom(type(made.inputs["y"].arguments[0])())
        value = made.inputs["y"].arguments[0].value
        value.type.tensorType.dataType = 10
        value.immediateValue.tensor.bytes.values = np.float16(255).tobytes()
        ops = operations(spec, "main")
        for op in ops:
            if op.type == "conv" and op.inputs["x"].arguments[0].name == name:
                op.inputs["x"].arguments[0].name = "scaled"
        ops.insert(list(ops).index(cast) + 1, made)


def half_result(package: Path) -> None:
    """The description says fp16: the app's precondition on the type would stop it."""
    with program(package) as spec:
        spec.description.output[0].type.multiArrayType.dataType = FLOAT16


def other_shape(package: Path) -> None:
    with program(package) as spec:
        spec.description.output[0].type.multiArrayType.shape[:] = [1, 512, 16]


def newer_system(package: Path) -> None:
    with program(package) as spec:
        spec.specificationVersion = 8


def approximate_gelu(package: Path) -> None:
    with program(package) as spec:
        set_argument(spec, "main", find(spec, "main", "gelu", -1), "mode", "TANH_APPROXIMATION")


FAULTS = [
    (one_sign, {WEIGHTS: "network_4_0_convffn_fc1_weight_to_fp16 [5, 7, 0, 0] is "}),
    (eps, {CONSTANTS: "y is 0.0010004, expected 0.0031624"}),
    (bytes_for_pixels, {UNEXPLAINED: "x is scaled, expected cast_0"}),
    (half_result, {CONSTANTS: "main gives image_features, a tensor float16 [1, 16, 512], expected image_features, a"}),
    (other_shape, {CONSTANTS: "a tensor float32 [1, 512, 16], expected image_features, a tensor float32 [1, 16, 512]"}),
    (newer_system, {CONSTANTS: "it is made for iOS 17, macOS 14, expected iOS 16, macOS 13"}),
    (approximate_gelu, {CONSTANTS: "mode is 'TANH_APPROXIMATION', expected 'EXACT'"}),
]


@pytest.mark.parametrize(("fault", "told"), FAULTS, ids=[row[0].__name__ for row in FAULTS])
def test_a_planted_fault_is_found_by_the_audit(app_build: Path, fault: Any, told: dict[str, str]) -> None:
    found = red(edited(app_build, fault))
    print(found)
    assert found.keys() == told.keys()
    assert [key for key, words in told.items() if words not in found[key]] == []


def test_our_own_encoder_s_description_is_held_too(tiny_build: Path) -> None:
    with program(tiny_build / "VisionEncoder.mlpackage") as spec:
        spec.description.functions[0].output[0].type.multiArrayType.dataType = FLOAT32
    found = red(Pair(read_build(tiny_build), tiny()))
    assert list(found) == [CONSTANTS]
    assert "encode_256 gives imageFeatures, a tensor float32 [1, 16, 192], expected imageFeatures" in found[CONSTANTS]


def test_a_sign_fails_the_whole_comparison(app_build: Path) -> None:
    one_sign(app_build / PACKAGE)
    reseal(app_build)
    verdict = validate(app_build)
    assert not verdict.passed
    assert {row.limit.key for row in verdict.rows if not row.passed} >= {WEIGHTS, "op.weights_db"}


def test_a_projector_left_in_is_found_on_every_rung(app_build: Path) -> None:
    """The same function with the projector behind the tower, as if it had been forgotten to leave it out."""
    model = tiny()
    spec = app_function(model.config.vision, 256)
    wide = replace(spec, outputs=(replace(spec.outputs[0], shape=(1, 16, model.config.text.hidden_size)),))
    shutil.rmtree(app_build / PACKAGE)
    write_package(
        app_build / PACKAGE, converted_encoder(model, (wide,), projector=True), "main", Labels("", "", "", "")
    )
    pair = Pair(read_build(app_build), model)
    rows = {row.limit.key: row for row in lower_rungs(pair)}
    assert "expected image_features, a tensor float32 [1, 16, 512]" in rows[CONSTANTS].subject
    assert not rows[UNEXPLAINED].passed
    assert not rows["op.unmatched"].passed
    picture = np.zeros((256, 256, 3), np.uint8)
    with torch.no_grad():
        blocks = compare_blocks(pair, [picture], None).measurements
    assert not next(row for row in blocks if row.limit.key == "encoder_blocks.snr_loss_db").passed


def test_a_manifest_that_tells_another_contract(app_build: Path) -> None:
    with manifest(app_build) as content:
        content["functions"]["encoder"]["main"]["outputs"][0]["dtype"] = "float16"
        content["image"]["scale"] = 1 / 255
    row = audited(Pair(read_build(app_build), tiny()))[CONSTANTS]
    assert row.value == 2
    assert "image.scale is 0.00392" in row.subject


def test_a_host_is_refused_with_one_sentence(exported_app: Path) -> None:
    with pytest.raises(BuildError, match=r"is a vision encoder for Apple's sample app, .* or make a whole build with"):
        open_session(exported_app)


def test_it_cannot_be_asked_questions(exported_app: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no language model to ask, it is an encoder alone; give --images DIR"):
        validate(exported_app, questions=tmp_path / "questions.jsonl")


def test_its_time_is_reckoned(exported_app: Path, exported_tiny: Path) -> None:
    app, own = (seconds_of(read_build(path)) for path in (exported_app, exported_tiny))
    assert app.encode == pytest.approx(own.encode, rel=0.05)
    assert (app.prefill, app.decode) == (0.0, 0.0)
