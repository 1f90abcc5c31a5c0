"""The matrices of int8 and int4, read from the file as the op's own documentation has them, beside the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_language_runs import Runner, check, embeds, inferred, reference, session, write
from small_export import small_model

from export.compression.codes import compress, dense
from export.compression.schemes import SCHEMES
from export.onnx.data import DataFile
from export.onnx.graph import Graph, write_model
from export.onnx.schemes import BLOCK
from export.onnx.weights import Matrices
from export.parameters import GraphWeight
from fastvlm.errors import TensorError

pytestmark = pytest.mark.usefixtures("one_thread")
BITS = {"int8": 8, "int4": 4}
PROMPT, LENGTH = 24, 40


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Variant -> a seeded model's file; its down_proj has three blocks, an odd number of nibbles for each row."""
    folder, decoder = tmp_path_factory.mktemp("codes"), small_model().decoder
    return {variant: write(decoder, folder / variant, variant) for variant in BITS}


def products(path: Path) -> dict[str, Any]:
    """Module -> its MatMulNBits node."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    return {node.input[1].removesuffix(".weight"): node for node in nodes}


def weights(path: Path) -> dict[str, NDArray[Any]]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def unpacked(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """The last axis in codes: the first in the lower bits of a byte."""
    if bits == 8:
        return codes.astype(np.int64)
    return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1).astype(np.int64)


def dequantised(found: dict[str, NDArray[Any]], node: Any) -> NDArray[np.float64]:
    """(code − zero point) · scale (N, K), by the documentation of MatMulNBits."""
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    bits, blocks = attributes["bits"], attributes["K"] // attributes["block_size"]
    codes = unpacked(found[node.input[1]], bits)  # (N, blocks, block)
    zero = np.full(codes.shape[:2], 1 << bits - 1)
    if len(node.input) > 3 and node.input[3]:
        zero = unpacked(found[node.input[3]], bits)[:, :blocks]
    values = (codes - zero[:, :, None]) * found[node.input[2]][:, :, None].astype(np.float64)
    return values.reshape(attributes["N"], attributes["K"])


def coded_model(path: Path) -> Any:
    """The PyTorch model with the values that the file's codes stand for."""
    model, found = small_model(tied_head=False), weights(path)
    for module, node in products(path).items():
        model.decoder.get_submodule(module).weight.copy_(torch.from_numpy(dequantised(found, node)).float())
    return model


@pytest.mark.parametrize("variant", BITS)
def test_logits_are_those_of_the_codes(written: dict[str, Path], variant: str) -> None:
    """What is left is what activations lose inside a product."""
    decoder = coded_model(written[variant]).decoder
    rows = embeds(small_model().decoder, LENGTH)
    found = Runner(written[variant], decoder.config).parts(rows, [PROMPT, LENGTH])
    check("codes", reference(decoder, rows)[[PROMPT - 1, LENGTH - 1]], found, variant)


@pytest.mark.parametrize("variant", BITS)
def test_values_are_near_the_checkpoints(written: dict[str, Path], variant: str) -> None:
    decoder, found = small_model().decoder, weights(written[variant])
    for module, node in products(written[variant]).items():
        wanted, values = decoder.get_submodule(module).weight.numpy(), dequantised(found, node)
        scale = np.repeat(found[node.input[2]], BLOCK, 1)
        check(f"matrix_{helper.get_node_attr_value(node, 'bits')}", wanted, values, module)
        # Half a step, and what a search for the least error clips.
        assert (np.abs(values - wanted) < 0.5001 * scale).mean() > 0.9, module


@pytest.mark.parametrize("variant", BITS)
def test_matrices_and_their_bits(written: dict[str, Path], variant: str) -> None:
    nodes = products(written[variant])
    bits = {module: helper.get_node_attr_value(node, "bits") for module, node in nodes.items()}
    assert bits.pop("lm_head") == 8
    assert set(bits.values()) == {BITS[variant]}
    assert len(bits) == 2 * 7
    assert all(helper.get_node_attr_value(node, "accuracy_level") == 4 for node in nodes.values())


def test_int4_is_the_projects_own_search(written: dict[str, Path]) -> None:
    decoder, found = small_model().decoder, weights(written["int4"])
    for module, node in products(written["int4"]).items():
        if module != "lm_head":
            made = compress(SCHEMES["int4"], decoder.get_submodule(module).weight)
            assert np.array_equal(dequantised(found, node).astype(np.float32), dense(SCHEMES["int4"], made).numpy())


@pytest.mark.parametrize("fault", ["halves of a byte", "no zero points", "neighbours' scales"])
def test_planted_faults(written: dict[str, Path], tmp_path: Path, fault: str) -> None:
    """Each leaves logits that are not those of the codes."""
    model = onnx.load(written["int4"])
    for node in [node for node in model.graph.node if node.op_type == "MatMulNBits"]:
        first = next(each for each in model.graph.initializer if each.name == node.input[1])
        codes, scales = (
            numpy_helper.to_array(first),
            next(each for each in model.graph.initializer if each.name == node.input[2]),
        )
        if fault == "no zero points" and len(node.input) > 3:
            node.input[3] = ""
        elif fault == "halves of a byte" and helper.get_node_attr_value(node, "bits") == 4:
            first.CopyFrom(numpy_helper.from_array(codes >> 4 | codes << 4, first.name))
        elif fault == "neighbours' scales":
            moved = np.roll(numpy_helper.to_array(scales), 1, 1)
            scales.CopyFrom(numpy_helper.from_array(moved, scales.name))
    onnx.save(model, tmp_path / "model.onnx")
    decoder = coded_model(written["int4"]).decoder
    rows = embeds(small_model().decoder, PROMPT)
    found = Runner(tmp_path / "model.onnx", decoder.config)(rows, 0)
    check("coded_fault", reference(decoder, rows)[-1], found, fault)


# --- one product ------------------------------------------------------------------------------------------------------


def product(folder: Path, weight: torch.Tensor, bias: torch.Tensor | None, bits: int | None) -> Path:
    """A graph of one product of rows (1, S, K)."""
    count, width = weight.shape
    with DataFile(folder / "one.onnx.data") as data:
        graph = Graph("one", data)
        matrices = Matrices(graph, TensorProto.FLOAT)
        x = graph.input("x", TensorProto.FLOAT, [1, "rows", width])
        given = None if bias is None else GraphWeight("decoder.p.bias", (count,), lambda: iter([bias]))
        pieces = GraphWeight("decoder.p.weight", (count, width), lambda: iter(weight.reshape(-1).split(1000)))
        graph.output(matrices.product(x, pieces, given, bits, "rows"), "y", TensorProto.FLOAT, [1, "rows", count])
    write_model(graph.model(("test", "0"), "", {}), folder / "one.onnx")
    return folder / "one.onnx"


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product(tmp_path: Path, bits: int | None, biased: bool) -> None:
    weight, bias = torch.randn(40, 96), torch.randn(40) if biased else None
    path = product(tmp_path, weight, bias, bits)
    onnx.checker.check_model(str(path), full_check=True)
    inferred(onnx.load(path, load_external_data=False))
    x = torch.randn(1, 5, 96)
    (found,) = session(path).run(["y"], {"x": x.numpy()})
    wanted = torch.nn.functional.linear(x, weight, bias)
    check(f"product_{bits or 'floats'}", wanted, found)


def test_a_matrix_with_nan_is_refused(tmp_path: Path) -> None:
    weight = torch.randn(40, 96)
    weight[3, 5] = torch.nan
    for bits in (None, 8, 4):
        folder = tmp_path / str(bits)
        folder.mkdir()
        with pytest.raises(TensorError, match=r"decoder.p.weight holds NaN or infinity"):
            product(folder, weight, None, bits)
