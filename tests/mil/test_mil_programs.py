"""Whole programs: control flow, lists, compressed weights, flexible shapes, converted modules; and what is covered."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from mil_messages import add_op, empty_program, give, one_op
from mil_programs import build, convert, outputs

from fastvlm.errors import ExecutionError, PackageError
from validation.mil import MILModel
from validation.mil.registry import OPS

OPSETS = {"iOS15", "iOS16", "iOS17", "iOS18"}
# What coremltools registers but no stored ML program can hold, or holds only by another name.
NEVER_STORED = {
    "const": "is the constant itself",
    "_const_symbolic": "exists only inside the converter",
    "conv_quantized": "was for neural networks; no converter or pass writes it into an ML program",
}


def test_every_op_of_the_opsets_is_known() -> None:
    stored = {name for name, versions in SSAOpRegistry.core_ops.items() if OPSETS & {v.name for v in versions}}
    assert stored - set(OPS) == set(NEVER_STORED)
    beyond = {"coreml_update_state", "write_state"}
    assert set(OPS) - stored == beyond


def test_every_parameter_of_every_op_is_known() -> None:
    unknown = {}
    for name, versions in SSAOpRegistry.core_ops.items():
        if name not in OPS:
            continue
        known = {parameter.name for parameter in OPS[name].parameters}
        declared = {key for op in versions.values() for key in op.input_spec.input_types if not key.startswith("_")}
        if declared - known:
            unknown[name] = declared - known
    assert unknown == {}


def test_cond_takes_one_branch() -> None:
    def body(x0: Any) -> Any:
        doubled = mb.mul(x=x0, y=np.float32(2))
        positive = mb.greater(x=mb.reduce_sum(x=x0, keep_dims=False), y=np.float32(0))
        return mb.cond(
            pred=positive, _true_fn=lambda: mb.add(x=doubled, y=x0), _false_fn=lambda: mb.sub(x=x0, y=doubled)
        )

    model = build(body, [((3,), np.float32)])
    for x in (np.float32([1, 2, 3]), np.float32([-1, -2, 0])):
        np.testing.assert_allclose(outputs(model, x)[0], 3 * x if x.sum() > 0 else -x)


def test_while_loop_and_lists() -> None:
    def body(x0: Any) -> Any:
        start = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(2,))

        def step(i: Any, value: Any, items: Any) -> Any:
            return mb.add(x=i, y=1), mb.mul(x=value, y=np.float32(2)), mb.list_write(ls=items, index=i, value=value)

        count, last, items = mb.while_loop(
            _cond=lambda i, value, items: mb.less(x=i, y=5), _body=step, loop_vars=(np.int32(0), x0, start)
        )
        return mb.list_gather(ls=items, indices=[0, 4]), last, mb.list_read(ls=items, index=2), count

    x = np.float32([1, -3])
    gathered, last, second, count = outputs(build(body, [((2,), np.float32)]), x)
    np.testing.assert_allclose(gathered, [x, 16 * x])
    np.testing.assert_allclose(last, 32 * x)
    np.testing.assert_allclose(second, 4 * x)
    assert count == 5


def compressed(kind: str, arguments: dict[str, Any], result: str = "fp32") -> np.ndarray:
    """A constexpr op's value, added to an input of zeros."""
    spec, block = empty_program({"zero": np.zeros(1, np.float32)})
    add_op(block, kind, {"w": result}, arguments)
    add_op(block, "add", {"out": "fp32"}, {"x": "@zero", "y": "@w"})
    give(spec, block, ["out"])
    declared = block.operations[0].outputs[0].type.tensorType
    shape = compressed_shape(kind, arguments)
    declared.rank = len(shape)
    del declared.dimensions[:]
    for length in shape:
        declared.dimensions.add().constant.size = length
    return next(iter(MILModel(spec).predict({"zero": np.zeros(1)}).values()))


def compressed_shape(kind: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    if "shape" in arguments:
        return tuple(arguments["shape"].tolist())
    if kind == "constexpr_lut_to_dense":
        shape = list(arguments["indices"].shape)
        if "vector_axis" in arguments:
            shape[int(arguments["vector_axis"])] *= arguments["lut"].shape[-1]
        return tuple(shape)
    named = ("quantized_data", "data", "mask", "source_val")
    return next(arguments[name].shape for name in named if name in arguments)


def test_affine_and_blockwise_constants() -> None:
    data = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
    scale, zero = np.float32([0.5, 2]), np.int8([1, -1])
    got = compressed(
        "constexpr_affine_dequantize",
        {"quantized_data": data, "zero_point": zero, "scale": scale, "axis": np.int32(0)},
    )
    np.testing.assert_allclose(got, (data - zero[:, None].astype(np.float32)) * scale[:, None])
    scales = np.float32([[1, 2, 3], [4, 5, 6]])
    offsets = np.int8([[0, 1, 2], [3, 4, 5]])
    got = compressed("constexpr_blockwise_shift_scale", {"data": data, "scale": scales, "offset": offsets})
    np.testing.assert_allclose(got, (data.astype(np.float32) - offsets.repeat(2, 1)) * scales.repeat(2, 1))
    with pytest.raises(PackageError, match="4 groups do not divide an axis of 6"):
        compressed("constexpr_blockwise_shift_scale", {"data": data, "scale": np.ones((2, 4), np.float32)})


def test_palettes_as_documented() -> None:
    indices = np.uint8([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2)
    lut = np.float32([1, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1)
    got = compressed("constexpr_lut_to_dense", {"indices": indices, "lut": lut})
    assert got.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    vectors = np.float32([[1, 2, 3], [4, 5, 6]]).reshape(1, 1, 2, 3)
    got = compressed(
        "constexpr_lut_to_dense", {"indices": np.uint8([[0, 1], [1, 0]]), "lut": vectors, "vector_axis": np.int32(0)}
    )
    assert got.tolist() == [[1, 4], [2, 5], [3, 6], [4, 1], [5, 2], [6, 3]]
    packed = {
        "indices": np.uint8([0b01101100, 0b00000011]),
        "lut": np.float32([10, 11, 12, 13]),
        "shape": np.int32([5]),
    }
    assert compressed("constexpr_lut_to_dense", packed).tolist() == [10, 13, 12, 11, 13]


def test_sparse_constants() -> None:
    mask = np.uint8([[1, 0, 1], [0, 0, 1]])
    values = np.float32([5, 6, 7])
    assert compressed("constexpr_sparse_to_dense", {"nonzero_data": values, "mask": mask}).tolist() == [
        [5, 0, 6],
        [0, 0, 7],
    ]
    packed = {"nonzero_data": values, "mask": np.uint8([0b00100101]), "shape": np.int32([2, 3])}
    assert compressed("constexpr_sparse_to_dense", packed).tolist() == [[5, 0, 6], [0, 0, 7]]
    with pytest.raises(PackageError, match="3 values for 2 set bits"):
        compressed("constexpr_sparse_to_dense", {"nonzero_data": values, "mask": np.uint8([[1, 0, 1], [0, 0, 0]])})


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.linear = torch.nn.Linear(32, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).flatten(2).transpose(1, 2))


@pytest.fixture(scope="module")
def layers() -> Any:
    torch.manual_seed(0)
    return convert(
        Layers(), [torch.rand(1, 3, 8, 8)], inputs=[ct.TensorType("x", (1, 3, 8, 8))], outputs=[ct.TensorType("y")]
    )


def schemes() -> dict[str, Any]:
    quantise, palettise, prune = (
        ct.optimize.coreml.OpLinearQuantizerConfig,
        ct.optimize.coreml.OpPalettizerConfig,
        ct.optimize.coreml.OpMagnitudePrunerConfig,
    )
    return {
        "int8": quantise(mode="linear_symmetric", dtype="int8", weight_threshold=16),
        "int4 blocks": quantise(
            mode="linear", dtype="uint4", granularity="per_block", block_size=4, weight_threshold=16
        ),
        "palette": palettise(
            mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=8, weight_threshold=16
        ),
        "sparse": prune(target_sparsity=0.6, weight_threshold=16),
    }


@pytest.mark.parametrize("scheme", ["int8", "int4 blocks", "palette", "sparse"])
def test_compressed_models_equal_their_decompression(layers: Any, scheme: str) -> None:
    config = ct.optimize.coreml.OptimizationConfig(global_config=schemes()[scheme])
    squeeze = {"palette": "palettize_weights", "sparse": "prune_weights"}.get(scheme, "linear_quantize_weights")
    model = getattr(ct.optimize.coreml, squeeze)(layers, config)
    plain = ct.optimize.coreml.decompress_weights(model)
    x = np.random.default_rng(0).random((1, 3, 8, 8)).astype(np.float32)
    assert any(name.startswith("constexpr") for name in op_types(model))
    np.testing.assert_allclose(outputs(model, x)[0], outputs(plain, x)[0], atol=2e-3)


def op_types(model: Any) -> set[str]:
    function = model.get_spec().mlProgram.functions["main"]
    return {operation.type for operation in function.block_specializations[function.opset].operations}


def test_flexible_shapes_are_checked() -> None:
    model = convert(
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv1d(2, 3, 3)),
        [torch.rand(1, 2, 8)],
        inputs=[ct.TensorType("x", (1, 2, ct.RangeDim(4, 12)))],
        outputs=[ct.TensorType("y")],
    )
    runtime = MILModel(model)
    for length in (4, 9, 12):
        assert runtime.predict({"x": np.ones((1, 2, length))})["y"].shape == (1, 3, length - 2)
    for shape in ((1, 2, 3), (1, 2, 13), (1, 3, 8)):
        with pytest.raises(ExecutionError, match="given, expected"):
            runtime.predict({"x": np.ones(shape)})


def test_enumerated_shapes_are_checked() -> None:
    model = convert(
        torch.nn.ReLU(),
        [torch.rand(1, 2, 8)],
        inputs=[ct.TensorType("x", ct.EnumeratedShapes([(1, 2, 8), (1, 2, 4)]))],
        outputs=[ct.TensorType("y")],
    )
    runtime = MILModel(model)
    assert runtime.predict({"x": -np.ones((1, 2, 4))})["y"].max() == 0
    with pytest.raises(ExecutionError, match="expected one of"):
        runtime.predict({"x": np.ones((1, 2, 6))})


def test_optional_inputs_take_their_default() -> None:
    model = convert(
        torch.nn.ReLU(),
        [torch.rand(2, 2)],
        inputs=[ct.TensorType("x", (2, 2), default_value=np.full((2, 2), 3, np.float32))],
        outputs=[ct.TensorType("y")],
    )
    assert MILModel(model).predict({})["y"].tolist() == [[3, 3], [3, 3]]


@pytest.mark.filterwarnings("ignore:Output")
def test_classifier() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
    config = ct.ClassifierConfig(["cat", "dog", "bird"])
    model = convert(module, [torch.rand(1, 3)], inputs=[ct.TensorType("x", (1, 3))], classifier_config=config)
    answer = MILModel(model).predict({"x": np.float32([[0, 3, 1]])})
    assert answer["classLabel"] == "dog"
    assert max(answer["classLabel_probs"], key=answer["classLabel_probs"].get) == "dog"


def test_an_update_never_reaches_what_others_still_read() -> None:
    """x is read again after the update, the constant is updated twice, an input belongs to the caller."""
    where = {"begin": np.int32([0]), "end": np.int32([2])}
    given = np.float32([1, 2, 3, 4])
    spec, block = empty_program({"x": given, "u": given[:2]})
    add_op(block, "relu", {"r": "fp32"}, {"x": "@x"})
    add_op(block, "reshape", {"view": "fp32"}, {"x": "@r", "shape": np.int32([4])})
    add_op(block, "slice_update", {"a": "fp32"}, {"x": "@r", "update": "@u", **where})
    add_op(
        block, "slice_update", {"b": "fp32"}, {"x": "@x", "update": "@u", "begin": np.int32([2]), "end": np.int32([4])}
    )
    add_op(block, "slice_update", {"c": "fp32"}, {"x": np.float32([9, 9, 9, 9]), "update": "@u", **where})
    add_op(block, "add", {"d": "fp32"}, {"x": "@view", "y": "@a"})
    give(spec, block, ["a", "b", "c", "d"])
    model = MILModel(spec)
    for update in (np.float32([10, 20]), np.float32([30, 40])):
        got = model.predict({"x": given, "u": update})
        assert got["a"].tolist() == [*update, 3, 4]
        assert got["b"].tolist() == [1, 2, *update]
        assert got["c"].tolist() == [*update, 9, 9]
        assert got["d"].tolist() == [*np.add(update, [1, 2]), 6, 8]
    assert given.tolist() == [1, 2, 3, 4]


def test_an_error_inside_names_op_and_reason() -> None:
    with pytest.raises(ExecutionError, match=r"op 'out0' \(matmul\)"):
        one_op("matmul", {"x": (np.ones((2, 3), np.float32),), "y": (np.ones((2, 3), np.float32),)})
