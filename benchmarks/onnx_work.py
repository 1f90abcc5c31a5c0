"""What the machine can do at best, measured, and what a build's files ask of it, counted: the limits of `onnx.py`.

Measured: float32 products of a large matrix by torch and by onnxruntime (the better counts), int8 products by
onnxruntime's `MatMulInteger` and `MatMulNBits` (8 bits in, blocks of 32), reading memory. Counted: multiply-adds of the
encoder's file by the kind of number that multiplies, and the bytes of weights that a token reads. Peaks are those of
the same number of threads; they are what products of square matrices reach here, not what a data sheet says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

SIDE = 2048  # of the matrices
BLOCK = 32
BY_CODES = ("MatMulNBits", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Peaks:
    """Multiply-adds a second in float32 and int8, bytes a second that are read."""

    float32: float
    int8: float
    memory: float


def measured_peaks(threads: int) -> Peaks:
    """Returns what this machine reaches with so many threads, the best of five each."""
    torch.set_num_threads(threads)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    block = torch.ones(256 * 1024 * 1024)
    products = SIDE**3
    plain = [_best(lambda: a @ b), _best(_session(_plain(), threads))]
    codes = [_best(_session(make(), threads)) for make in (_integer, _blocks)]
    return Peaks(products / min(plain), products / min(codes), block.numel() * 4 / _best(block.sum))


def _best(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _session(model: onnx.ModelProto, threads: int) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    kind = np.uint8 if "uint8" in session.get_inputs()[0].type else np.float32
    given = {"a": np.random.default_rng(0).integers(0, 100, (SIDE, SIDE)).astype(kind)}
    return lambda: session.run(None, given)


def _model(node: Any, taken: int, given: int, weights: list[Any]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, kind, (SIDE, SIDE)) for name, kind in (("a", taken), ("y", given))]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _plain() -> onnx.ModelProto:
    weights = np.random.default_rng(1).standard_normal((SIDE, SIDE), np.float32)
    node = helper.make_node("MatMul", ["a", "w"], ["y"])
    return _model(node, TensorProto.FLOAT, TensorProto.FLOAT, [onnx.numpy_helper.from_array(weights, "w")])


def _integer() -> onnx.ModelProto:
    weights = np.random.default_rng(1).integers(-100, 100, (SIDE, SIDE)).astype(np.int8)
    node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
    return _model(node, TensorProto.UINT8, TensorProto.INT32, [onnx.numpy_helper.from_array(weights, "w")])


def _blocks() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    codes = random.integers(0, 256, (SIDE, SIDE // BLOCK, BLOCK)).astype(np.uint8)
    scales = random.random(SIDE * SIDE // BLOCK, np.float32)
    stated = {"K": SIDE, "N": SIDE, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["a", "w", "s"], ["y"], domain="com.microsoft", **stated)
    weights = [onnx.numpy_helper.from_array(codes, "w"), onnx.numpy_helper.from_array(scales, "s")]
    return _model(node, TensorProto.FLOAT, TensorProto.FLOAT, weights)


def products_of(file: Path) -> Counter[str]:
    """Returns the multiply-adds of one run of a file of fixed shapes, by "float32" and "int8".

    ONNX's inference knows no shape of onnxruntime's own products: they stand in as plain ones.
    """
    graph = onnx.load(file, load_external_data=False).graph
    codes = {node.output[0] for node in graph.node if node.op_type in BY_CODES}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in BY_CODES:
            shape = _factor(node, weights)
            graph.input.append(helper.make_tensor_value_info(f"{node.name}/factor", TensorProto.FLOAT, shape))
            node.CopyFrom(helper.make_node("MatMul", [node.input[0], f"{node.name}/factor"], node.output[:1]))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    known = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets)).graph
    shapes = dict(weights)
    for value in (*known.input, *known.value_info, *known.output):
        shapes[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    found: Counter[str] = Counter()
    for node in known.node:
        found["int8" if node.output[0] in codes else "float32"] += _products(node, shapes)
    return found


def _factor(node: Any, weights: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape [K, N] of a product's weights, as numbers and not as codes."""
    if node.op_type == "DynamicQuantizeMatMul":
        return weights[node.input[1]]
    stated = {item.name: item.i for item in node.attribute}
    return stated["K"], stated["N"]


def _products(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node: outputs times the length of the sum that each is."""
    if node.op_type == "Conv":
        return prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return 0
