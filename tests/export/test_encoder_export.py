"""What exponents and safe forms make of the encoder's program: its ops as a contract, and the same bytes either way."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from export_limits import check
from package_constants import constants
from PIL import Image
from small_export import small_model, use_all_passes
from test_export_ops import ENCODER_OPS
from test_export_parity import as_pixels, picture, rounded
from test_export_streaming import LABELS, check_same_package, direct_encoder

from export.contract import FunctionSpec, encoder_functions
from export.convert import constant_name
from export.encoder import EncoderGraph
from export.names import rename
from export.package import write_package
from export.plan import ExportPlan
from export.postcheck import operations
from export.protection import PROTECTED, UNPROTECTED, Protection
from export.vision import converted_encoder
from fastvlm_ref.model.mobileone import SEBlock
from validation.mil import MILModel

pytestmark = pytest.mark.usefixtures("one_thread")

# What the safe forms put in the place of two `layer_norm` and one `reduce_mean` over both axes.
SAFE_NORM = {"abs": 1, "reduce_max": 1, "mul": 7, "maximum": 2, "rsqrt": 2, "reduce_mean": 2, "sub": 1, "add": 1}
SAFE_MEAN = {"mul": 1, "reduce_mean": 2}
# What an exponent adds at a site with a GELU, at scores, at a gate; at others the power is in weights alone.
GELU = {"clip": 1, "mul": 2, "maximum": 1, "sub": 1, "add": 1}
SCORES = {"reduce_max": 1, "sub": 1, "maximum": 1, "mul": 1}
GATE = {"clip": 1, "mul": 1}
STEM, DOWN = ("patch_embed.0",), ("network.8.0", "network.8.2")
LATE = ("network.7.0.convffn.fc1", "conv_exp", "projector_0")
MIXING, GATING = (
    ("network.7.0.token_mixer.q", "network.7.0.token_mixer.k"),
    ("conv_exp.se.reduce", "conv_exp.se.expand"),
)


def specs_of(model: Any, *sides: int) -> tuple[FunctionSpec, ...]:
    return encoder_functions(model.config.vision, model.config.text.hidden_size, ExportPlan(sides, 128, 16))


def block_of(model: Any, protection: Protection) -> Any:
    function = next(converted_encoder(model, specs_of(model, 64), None, protection))
    return function.proto.mlProgram.functions["main"]


def counts(model: Any, protection: Protection) -> collections.Counter[str]:
    found = collections.Counter(op.type for op in operations(block_of(model, protection)))
    del found["const"]
    return found


def with_ops(before: Mapping[str, int], *added: Mapping[str, int]) -> collections.Counter[str]:
    total = collections.Counter(before)
    for each in added:
        total.update(each)
    return total


def everywhere(model: Any, exponent: int = 2) -> Protection:
    return Protection(encoder=dict.fromkeys(EncoderGraph(model).sites, exponent))


def test_ops_of_the_safe_forms(model: Any) -> None:
    plain = counts(model, UNPROTECTED)
    assert plain["layer_norm"] == 2
    assert plain["reduce_mean"] == 1
    del plain["layer_norm"], plain["reduce_mean"]
    assert with_ops(plain, SAFE_NORM, SAFE_NORM, SAFE_MEAN) == collections.Counter(ENCODER_OPS)


@pytest.mark.parametrize(
    ("sites", "added"),
    [
        (("network.0", "network.9", "network.0.0.convffn.conv", "network.10.0.token_mixer.v"), ()),
        ((*STEM, *DOWN, *MIXING, *GATING), (GELU, GELU, GELU, SCORES, GATE)),
        pytest.param(STEM, (GELU,), marks=pytest.mark.long),
        pytest.param(DOWN, (GELU, GELU), marks=pytest.mark.long),
        pytest.param(LATE, (GELU, GELU, GELU), marks=pytest.mark.long),
        pytest.param(MIXING, (SCORES,), marks=pytest.mark.long),
        pytest.param(GATING, (GATE,), marks=pytest.mark.long),
    ],
)
def test_ops_that_an_exponent_adds(model: Any, sites: tuple[str, ...], added: tuple[Mapping[str, int], ...]) -> None:
    found = counts(model, Protection(encoder=dict.fromkeys(sites, 1)))
    assert found == with_ops(ENCODER_OPS, *added)


def test_ops_with_every_exponent(model: Any) -> None:
    """18 GELUs, two attention blocks, one gate."""
    assert counts(model, everywhere(model)) == with_ops(ENCODER_OPS, *[GELU] * 18, SCORES, SCORES, GATE)


def test_every_constant_is_a_number_of_fp16(model: Any) -> None:
    """At the largest exponent; coremltools makes infinity of what is too large, and says nothing."""
    values = (op.attributes["val"] for op in operations(block_of(model, everywhere(model, 7))) if op.type == "const")
    halves = [value.immediateValue.tensor.bytes.values for value in values]
    numbers = [torch.frombuffer(bytearray(each), dtype=torch.float16) for each in halves if each]
    assert len(numbers) > 18
    assert max(float(number.abs().max()) for number in numbers) == 2.0**14  # of the scores: queries and keys


def test_the_passes_left_out_would_change_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/export/test_export_streaming.py asks of the plain graph."""

    def ops() -> list[str]:
        function = block_of(model, everywhere(model))
        rename(function)
        return [str(op) for op in operations(function)]

    ours = ops()
    use_all_passes(monkeypatch)
    assert ours == ops()


def weak(model: Any) -> None:
    """Channels so small that no power below 1 folds into them."""
    for name in ("network.8.proj.1.reparam_conv.weight", "network.4.0.convffn.fc1.weight"):
        model.vision_encoder.get_parameter(name)[::3] *= 1e-3


def narrow_gate(model: Any) -> None:
    """A gate of eight channels: coremltools keeps fewer than ten numbers in the program, not in the weight file."""
    gate = SEBlock(model.config.vision.features, 8).eval().requires_grad_(False)
    gate.reduce.bias.copy_(torch.linspace(-1, 1, 8))
    model.vision_encoder.conv_exp.se = gate


@pytest.mark.parametrize(
    "case", ["every exponent", pytest.param("explicit powers", marks=pytest.mark.long), "few numbers"]
)
def test_programs_and_weights_are_those_of_the_direct_route(case: str, tmp_path: Path) -> None:
    model = small_model()
    protection = everywhere(model)
    if case == "explicit powers":
        weak(model)
        protection = Protection(encoder={"network.8.2": 3, "network.4.0.convffn.fc1": 3})
        powers = [module.before for module in EncoderGraph(model, protection).modules() if hasattr(module, "before")]
        assert powers.count(2.0**-3) == 2
    if case == "few numbers":
        narrow_gate(model)
        protection = PROTECTED
    specs = specs_of(model, 64)  # two sizes of one conversion: tests/export/test_export_streaming.py
    streamed, whole = tmp_path / "streamed", tmp_path / "direct"
    write_package(streamed, converted_encoder(model, specs, None, protection), "encode_64", LABELS)
    write_package(whole, direct_encoder(model, specs, protection), "encode_64", LABELS)
    check_same_package(streamed, whole)
    if case == "few numbers":
        stored = {each.name: each.value for each in constants(streamed, "encode_64")}
        expected = model.vision_encoder.conv_exp.se.reduce.bias.half().numpy()
        assert (stored[constant_name("conv_exp.se.reduce.bias")] == expected).all()


@pytest.mark.parametrize("case", ["every exponent", "explicit powers", "safe forms", "no safe forms"])
def test_the_package_gives_what_the_reference_gives(case: str, tmp_path: Path) -> None:
    """Against the graph with fp16 weights in float32, and against the reference in fp16."""
    model = small_model()
    if case == "explicit powers":
        weak(model)
    protection = {
        "every exponent": everywhere(model),
        "explicit powers": Protection(encoder={"network.8.2": 3, "network.4.0.convffn.fc1": 3}),
        "safe forms": PROTECTED,
        "no safe forms": UNPROTECTED,
    }[case]
    package = tmp_path / "package"
    write_package(package, converted_encoder(model, specs_of(model, 128), None, protection), "encode_128", LABELS)
    image = Image.fromarray(picture(128))
    with torch.no_grad():
        graph = rounded(EncoderGraph(model, protection))(as_pixels(picture(128)))
        reference = model.encode_image(as_pixels(picture(128)))
    check("encoder_fp32", graph, MILModel(package, None, "fp32").predict({"image": image})["imageFeatures"])
    check("encoder_fp16", reference, MILModel(package, None, "fp16").predict({"image": image})["imageFeatures"])
