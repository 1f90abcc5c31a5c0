"""The shape of what ships, read from the package's protobuf: ops, types, sharing, names, labels."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
from small_export import CONTEXT, QUERY, SIZES, read_proto, sizes_of, small_model

from export.api import export_model
from export.chunks import chunks, head_split
from export.contract import encoder_functions, language_functions
from export.plan import make_plan
from export.postcheck import check_package, operations
from fastvlm.errors import PackageError

# One row per network: how many of each op that costs or that a device may refuse. A change here is a decision.
# What exponents add to the encoder's: tests/export/test_encoder_export.py.
ENCODER_OPS = {
    "conv": 44, "gelu": 18, "matmul": 4, "softmax": 2, "reduce_mean": 6, "reduce_max": 2, "rsqrt": 4, "reshape": 9,
    "transpose": 1, "add": 9, "sub": 2, "mul": 17, "abs": 2, "maximum": 4, "cast": 1, "relu": 1, "sigmoid": 1,
}  # fmt: skip
# What each whole layer adds, and what a function has beside them, to the last op. For the Neural Engine there is no
# transpose in a layer: the three of prefill turn its inputs. mul: 5 a norm, 2 a rotation, 1 in the MLP.
ANE_LAYER = {
    "conv": 7, "layer_norm": 2, "matmul": 2, "softmax": 1, "silu": 1, "slice_update": 1, "abs": 2, "add": 5,
    "concat": 7, "maximum": 2, "mul": 15, "reduce_max": 2, "rsqrt": 2, "reshape": 6, "slice_by_index": 2, "split": 4,
    "read_state": 1, "write_state": 1,
}  # fmt: skip
ANE_DECODE = {  # inputs, final norm, head
    "conv": 1, "layer_norm": 1, "abs": 1, "add": 1, "concat": 1, "expand_dims": 1, "maximum": 1, "mul": 6,
    "reduce_max": 1, "rsqrt": 1, "reshape": 5, "slice_by_index": 1, "split": 1, "read_state": 1,
}  # fmt: skip
ANE_PREFILL = {  # inputs, and of the last layer nothing but keys and values
    "conv": 2, "layer_norm": 1, "slice_update": 1, "abs": 1, "add": 2, "concat": 5, "expand_dims": 1, "maximum": 1,
    "mul": 8, "reduce_max": 1, "rsqrt": 1, "reshape": 4, "slice_by_index": 5, "split": 2, "transpose": 3,
    "read_state": 2, "write_state": 1,
}  # fmt: skip
ROWS = {"reshape": 2}  # in prefill, scores of Q rows take an axis for their mask and lose it again
SHIFT = {"mul": 2, "add": 2}  # of keys without the constant part of their bias; `sub` and nothing more outside
GPU_LAYER = {
    "linear": 7, "layer_norm": 2, "matmul": 2, "softmax": 1, "silu": 1, "slice_update": 1, "add": 5, "concat": 7,
    "mul": 9, "reshape": 7, "slice_by_index": 4, "split": 2, "read_state": 1, "write_state": 1,
}  # fmt: skip


def counts(proto: Any, function: str) -> collections.Counter[str]:
    found = collections.Counter(op.type for op in operations(proto.mlProgram.functions[function]))
    del found["const"]
    return found


@pytest.mark.parametrize("side", SIZES)
def test_encoder_ops(encoder: Any, side: int) -> None:
    assert dict(counts(encoder, f"encode_{side}")) == ENCODER_OPS


def test_decode_ops(language: Any) -> None:
    assert counts(language, "decode") == collections.Counter(ANE_DECODE) + layers(2, ANE_LAYER)


def test_prefill_skips_head_and_the_rest_of_the_last_layer(language: Any) -> None:
    assert counts(language, "prefill") == collections.Counter(ANE_PREFILL) + layers(1, ANE_LAYER, ROWS)


def layers(count: int, *tables: dict[str, int]) -> collections.Counter[str]:
    """What `count` layers of all these ops have."""
    return sum((collections.Counter(table) for table in tables * count), collections.Counter())


@pytest.mark.parametrize(
    ("target", "layer", "rows"), [("ane", ANE_LAYER, ROWS), ("gpu", GPU_LAYER, {"transpose": 4, "reshape": 1})]
)
def test_every_layer_adds_the_same_ops(
    target: str, layer: dict[str, int], rows: dict[str, int], tmp_path: Path
) -> None:
    """Five layers have three more than two, and nothing else changes: nothing is made once a layer by accident."""
    found = []
    for depth in (2, 5):
        asked: dict[str, Any] = {"context": CONTEXT, "query_length": QUERY, "only": "language", "target": target}
        build = export_model(small_model(layers=depth), tmp_path / str(depth), **asked)
        found.append(read_proto(build / "LanguageModel.mlpackage"))
    for function, more in (("decode", {}), ("prefill", rows)):
        two, five = (counts(proto, function) for proto in found)
        assert five - two == layers(3, layer, more)
        assert not two - five
        forbidden = ("tile", "cast", "gather", "identity")
        assert not any(five[kind] for kind in forbidden)


def test_ops_of_keys_that_lose_their_bias(tmp_path: Path, language: Any) -> None:
    model = small_model()
    for attention in (layer.self_attn for layer in model.decoder.layers):
        attention.k_proj.bias.data.view(2, 32)[:, [15, 31]] = 200.0
    build = export_model(model, tmp_path / "build", context=CONTEXT, query_length=QUERY, only="language")
    found = counts(read_proto(build / "LanguageModel.mlpackage"), "decode")
    assert found - counts(language, "decode") == layers(2, SHIFT) + collections.Counter({"sub": 1})


def test_gelu_is_exact(encoder: Any) -> None:
    function = encoder.mlProgram.functions[f"encode_{SIZES[0]}"]
    constants = {op.outputs[0].name: op for op in operations(function) if op.type == "const"}
    modes = set()
    for op in operations(function):
        if op.type == "gelu":
            argument = op.inputs["mode"].arguments[0]
            value = constants[argument.name].attributes["val"] if argument.name else argument.value
            modes |= set(value.immediateValue.tensor.strings.values)
    assert modes == {"EXACT"}


def test_functions_and_defaults(encoder: Any, language: Any) -> None:
    assert [f.name for f in encoder.description.functions] == [f"encode_{side}" for side in SIZES]
    assert encoder.description.defaultFunctionName == f"encode_{SIZES[0]}"
    assert [f.name for f in language.description.functions] == ["prefill", "decode"]
    assert language.description.defaultFunctionName == "decode"


def test_one_state_with_an_aligned_last_axis(language: Any) -> None:
    for function in language.description.functions:
        (state,) = function.state
        shape = state.type.stateType.arrayType.shape
        assert (state.name, list(shape)) == ("kvCache", [4, 2, 32, CONTEXT])
        assert shape[-1] % 32 == 0


@pytest.mark.parametrize("name", ["VisionEncoder", "LanguageModel"])
def test_weights_are_stored_once(build: Path, model: Any, name: str) -> None:
    """The file holds one copy of the weights and little else, whatever the number of functions."""
    size = (build / f"{name}.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    parts = [model.vision_encoder, model.projector] if name == "VisionEncoder" else [model.decoder]
    bytes_ = 2 * sum(parameter.numel() for part in parts for parameter in part.parameters())
    blobs = size // 64  # each blob costs 64 bytes of metadata and up to 63 of padding
    assert bytes_ * 0.9 < size < bytes_ * 1.1 + 128 * min(blobs, 200)


def test_xcode_has_something_to_show(encoder: Any, language: Any) -> None:
    for proto in (encoder, language):
        metadata = proto.description.metadata
        assert metadata.author.startswith("fastvlm ")
        assert metadata.license == "unknown"
        assert "FastVLM" in metadata.shortDescription
        assert set(metadata.userDefined) == {"fastvlm.schema", "fastvlm.version", "fastvlm.source", "fastvlm.contract"}
        for function in proto.description.functions:
            features = [*function.input, *function.output, *function.state]
            assert all(feature.shortDescription for feature in features)


def copied(proto: Any) -> Any:
    other = type(proto)()
    other.CopyFrom(proto)
    return other


def specs_of(model: Any, part: str) -> Any:
    plan = make_plan(model.config, SIZES, CONTEXT, QUERY)
    config = model.config
    if part == "encoder":
        return encoder_functions(config.vision, config.text.hidden_size, plan)
    (chunk,) = chunks(config.text, plan, sizes_of(config.text, plan))
    return language_functions(config.text, plan, chunk, head_split(config.text, plan.target))


def test_post_condition_holds_for_what_was_built(encoder: Any, language: Any, model: Any) -> None:
    check_package(encoder, specs_of(model, "encoder"), f"encode_{SIZES[0]}")
    check_package(language, specs_of(model, "language"), "decode")


def first(proto: Any, function: str, kind: str) -> Any:
    return next(op for op in operations(proto.mlProgram.functions[function]) if op.type == kind)


def widen(proto: Any) -> None:
    tensor = first(proto, "decode", "conv").outputs[0].type.tensorType
    tensor.dataType = 11  # MIL's FLOAT32


def second_cast(proto: Any) -> None:
    first(proto, "decode", "silu").type = "cast"


def tiled(proto: Any) -> None:
    first(proto, "prefill", "concat").type = "tile"


def renamed(proto: Any) -> None:
    proto.description.functions[1].input[0].name = "embeds"


def other_shape(proto: Any) -> None:
    proto.description.functions[0].input[0].type.multiArrayType.shape[1] = 8


def other_dtype(proto: Any) -> None:
    proto.description.functions[1].output[0].type.multiArrayType.dataType = 65568  # FLOAT32


def stateless(proto: Any) -> None:
    del proto.description.functions[0].state[:]


def dynamic(proto: Any) -> None:
    first(proto, "decode", "conv").outputs[0].type.tensorType.dimensions[1].unknown.SetInParent()


def high_rank(proto: Any) -> None:
    first(proto, "decode", "conv").outputs[0].type.tensorType.rank = 6


def lost_function(proto: Any) -> None:
    del proto.mlProgram.functions["prefill"]


def other_default(proto: Any) -> None:
    proto.description.defaultFunctionName = "prefill"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (widen, "decode: float32 op conv"),
        (second_cast, "decode: op cast"),
        (tiled, "prefill: op tile"),
        (renamed, r"decode: inputs \['embeds'"),
        (other_shape, r"prefill: input inputsEmbeds is float16 \[1, 8, 64\], expected float16 \[1, 16, 64\]"),
        (other_dtype, "decode: output logits is float32"),
        (stateless, "prefill: states"),
        (dynamic, "dynamic shape"),
        (high_rank, "of rank 6"),
        (lost_function, "functions"),
        (other_default, "default function 'prefill', expected 'decode'"),
    ],
)
def test_post_condition_finds(language: Any, model: Any, damage: Any, said: str) -> None:
    broken = copied(language)
    damage(broken)
    with pytest.raises(PackageError, match=said):
        check_package(broken, specs_of(model, "language"), "decode")


def reader(proto: Any, name: str) -> Any:
    """The operation of the first encoder function that reads `name`."""
    ops = list(operations(proto.mlProgram.functions[f"encode_{SIZES[0]}"]))
    return next(op for op in ops for value in op.inputs.values() for one in value.arguments if one.name == name)


def other_scale(proto: Any) -> None:
    y = reader(proto, "image").inputs["y"].arguments[0].name
    ops = operations(proto.mlProgram.functions[f"encode_{SIZES[0]}"])
    const = next(op for op in ops if op.outputs[0].name == y)
    const.attributes["val"].immediateValue.tensor.floats.values[0] = 1 / 127.5


def divided(proto: Any) -> None:
    reader(proto, "image").type = "real_div"


def biased(proto: Any) -> None:
    """An fp16 `add` behind the cast, as a bias would make it."""
    cast = reader(proto, reader(proto, "image").outputs[0].name)
    reader(proto, cast.outputs[0].name).type = "add"


def scale_that_is_computed(proto: Any) -> None:
    mul = reader(proto, "image")
    mul.inputs["y"].arguments[0].name = "image"


def test_post_condition_finds_an_unguarded_root(encoder: Any, model: Any) -> None:
    """A norm's root of what nothing keeps above 0."""
    broken = copied(encoder)
    first(broken, f"encode_{SIZES[0]}", "maximum").type = "add"
    with pytest.raises(PackageError, match=r"op rsqrt \(\w+\) of what no maximum made"):
        check_package(broken, specs_of(model, "encoder"), f"encode_{SIZES[0]}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (other_scale, r"image is scaled by \[.*0\.0078.*\], expected .*0\.0039.* \(1/255\)"),
        (divided, r"image is read by \['real_div'\], expected one mul"),
        (biased, r"is read by \['add'\], expected one conv: scale 1/255, bias 0"),
        (scale_that_is_computed, r"image is scaled by \[\], expected"),
    ],
)
def test_post_condition_holds_the_image_to_its_scale(encoder: Any, model: Any, damage: Any, said: str) -> None:
    broken = copied(encoder)
    damage(broken)
    with pytest.raises(PackageError, match=said):
        check_package(broken, specs_of(model, "encoder"), f"encode_{SIZES[0]}")
