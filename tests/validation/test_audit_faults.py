"""One fault planted into the files of a build: the row that should turns red, and its subject names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_builds import Builds, red
from package_edits import constant, edit_blob, edit_constant, find, manifest, operations, program, set_argument

from validation.program import read_program

ENCODER, LANGUAGE, ENCODE = "VisionEncoder.mlpackage", "LanguageModel.mlpackage", "encode_256"
WEIGHTS, CONSTANTS, UNEXPLAINED = "audit.differing_weights", "audit.differing_constants", "audit.unexplained"
BGR = 30  # Core ML's colour space


@pytest.fixture
def caught(builds: Builds, tmp_path: Path) -> Callable[..., str]:
    """Plants a fault and gives the subject of the one row that is red; `also` is another that must be."""

    def caught(name: str, edit: Callable[[Path], None], key: str, also: str | None = None) -> str:
        found = red(builds.edited(name, tmp_path, edit))
        print(found)
        assert found.keys() == {key, also or key}
        return found[key]

    return caught


def flip_sign(numbers: np.ndarray) -> None:
    numbers[5, 7] ^= 0x8000


def next_number(numbers: np.ndarray) -> None:
    numbers[3, 1] += 1


def clear(numbers: np.ndarray) -> None:
    numbers[:] = 0


def transpose(numbers: np.ndarray) -> None:
    numbers[:] = numbers.swapaxes(2, 3).copy()


def swap_halves(numbers: np.ndarray) -> None:
    numbers[:] = np.roll(numbers, len(numbers) // 2, 0)


STORED = [
    (LANGUAGE, "decode", "layers_2_mlp_up_proj_weight_to_fp16", flip_sign, " [5, 7, 0, 0] is "),
    (LANGUAGE, "decode", "lm_head_weight_to_fp16", next_number, " [3, 1, 0, 0] is "),
    (LANGUAGE, "prefill", "layers_1_self_attn_k_proj_bias_to_fp16", clear, " is 0, expected "),
    (LANGUAGE, "decode", "layers_3_self_attn_q_proj_weight_to_fp16", swap_halves, "decoder.layers.3.self_attn.q_proj"),
    (ENCODER, ENCODE, "network_4_0_convffn_fc1_weight_to_fp16", next_number, " [3, 1, 0, 0] is "),
    (ENCODER, ENCODE, "network_7_0_convffn_conv_weight_to_fp16", transpose, " [0, 0, 0, 1] is "),
    (ENCODER, ENCODE, "network_10_0_token_mixer_proj_scale_to_fp16", clear, " is 0, expected "),
]  # fmt: skip


@pytest.mark.parametrize(("package", "function", "name", "edit", "words"), STORED, ids=[row[2] for row in STORED])
def test_a_stored_number(
    caught: Callable[..., str], package: str, function: str, name: str, edit: Any, words: str
) -> None:
    subject = caught("exponents", lambda build: edit_constant(build / package, function, name, edit), WEIGHTS)
    assert f"{name} " in subject
    assert words in subject
    assert subject.startswith(package)


def test_two_layers_exchanged(caught: Callable[..., str]) -> None:
    """Every constant of layer 0 where that of layer 1 should be, in both functions."""

    def exchange(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            for function in ("prefill", "decode"):
                for op in operations(spec, function):
                    name = op.outputs[0].name if op.outputs else ""
                    if name.startswith("layers_0_"):
                        twin = constant(spec, function, name.replace("layers_0_", "layers_1_"))
                        held, other = (each.attributes["val"].blobFileValue for each in (op, twin))
                        held.offset, other.offset = other.offset, held.offset

    assert "layers_0_" in caught("exponents", exchange, WEIGHTS)


# of the build with an exponent for everything: package, function, op type, which, argument, fault, what is told
ARGUMENTS: list[tuple[Any, ...]] = [
    (LANGUAGE, "decode", "layer_norm", 2, "epsilon", 1e-5, "epsilon is 1.0014e-05, expected 1.0133e-06"),
    (LANGUAGE, "prefill", "layer_norm", 0, "axes", [0], "axes is [0], expected [1]"),
    (LANGUAGE, "decode", "maximum", 0, "y", 1.0, "y is 1, expected 0.125"),
    (LANGUAGE, "decode", "rsqrt", 3, "epsilon", 1e-5, "epsilon is 1e-05, expected 1e-12"),
    (LANGUAGE, "decode", "softmax", 1, "axis", [1], "axis is [1], expected [-1]"),
    (LANGUAGE, "prefill", "split", 1, "split_sizes", [8, 24], "split_sizes is [8, 24], expected [16, 16]"),
    (LANGUAGE, "decode", "matmul", 0, "transpose_x", False, "transpose_x is False, expected True"),
    (LANGUAGE, "decode", "slice_update", 1, "end_mask", [False] * 4, "end_mask is [False"),
    (LANGUAGE, "decode", "conv", 0, "strides", [1, 2], "strides is [1, 2], expected [1, 1]"),
    (ENCODER, ENCODE, "mul", 0, "y", 1 / 256, "y is 0.0039062, expected 0.0039216"),
    (ENCODER, ENCODE, "conv", 1, "strides", [1, 1], "strides is [1, 1], expected [2, 2]"),
    (ENCODER, ENCODE, "conv", 4, "pad", [2, 2, 3, 3], "pad is [2, 2, 3, 3], expected [3, 3, 3, 3]"),
    (ENCODER, ENCODE, "conv", 4, "pad_type", "same", "pad_type is 'same', expected 'custom'"),
    (ENCODER, ENCODE, "conv", 4, "groups", 1, "groups is 1, expected 16"),
    (ENCODER, ENCODE, "conv", 7, "dilations", [2, 2], "dilations is [2, 2], expected [1, 1]"),
    (ENCODER, ENCODE, "gelu", 3, "mode", "TANH_APPROXIMATION", "mode is 'TANH_APPROXIMATION', expected 'EXACT'"),
    (ENCODER, ENCODE, "clip", 2, "beta", 16.0, "beta is 16, expected 32"),
    (ENCODER, ENCODE, "transpose", 0, "perm", [0, 1, 2], "perm is [0, 1, 2], expected [0, 2, 1]"),
    (ENCODER, ENCODE, "reduce_mean", -1, "axes", [3], "axes is [3], expected [2]"),
]


@pytest.mark.parametrize(
    ("package", "function", "kind", "number", "parameter", "fault", "words"),
    ARGUMENTS,
    ids=[f"{row[2]}-{row[4]}" for row in ARGUMENTS],
)
def test_an_argument_of_an_op(
    caught: Callable[..., str],
    package: str,
    function: str,
    kind: str,
    number: int,
    parameter: str,
    fault: Any,
    words: str,
) -> None:
    def edit(build: Path) -> None:
        with program(build / package) as spec:
            set_argument(spec, function, find(spec, function, kind, number), parameter, fault)

    subject = caught("exponents", edit, CONSTANTS)
    assert subject.startswith(f"{package} {function}, ")
    assert f"{kind} '" in subject
    assert words in subject


def argument_of(package: str, function: str, name: str, parameter: str, fault: Any) -> Callable[[Path], None]:
    """Edits an argument of the op whose result has a name."""

    def edit(build: Path) -> None:
        with program(build / package) as spec:
            set_argument(spec, function, constant(spec, function, name), parameter, fault)

    return edit


def last_scaled_by(package: Path, function: str, scalar: float) -> str:
    """The last `mul` of a function by a scalar."""
    ops = next(each for each in read_program(package).functions if each.name == function).ops
    return [op.name for op in ops if op.type == "mul" and op.numbers("y") == (scalar,)][-1]


def test_the_eps_of_an_encoder_norm(builds: Builds, caught: Callable[..., str]) -> None:
    """√eps is a factor in plain ops; eps 1e-6 for the reference's 1e-5."""
    name = last_scaled_by(builds.build("outliers") / ENCODER, "encode_128", float(np.float16(np.sqrt(1e-5))))
    subject = caught("outliers", argument_of(ENCODER, "encode_128", name, "y", 1e-3), CONSTANTS)
    assert "its norm: mul" in subject
    assert "is 0.0010004, expected 0.0031624" in subject


@pytest.mark.parametrize(
    "name", ["gpu", *(pytest.param(name, marks=pytest.mark.long) for name in ("exponents-gpu", "bare"))]
)
def test_the_eps_of_a_norm_in_one_op(builds: Builds, name: str, caught: Callable[..., str]) -> None:
    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            set_argument(spec, "decode", find(spec, "decode", "layer_norm", 1), "epsilon", 1e-5)

    subject = caught(name, edit, CONSTANTS)
    assert "layers.0.post_attention_layernorm" in subject
    assert "epsilon is 1.0014e-05" in subject


def test_an_exponent_of_another_tensor(builds: Builds, caught: Callable[..., str]) -> None:
    """What stands behind GELU is multiplied back by another power of two than before it."""
    name = last_scaled_by(builds.build("exponents") / ENCODER, ENCODE, 2.0**-7)
    assert "expected 0.0078125" in caught("exponents", argument_of(ENCODER, ENCODE, name, "y", 2.0**-6), CONSTANTS)


def test_bgr(caught: Callable[..., str]) -> None:
    def edit(build: Path) -> None:
        with program(build / ENCODER) as spec:
            spec.description.functions[0].input[0].type.imageType.colorSpace = BGR

    assert "colour space (256, 256, 30), expected (256, 256, 20)" in caught("exponents", edit, CONSTANTS)


@pytest.mark.parametrize(("field", "fault"), [("scale", 1 / 256), ("bias", [0, 0, 1]), ("color", "BGR")])
def test_the_rule_of_the_manifest(caught: Callable[..., str], field: str, fault: Any) -> None:
    def edit(build: Path) -> None:
        with manifest(build) as content:
            content["image"][field] = fault

    assert f"manifest.json: image.{field} is {fault}" in caught("exponents", edit, CONSTANTS)


def test_the_signs_of_the_sine(caught: Callable[..., str]) -> None:
    """The wrong half negative: every key and query is turned backwards."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            op = find(spec, "decode", "mul", 0)
            value = constant(spec, "decode", op.inputs["y"].arguments[0].name).attributes["val"]
            edit_blob(build / LANGUAGE, value, lambda signs: np.bitwise_xor(signs, 0x8000, out=signs))

    subject = caught("exponents", edit, CONSTANTS)
    assert "the rotary tables: mul" in subject
    assert "y is [1, 1, 1, 1, 1, 1, 1, 1, … of 32], expected [-1" in subject


@pytest.mark.parametrize(("begin", "told"), [(4, "[4:6, 0:2, 0:32, 0:128]"), (2, "[2:6, 0:2, 0:32, 0:128]")])
def test_a_row_of_the_state(caught: Callable[..., str], begin: int, told: str) -> None:
    """The values of layer 2 begin at another row than 5."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            rows = [op for op in operations(spec, "decode") if op.type == "slice_by_index"]
            set_argument(spec, "decode", rows[6], "begin", [begin, 0, 0, 0])

    subject = caught("exponents", edit, CONSTANTS)
    assert "layers.2.self_attn: slice_by_index" in subject
    assert f"takes {told} without axis 0, expected [5:6, " in subject


def test_where_a_layer_writes(caught: Callable[..., str]) -> None:
    """The rows of layer 1 begin at 0."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            update = find(spec, "prefill", "slice_update", 1)
            begin = constant(spec, "prefill", update.inputs["begin"].arguments[0].name)
            row = constant(spec, "prefill", begin.inputs["values"].arguments[0].name)
            row.attributes["val"].immediateValue.tensor.ints.values[:] = [0]

    assert "values hold 0, expected 2" in caught("exponents", edit, CONSTANTS)


def test_a_residual_that_takes_another_value(caught: Callable[..., str]) -> None:
    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            adds = [op for op in operations(spec, "decode") if op.type == "add"]
            last = adds[-1]
            last.inputs["x"].arguments[0].name = adds[2].outputs[0].name

    subject = caught("exponents", edit, UNEXPLAINED)
    assert "layers.3.mlp: add" in subject
    assert ", expected add_" in subject


def test_a_state_that_is_read_before_it_is_written(caught: Callable[..., str]) -> None:
    """The values in it are those of another call."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            ops = operations(spec, "decode")
            at = [index for index, op in enumerate(ops) if op.type == "write_state"][1]
            assert ops[at + 1].type == "read_state"
            held = type(ops[at])()
            held.CopyFrom(ops[at])
            ops[at].CopyFrom(ops[at + 1])
            ops[at + 1].CopyFrom(held)

    subject = caught("exponents", edit, UNEXPLAINED)
    assert "layers.1.self_attn: read_state" in subject
    assert " runs before write_state" in subject


def test_an_op_too_many(caught: Callable[..., str]) -> None:
    """The logits are doubled."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            ops = operations(spec, "decode")
            (out,) = [op for op in ops if op.outputs and op.outputs[0].name == "logits"]
            doubled = ops.add()
            doubled.CopyFrom(next(op for op in ops if op.type == "add"))
            doubled.outputs[0].CopyFrom(out.outputs[0])
            out.outputs[0].name = "half"
            for parameter in ("x", "y"):
                doubled.inputs[parameter].arguments[0].name = "half"

    subject = caught("exponents", edit, UNEXPLAINED)
    assert "half is computed where the result logits should be" in subject


def test_a_constant_by_another_name(caught: Callable[..., str]) -> None:
    """Nothing says any more which parameter it is."""

    def edit(build: Path) -> None:
        with program(build / ENCODER) as spec:
            name = "network_2_0_convffn_fc1_weight_to_fp16"
            op = constant(spec, ENCODE, name)
            find(spec, ENCODE, "conv", reads=name).inputs["weight"].arguments[0].name = "unknown"
            op.outputs[0].name = "unknown"

    subject = caught("exponents", edit, UNEXPLAINED)
    assert "weight is unknown, expected network_2_0_convffn_fc1_weight_to_fp16" in subject


def test_a_function_that_is_not_there(caught: Callable[..., str]) -> None:
    def edit(build: Path) -> None:
        with manifest(build) as content:
            content["image"]["sizes"].append(512)
            told = json.loads(json.dumps(next(iter(content["functions"]["encoder"].values()))))
            told["inputs"][0]["shape"], told["outputs"][0]["shape"][1] = [1, 3, 512, 512], (512 // 64) ** 2
            content["functions"]["encoder"]["encode_512"] = told

    also = CONSTANTS  # what the package itself declares and carries as its contract
    assert caught("exponents", edit, UNEXPLAINED, also) == f"{ENCODER} has no function encode_512"


def test_a_layer_that_no_package_holds(caught: Callable[..., str]) -> None:
    def edit(build: Path) -> None:
        with manifest(build) as content:
            content["functions"]["language"][0]["state"]["shape"][0] = 6

    words = "the packages hold 3 layers and 1 parts of the head by manifest.json, the checkpoint has 4 layers"
    assert caught("exponents", edit, UNEXPLAINED).startswith(words)
