"""VisionEncoder.onnx beside the PyTorch model: every variant, two sizes that share one data file, planted faults."""

from __future__ import annotations

import copy
import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from encoder_outliers import frames, pictures
from onnx import ModelProto, shape_inference
from onnx_encoder_runs import LIMITS, check, reference, run, value_of, write

from export.onnx.data import ALIGNMENT
from export.onnx.encoder import EncoderForm, encoder_function, write_encoders
from export.onnx.graph import OPSET
from fastvlm.errors import TensorError, UsageError
from fastvlm.hashes import sha256_file

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = (256, 320)
VARIANTS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def written(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Variant -> the folder of the embedded checkpoint's encoders."""
    folder = tmp_path_factory.mktemp("onnx")
    return {name: write(tiny_model, folder / name, EncoderForm(name), *SIDES).parent for name in VARIANTS}


def name_of(side: int) -> str:
    return "VisionEncoder.onnx" if side == SIDES[0] else f"VisionEncoder-{side}.onnx"


def read(path: Path) -> ModelProto:
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_image_tokens(written: dict[str, Path], tiny_model: Any, variant: str, side: int) -> None:
    model = written[variant] / name_of(side)
    for name, pixels in pictures(side).items():
        found = run(model, pixels[None])
        check("tiny_int8" if variant == "int8" else variant, reference(tiny_model, pixels), found, name)
        assert found.dtype == (np.float16 if variant == "fp16" else np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_tokens_of_hostile_frames(written: dict[str, Path], tiny_model: Any, variant: str) -> None:
    for name, pixels in frames(SIDES[1]).items():
        found = run(written[variant] / name_of(SIDES[1]), pixels[None])
        check("frames_int8" if variant == "int8" else variant, reference(tiny_model, pixels), found, name)


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_image_tokens_of_seeded_weights(model: Any, tmp_path: Path, variant: str, optimised: bool) -> None:
    """Op by op as well, without onnxruntime's fusions: what is in the file is what is computed."""
    path = write(model, tmp_path / variant, EncoderForm(variant), 128)
    for name, pixels in pictures(128).items():
        found = run(path, pixels[None], optimised=optimised)
        check("small_int8" if variant == "int8" else variant, reference(model, pixels), found, name)


@pytest.mark.parametrize("variant", [*VARIANTS, "int4"])
@pytest.mark.parametrize("side", SIDES)
def test_the_model_is_what_the_manifest_says(
    written: dict[str, Path], tiny_model: Any, variant: str, side: int
) -> None:
    config = tiny_model.config
    spec = encoder_function(config.vision, config.text.hidden_size, side, EncoderForm(variant))
    graph = read(written["int8" if variant == "int4" else variant] / name_of(side)).graph
    values = zip((*spec.inputs, *spec.outputs), (*graph.input, *graph.output), strict=True)
    for wanted, found in values:
        kind = found.type.tensor_type
        assert (found.name, tuple(dim.dim_value for dim in kind.shape.dim)) == (wanted.name, wanted.shape)
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name == wanted.dtype
    assert spec.inputs[0].shape == (1, side, side, 3)
    assert spec.outputs[0].shape == (1, (side // 64) ** 2, config.text.hidden_size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checker_and_strict_shape_inference(written: dict[str, Path], variant: str) -> None:
    """Every value of standard ops has a fixed shape; those of onnxruntime's own are unknown to onnx."""
    for side in SIDES:
        path = written[variant] / name_of(side)
        onnx.checker.check_model(path, full_check=True)
        model = shape_inference.infer_shapes(read(path), check_type=True, strict_mode=True)
        domains = {opset.domain: opset.version for opset in model.opset_import}
        assert domains == {"": OPSET} | ({"com.microsoft": 1} if variant == "int8" else {})
        if variant != "int8":
            shapes = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
            made = {name for node in model.graph.node for name in node.output} - {"imageFeatures"}
            assert made == shapes.keys()
            assert all(dim.dim_value > 0 for shape in shapes.values() for dim in shape.dim)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_share_the_data_file(written: dict[str, Path], tiny_model: Any, tmp_path: Path, variant: str) -> None:
    alone = write(tiny_model, tmp_path / "alone", EncoderForm(variant), SIDES[0])
    data = "VisionEncoder.onnx.data"
    assert filecmp.cmp(alone.parent / data, written[variant] / data, shallow=False)
    assert filecmp.cmp(alone, written[variant] / name_of(SIDES[0]), shallow=False)
    for side in SIDES:
        external = [each for each in read(written[variant] / name_of(side)).graph.initializer if each.external_data]
        places = [{entry.key: entry.value for entry in each.external_data} for each in external]
        assert {place["location"] for place in places} == {data}
        assert all(int(place["offset"]) % ALIGNMENT == 0 for place in places)
        last = max(int(place["offset"]) + int(place["length"]) for place in places)
        assert last == (written[variant] / data).stat().st_size


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bytes_again(written: dict[str, Path], tiny_model: Any, tmp_path: Path, variant: str) -> None:
    again = write(tiny_model, tmp_path / "again", EncoderForm(variant), *SIDES).parent
    hashes = [{path.name: sha256_file(path) for path in folder.iterdir()} for folder in (again, written[variant])]
    assert hashes[0] == hashes[1]


def test_norms_have_the_references_eps(written: dict[str, Path]) -> None:
    """Which no output shows: ten times another eps is 120 dB away."""
    for variant in VARIANTS:
        nodes = read(written[variant] / name_of(256)).graph.node
        norms = [node for node in nodes if node.op_type == "LayerNormalization"]
        assert len(norms) == 4
        for node in norms:
            values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert values == {"axis": -1, "epsilon": pytest.approx(1e-5, rel=1e-6)}


# --- planted faults: each must miss the limit of fp32 -----------------------------------------------------------------


def missed(model: Any, path: Path) -> bool:
    """Whether a model of side 256 misses the limit of fp32 on the first picture; prints by how much."""
    pixels = pictures(256)["shapes"]
    value = value_of(LIMITS["fp32"], reference(model, pixels), run(path, pixels[None]))
    print(f"{path.name}: SNR {value:.1f} dB")
    return not LIMITS["fp32"].holds(value)


def planted(folder: Path, change: Callable[[ModelProto], None]) -> Path:
    """A copy of a model beside it, changed."""
    model = read(folder / "VisionEncoder.onnx")
    change(model)
    path = folder / "planted.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_swapped_weight_is_seen(tiny_model: Any, tmp_path: Path) -> None:
    def swap(first: str, second: str) -> Callable[[ModelProto], None]:
        def change(model: ModelProto) -> None:
            found = {each.name.removeprefix("vision_encoder."): each for each in model.graph.initializer}
            a, b = found[first], found[second]
            assert a.dims == b.dims
            a.name, b.name = b.name, a.name

        return change

    folder = write(tiny_model, tmp_path / "swap", EncoderForm("fp32"), 256).parent
    assert not missed(tiny_model, folder / "VisionEncoder.onnx")
    for first, second in (
        ("network.4.0.convffn.fc1.weight", "network.4.1.convffn.fc1.weight"),
        ("network.4.0.convffn.fc2.conv.bias", "network.4.1.convffn.fc2.conv.bias"),
        ("network.7.0.token_mixer.q.weight", "network.7.0.token_mixer.k.weight"),
        ("network.10.0.token_mixer.proj.conv.weight", "network.10.1.token_mixer.proj.conv.weight"),
    ):
        assert missed(tiny_model, planted(folder, swap(first, second))), first


def test_tanh_gelu_is_seen_wherever_it_stands(tiny_model: Any, tmp_path: Path) -> None:
    folder = write(tiny_model, tmp_path / "gelu", EncoderForm("fp32"), 256).parent
    places = [
        index for index, node in enumerate(read(folder / "VisionEncoder.onnx").graph.node) if node.op_type == "Gelu"
    ]
    assert len(places) == 21  # 3 of the stem, 8 FFNs, 2 of each down-sampling, conv_exp, the projector

    def tanh(place: int) -> Callable[[ModelProto], None]:
        def change(model: ModelProto) -> None:
            (kind,) = model.graph.node[place].attribute
            assert kind.s == b"none"
            kind.s = b"tanh"

        return change

    assert [place for place in places if not missed(tiny_model, planted(folder, tanh(place)))] == []


def with_own_tower(model: Any) -> Any:
    """A model that shares everything but the tower, which may be changed."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.vision_encoder = copy.deepcopy(model.vision_encoder)
    return other


@pytest.mark.parametrize("scale", ["2.0.layer_scale", "4.1.layer_scale", "7.0.layer_scale_1", "10.1.layer_scale_2"])
def test_a_missing_layer_scale_is_seen(tiny_model: Any, tmp_path: Path, scale: str) -> None:
    faulty = with_own_tower(tiny_model)
    faulty.vision_encoder.network.get_parameter(scale).data.fill_(1.0)
    assert missed(tiny_model, write(faulty, tmp_path / "scale", EncoderForm("fp32"), 256))


def test_swapped_colours_are_seen(written: dict[str, Path], tiny_model: Any) -> None:
    pixels = pictures(256)["shapes"]
    found = run(written["fp32"] / name_of(256), pixels[None, :, :, ::-1])
    assert not LIMITS["fp32"].holds(value_of(LIMITS["fp32"], reference(tiny_model, pixels), found))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "coreml"), [("lut4", False), ("fp64", True), ("int8", True), ("int4", True)])
def test_refused_forms(variant: str, coreml: bool) -> None:
    with pytest.raises(UsageError, match=f"{variant}.*expected"):
        EncoderForm(variant, coreml)


def changed_bias(model: Any, value: float) -> Any:
    other = with_own_tower(model)
    other.vision_encoder.patch_embed[0].reparam_conv.bias.data[0] = value
    return other


def test_a_weight_beyond_fp16_is_clamped_and_told(model: Any, tmp_path: Path) -> None:
    clamped = write_encoders(changed_bias(model, 1e6), (64,), tmp_path, EncoderForm("fp16")).clamped
    assert clamped == {"vision_encoder.patch_embed.0.conv.bias": 1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_not_a_number_is_refused(model: Any, tmp_path: Path, variant: str) -> None:
    with pytest.raises(TensorError, match="NaN or infinity"):
        write_encoders(changed_bias(model, float("nan")), (64,), tmp_path, EncoderForm(variant))
