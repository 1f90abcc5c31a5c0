"""The encoder for onnxruntime's CoreML provider: every node is one that it documents, and the tokens are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from coreml_ep_rules import LARGEST_AXIS, documented, largest_axis, refused
from encoder_outliers import pictures
from onnx_encoder_runs import check, reference, run, write

from export.encoder import EncoderGraph
from export.onnx.encoder import COREML_OPSET, EncoderForm, encoder_function, write_encoders
from export.protection import Protection
from fastvlm_ref.config import LARGEST_SIDE, VisionConfig
from fastvlm_ref.image import pixels_to_tensor

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = (128, 64)


@pytest.fixture(scope="module")
def written(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("coreml")
    return {name: write(model, folder / name, EncoderForm(name, coreml=True), *SIDES) for name in ("fp32", "fp16")}


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_every_node_is_taken(written: dict[str, Path], variant: str) -> None:
    for name in ("VisionEncoder.onnx", "VisionEncoder-64.onnx"):
        model = onnx.load(written[variant].parent / name)
        onnx.checker.check_model(model, full_check=True)
        assert len(model.graph.node) > 60
        assert refused(model) == {}
        assert {each.domain: each.version for each in model.opset_import} == {"": COREML_OPSET}


def test_official_sizes_stay_within_the_longest_axis() -> None:
    """The widest MLP, and the positions of stage 4, whose attention is over N/32 · N/32 of them."""
    vision = VisionConfig()
    widest = max(*vision.mlp_widths, vision.features)
    assert max(widest, (1152 // 32) ** 2) == 6144
    assert max(widest, (LARGEST_SIDE // 32) ** 2) <= LARGEST_AXIS


def test_the_longest_axis(written: dict[str, Path]) -> None:
    assert largest_axis(onnx.load(written["fp32"])) == 128


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_image_tokens(written: dict[str, Path], model: Any, variant: str) -> None:
    for name, pixels in pictures(128).items():
        given = np.asarray(pixels_to_tensor(pixels)).astype(np.float32 if variant == "fp32" else np.float16)
        check(variant, reference(model, pixels), run(written[variant], given), name)


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
def test_the_model_is_what_the_manifest_says(written: dict[str, Path], model: Any, variant: str) -> None:
    config = model.config
    spec = encoder_function(config.vision, config.text.hidden_size, 128, EncoderForm(variant, coreml=True))
    graph = onnx.load(written[variant]).graph
    for wanted, found in zip((*spec.inputs, *spec.outputs), (*graph.input, *graph.output), strict=True):
        kind = found.type.tensor_type
        assert (found.name, tuple(dim.dim_value for dim in kind.shape.dim)) == (wanted.name, wanted.shape)
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name == wanted.dtype
    assert spec.inputs[0].shape == (1, 3, 128, 128)


def test_exponents_bring_no_other_ops(model: Any, tmp_path: Path) -> None:
    """Every site scaled at once: the forms that clamp, multiply and take maxima are of documented ops as well."""
    sites = dict.fromkeys(EncoderGraph(model).sites, 1)
    path = write(model, tmp_path / "scaled", EncoderForm("fp16", coreml=True), 64, protection=Protection(encoder=sites))
    scaled = onnx.load(path)
    assert {"Clip", "Max", "ReduceMax", "Sub"} <= {node.op_type for node in scaled.graph.node}
    assert refused(scaled) == {}
    pixels = pictures(64)["shapes"]
    given = np.asarray(pixels_to_tensor(pixels)).astype(np.float16)
    check("fp16", reference(model, pixels), run(path, given))


# --- the rules can refuse ---------------------------------------------------------------------------------------------


def test_the_table_is_read() -> None:
    assert {"Conv", "Gelu", "LayerNormalization"} <= documented()
    assert not {"Einsum", "Attention"} & documented()


def test_the_plain_variant_is_refused_where_the_rules_say(model: Any, tmp_path: Path) -> None:
    """Bytes as input, opset 21, weights outside the model: what the variant is for."""
    write_encoders(model, (64,), tmp_path, EncoderForm("fp32"))
    reasons = refused(onnx.load(tmp_path / "VisionEncoder.onnx", load_external_data=False))
    text = "; ".join(reason for each in reasons.values() for reason in each)
    for wanted in ("Reshape of opset 21", "lies outside the model", "first input of type 2"):
        assert wanted in text
    assert len(reasons) > 30


def test_int8_is_refused(model: Any, tmp_path: Path) -> None:
    write_encoders(model, (64,), tmp_path, EncoderForm("int8"))
    nodes = onnx.load(tmp_path / "VisionEncoder.onnx", load_external_data=False)
    assert any("com.microsoft" in reason for each in refused(nodes).values() for reason in each)
