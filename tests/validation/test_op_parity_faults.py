"""Every fault planted in a package's program or weights is found, in the one piece that holds it, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from package_surgery import Surgery

from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from validation.op_parity import compare_ops, comparing, op_findings
from validation.pair import Pair

SCALED, OUT = "network.10.0.token_mixer.proj", "layers.1.self_attn.o_proj"
BGR = 30  # of ImageFeatureType.ColorSpace
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Fault:
    """name; the function it is planted in; how; the pieces that must be found, and nothing else; the row that fails."""

    name: str
    function: str
    plant: Callable[[Surgery], None]
    pieces: tuple[str, ...]
    row: str = "op.plain_db"


def encoder_eps(at: Surgery) -> None:
    op = next(op for op in at.facts.ops if op.type == "mul" and 0.003 < (op.numbers("y") or (0.0,))[0] < 0.0033)
    at.set_number(at.made(op.name), "y", lambda root: root * 1.02)


def decoder_eps(at: Surgery) -> None:
    at.set_number(at.first("layer_norm", 2), "epsilon", lambda eps: eps * 1.06)


def tanh_gelu(at: Surgery) -> None:
    at.argument(at.first("gelu", 3), "mode").strings.values[0] = "TANH_APPROXIMATION"


def sigmoid(at: Surgery) -> None:
    at.first("silu", 1).type = "sigmoid"


def transposed(at: Surgery) -> None:
    with at.numbers("network_2_0_convffn_conv_weight_to_fp16") as kernel:
        kernel[:] = kernel.copy().transpose(0, 1, 3, 2)


def swapped_queries(at: Surgery) -> None:
    q, k = (f"network_7_0_token_mixer_{part}_weight_to_fp16" for part in "qk")
    at.swap(q, k)


def swapped_gate(at: Surgery) -> None:
    gate, up = (f"layers_1_mlp_{part}_proj_weight_to_fp16" for part in ("gate", "up"))
    at.swap(gate, up)


def missing_root(at: Surgery) -> None:
    with at.numbers("layers_2_self_attn_q_proj_weight_to_fp16") as weight:
        weight *= np.float16(32**0.5)


def softmax_axis(at: Surgery) -> None:
    at.set_number(at.first("softmax", 1), "axis", lambda axis: -2)


def missing_sum(at: Surgery) -> None:
    at.reroute(
        at.anchors.added("network.4.1.convffn.fc2.conv").name, at.anchors.given("network.4.1.convffn.fc2.conv").name
    )


def missing_decoder_sum(at: Surgery) -> None:
    at.reroute(at.anchors.added(OUT).name, at.anchors.given(OUT).name)


def blue_first(at: Surgery) -> None:
    (described,) = (entry for entry in at.spec.description.functions if entry.name == at.facts.name)
    described.input[0].type.imageType.colorSpace = BGR


def missing_scale(at: Surgery) -> None:
    at.reroute(at.anchors.weighted(SCALED, "scale").result.name, at.anchors.given(f"{SCALED}.conv").name)


def exchanged_halves(at: Surgery) -> None:
    halves = at.first("concat", 1).inputs["values"].arguments
    halves[0].name, halves[1].name = halves[1].name, halves[0].name


def keys_one_off(at: Surgery) -> None:
    """Begin and end of what layer 1 writes, one position behind where it belongs."""
    update = at.first("slice_update", 1)
    for parameter in ("begin", "end"):
        made = at.made(update.inputs[parameter].arguments[0].name)
        name = next(
            binding.name for binding in made.inputs["values"].arguments if binding.name.startswith(("expand", "add"))
        )
        at.lift(made, "values", name)


def flipped_sign(at: Surgery) -> None:
    with at.numbers("layers_2_mlp_down_proj_weight_to_fp16") as weight:
        column = int(np.abs(weight[7].astype(np.float32)).argsort(0)[256, 0, 0])  # of middling size
        weight[7, column] *= -1


def zeroed_bias(at: Surgery) -> None:
    with at.numbers("network_4_0_convffn_fc1_bias_to_fp16") as bias:
        bias[:] = 0


def no_mask(at: Surgery) -> None:
    op = next(op for op in at.facts.ops if op.type == "add" and any(value.name == "causalMask" for value in op.values))
    at.reroute(op.name, op.need("x").name)


def another_scale(at: Surgery) -> None:
    at.set_number(at.first("mul"), "y", lambda scale: 1 / 256)


FAULTS = (
    Fault("eps of the encoder's norm, 4% off", "encode_256", encoder_eps, ("network.7.0.token_mixer norm",)),
    Fault("eps of a decoder's norm, 6% off", "prefill", decoder_eps, ("layers.1.input_layernorm",)),
    Fault("tanh GELU", "encode_256", tanh_gelu, ("network.0.0.convffn.fc1 activation",)),
    Fault("sigmoid for silu", "prefill", sigmoid, ("layers.1.mlp silu",)),
    Fault("a transposed kernel", "encode_256", transposed, ("network.2.0.convffn.conv",), "op.weights_db"),
    Fault(
        "swapped q and k", "encode_256", swapped_queries,
        ("network.7.0.token_mixer.q", "network.7.0.token_mixer.k"), "op.weights_db",
    ),
    Fault(
        "swapped gate and up", "prefill", swapped_gate, ("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"),
        "op.weights_db",
    ),
    Fault("no 1/√D", "decode", missing_root, ("layers.2.self_attn.q_proj",), "op.weights_db"),
    Fault("softmax along another axis", "encode_256", softmax_axis, ("network.7.1.token_mixer attention",)),
    Fault("softmax along another axis", "prefill", softmax_axis, ("layers.1.self_attn attention",)),
    Fault(
        "no residual sum", "encode_256", missing_sum,
        ("network.4.1.convffn.fc2 sum", "network.4.1.convffn.fc2 sum, passed on"), "op.unmatched",
    ),
    Fault(
        "no residual sum", "decode", missing_decoder_sum,
        (f"{OUT} sum", "layers.1.post_attention_layernorm", "layers.1.mlp.down_proj sum"), "op.unmatched",
    ),
    Fault("blue before red", "encode_256", blue_first, ("image",)),
    Fault("no layer scale", "encode_256", missing_scale, (f"{SCALED} layer scale", f"{SCALED} sum"), "op.unmatched"),
    Fault("halves of RoPE exchanged", "prefill", exchanged_halves, ("layers.0.self_attn attention",)),
    Fault("keys written one position behind", "decode", keys_one_off, ("layers.1.self_attn attention",)),
    Fault("one flipped sign", "prefill", flipped_sign, ("layers.2.mlp.down_proj",), "op.weights_db"),
    Fault("a zeroed bias", "encode_256", zeroed_bias, ("network.4.0.convffn.fc1",), "op.weights_db"),
    Fault("no mask", "prefill", no_mask, ("layers.0.self_attn attention",), "op.unmatched"),
    Fault("another scale of the image", "encode_256", another_scale, ("image",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return load_checkpoint("tiny")


def planted(fault: Fault, build: Path, model: Any) -> Pair:
    """The pair of a damaged build, of which only the damaged part is compared."""
    opened = read_build(build)
    encoder = fault.function.startswith("encode")
    opened = replace(opened, **({"language": ()} if encoder else {"encoder": None}))
    package = opened.encoder or opened.language[0].package
    surgery = Surgery(package, fault.function)
    fault.plant(surgery)
    surgery.save()
    return Pair(opened, model)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}, {fault.function}")
def test_a_planted_fault_is_found_in_its_piece(
    fault: Fault, tiny_build: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = planted(fault, tiny_build, model)
    compared: list[Any] = []
    compare = comparing.compare_piece
    monkeypatch.setattr(comparing, "compare_piece", lambda *given: compared.append(compare(*given)) or compared[-1])
    findings = op_findings(pair)
    for finding in findings:
        print(finding)
    assert {finding.piece for finding in findings} == {*fault.pieces}
    assert findings[0].piece == fault.pieces[0]
    again = iter(compared)  # rows are of the same pieces, in the same order
    monkeypatch.setattr(comparing, "compare_piece", lambda *_: next(again))
    rows = {row.limit.key: row for row in compare_ops(pair)}
    assert next(again, None) is None
    assert not rows[fault.row].passed
    assert any(piece in rows[fault.row].subject for piece in fault.pieces)
