"""What fp16 needs: a scan's exponents, keys without their constant part, numbers that are clamped or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_half_machine import half_machine
from onnx_language_runs import CONTEXT, Runner, check, embeds, read, reference, snr, write
from small_export import small_model

from export.embeddings import table_record, write_embeddings
from export.onnx.attention import _turned_shift
from export.onnx.language import write_language
from export.onnx.schemes import VARIANTS, check_variant
from export.protection import Protection
from fastvlm.errors import TensorError, UsageError
from fastvlm_ref.config import TextConfig

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT, LENGTH = 24, 40
ENDS = (PROMPT, *range(PROMPT + 1, LENGTH + 1))
EXPONENTS = Protection(residual=3, scores=2, mlp=(0, 4), values=(1,))


def weights(path: Path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def logits(path: Path, decoder: Any) -> tuple[np.ndarray, np.ndarray]:
    """The reference's and the file's, behind the prompt and each row after it."""
    rows = embeds(decoder, LENGTH)
    return reference(decoder, rows)[PROMPT - 1 :], Runner(path, decoder.config).parts(rows, ENDS)


def halves(path: Path, decoder: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same, but each op's result is rounded: onnxruntime's CPU kernels leave most roundings out."""
    rows, ends = embeds(decoder, PROMPT + 3), [PROMPT, PROMPT + 1, PROMPT + 3]
    return reference(decoder, rows)[[end - 1 for end in ends]], half_machine(path, rows, ends)


# --- exponents --------------------------------------------------------------------------------------------------------


def test_exponents_change_numbers_and_no_result(tmp_path: Path) -> None:
    decoder = small_model().decoder
    scaled = write(decoder, tmp_path / "scaled", "fp16", protection=EXPONENTS)
    check("small_fp16", *logits(scaled, decoder))
    check("half_machine", *halves(scaled, decoder))
    found = weights(scaled)
    factors = {
        "layers.0.self_attn.q_proj.weight": 1 / 4, "layers.1.self_attn.q_proj.bias": 1 / 4,
        "layers.0.self_attn.k_proj.weight": 1, "layers.0.self_attn.v_proj.bias": 1 / 2,
        "layers.1.self_attn.v_proj.weight": 1, "layers.0.self_attn.o_proj.weight": 2 / 8,
        "layers.1.self_attn.o_proj.weight": 1 / 8, "layers.0.mlp.up_proj.weight": 1,
        "layers.1.mlp.up_proj.weight": 1 / 16, "layers.0.mlp.down_proj.weight": 1 / 8,
        "layers.1.mlp.down_proj.weight": 16 / 8, "layers.1.mlp.gate_proj.weight": 1, "norm.weight": 1,
        "lm_head.weight": 1,
    }  # fmt: skip
    for name, factor in factors.items():
        wanted = decoder.get_parameter(name).numpy() * np.float32(factor)
        dtype = np.float32 if name == "norm.weight" else np.float16
        assert np.array_equal(found[name], wanted.T.astype(dtype)), name
    eps = {helper.get_node_attr_value(node, "epsilon") for node in read(scaled).graph.node if "Skip" in node.op_type}
    assert eps == {np.float32(1e-6 / 64)}


def test_float32_has_no_exponents(tmp_path: Path) -> None:
    decoder = small_model().decoder
    one, other = (write(decoder, tmp_path / name, "fp32", protection=each) for name, each in (
        ("plain", Protection()), ("scaled", EXPONENTS),
    ))  # fmt: skip
    assert one.read_bytes() == other.read_bytes()


def test_what_would_overflow_does_not(tmp_path: Path) -> None:
    """silu(gate) · up beyond 65,504, and what a layer adds to the residual stream."""
    decoder = small_model().decoder
    decoder.layers[0].mlp.up_proj.weight.mul_(2.0**15)
    decoder.layers[0].self_attn.o_proj.weight.mul_(2.0**14)
    decoder.layers[0].mlp.down_proj.weight.mul_(2.0**-4)
    plain = write(decoder, tmp_path / "plain", "fp16")
    scaled = write(decoder, tmp_path / "scaled", "fp16", protection=Protection(residual=6, mlp=(8,)))
    assert not np.isfinite(halves(plain, decoder)[1]).all()
    check("half_machine", *halves(scaled, decoder))


# --- keys without their constant part ---------------------------------------------------------------------------------


def biased(size: float) -> Any:
    """A model whose keys have a large bias on the pairs that turn slowest."""
    model = small_model()
    for index, layer in enumerate(model.decoder.layers):
        layer.self_attn.k_proj.bias.view(2, 32)[:, 15::16] = size + index
    return model


def test_large_biases_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = biased(600.0).decoder
    path = write(decoder, tmp_path / "shifted", "fp16")
    check("small_fp16", *logits(path, decoder))
    check("half_machine", *halves(path, decoder))
    assert sum(node.op_type == "RotaryEmbedding" for node in read(path).graph.node) == 2 * decoder.config.layers
    onnx.checker.check_model(str(path), full_check=True)
    monkeypatch.setattr("export.onnx.folded.DecoderNumbers.shift", lambda self, layer: None)
    wanted, found = logits(write(decoder, tmp_path / "plain", "fp16"), decoder)
    check("planted_fault", wanted, found, "biases in fp16")


def test_calls_may_be_cut_where_keys_are_shifted(tmp_path: Path) -> None:
    """The rows' positions come from the inputs: a wrong first position would show."""
    decoder = biased(600.0).decoder
    path, rows = write(decoder, tmp_path / "shifted", "fp16"), embeds(decoder, LENGTH)
    whole, cut = (Runner(path, decoder.config).parts(rows, ends)[-1] for ends in ([LENGTH], [5, 17, 18, LENGTH]))
    check("parts_fp16", whole, cut)


def test_small_biases_stay(tmp_path: Path) -> None:
    path = write(biased(6.0).decoder, tmp_path / "plain", "fp16")
    assert not [node for node in read(path).graph.node if node.op_type == "RotaryEmbedding"]


def test_a_table_of_turned_biases() -> None:
    """R_j b − b by complex numbers, D = 4: pairs (0, 2) and (1, 3)."""
    text = TextConfig(8, 1, 2, 1, 4, 8, 8, 1e-6, 100.0, True, True, 64)
    bias = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found = _turned_shift(text, 7, bias).numpy()
    for position in range(7):
        for pair, frequency in enumerate((1.0, 0.1)):
            whole = complex(bias[0, pair], bias[0, pair + 2])
            turned = whole * np.exp(1j * position * frequency) - whole
            assert np.allclose([found[position, pair], found[position, pair + 2]], [turned.real, turned.imag])


# --- every result rounded ---------------------------------------------------------------------------------------------


def test_trained_weights_on_a_machine_of_halves(tiny_model: Any, tmp_path: Path) -> None:
    for variant in ("fp16", "fp32"):
        path = write(tiny_model.decoder, tmp_path / variant, variant)
        check(f"half_machine_tiny_{variant}", *halves(path, tiny_model.decoder))


# --- numbers that fp16 does not have, and decoders that a variant cannot have -----------------------------------------


def test_what_fp16_cannot_hold_is_clamped_and_told(tmp_path: Path) -> None:
    model = small_model()
    model.decoder.layers[1].self_attn.o_proj.weight[0, :2] = torch.tensor([1e6, -1e6])
    name = "layers.1.self_attn.o_proj.weight"
    for variant, wanted in (("fp16", 65504.0), ("fp32", 1e6)):
        (tmp_path / variant).mkdir()
        path = tmp_path / variant / "model.onnx"
        clamped = write_language(model.decoder, path, CONTEXT, variant)
        assert clamped == ({f"decoder.{name}": 2} if variant == "fp16" else {})
        found = weights(path)[name]  # (K, N)
        assert found[:2, 0].tolist() == [wanted, -wanted]
        assert snr(model.decoder.layers[1].self_attn.o_proj.weight.T.clamp(-wanted, wanted), found) > 60


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_that_is_no_number(tmp_path: Path, variant: str, value: float) -> None:
    model = small_model()
    model.decoder.layers[1].mlp.up_proj.weight[1, 2] = value
    with pytest.raises(TensorError, match=r"decoder\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        write(model.decoder, tmp_path / variant, variant)


def test_embeddings_in_float32(tmp_path: Path) -> None:
    """Beside a graph of float32 the table keeps what fp16 would lose; NaN is refused all the same."""
    model = small_model()
    table = model.decoder.embed_tokens.weight
    table[5, :2] = torch.tensor([1e6, 1e-9])
    assert write_embeddings(tmp_path / "table", model.decoder, "fp32") == {}
    assert np.array_equal(np.fromfile(tmp_path / "table", np.float32).reshape(table.shape), table.numpy())
    assert table_record(model.config.text, "fp32")["dtype"] == "float32"
    table[5, 0] = torch.nan
    with pytest.raises(TensorError, match=r"embed_tokens\.weight holds NaN"):
        write_embeddings(tmp_path / "table", model.decoder, "fp32")


def test_fp16_in_halves(tmp_path: Path) -> None:
    graph = read(write(small_model().decoder, tmp_path / "fp16", "fp16")).graph
    kinds = {each.name: each.data_type for each in graph.initializer if not each.name.startswith("const/")}
    assert {name for name, kind in kinds.items() if kind != TensorProto.FLOAT16} == {
        name for name in kinds if name.endswith("norm.weight")
    }


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(UsageError, match="--quantize is 'lut4', expected one of fp32, fp16, int8, int4"):
        check_variant("lut4", small_model().config.text)


def test_sizes_without_blocks_are_refused_all_at_once() -> None:
    text = small_model(hidden_size=72, intermediate_size=100).config.text
    with pytest.raises(UsageError, match=r"72 inputs of q_proj.* and 100 inputs of down_proj|72 inputs.*100 inputs"):
        check_variant("int4", text)
    assert check_variant("fp16", text).halves
