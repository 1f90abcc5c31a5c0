"""Rung "ops": every op of a clean build computes what the reference does, none is left out, and the rows can fail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from package_surgery import Surgery

from export import export
from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from validation.limits import LIMITS, Measurement
from validation.op_parity import compare_ops, op_findings
from validation.op_parity.comparing import NOWHERE
from validation.op_parity.encoder import EncoderPieces
from validation.op_parity.partly import partly
from validation.op_parity.piece import Case, Piece, Shape
from validation.op_parity.rows import worst_row
from validation.pair import Pair

pytestmark = pytest.mark.usefixtures("one_thread")
FP16 = {"op.weights_db", "op.plain_db", "op.unmatched", "op.uncovered"}


@pytest.fixture(scope="module")
def model() -> Any:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, exported_tiny: Path) -> Any:
    """Builds of the embedded checkpoint: for either target, as a chain of packages, and of eight bits."""
    folder = tmp_path_factory.mktemp("builds")
    return {
        "ane": exported_tiny,
        "gpu": export("tiny", folder / "gpu", only="language", target="gpu"),
        "chain": export("tiny", folder / "chain", only="language", max_file_size=1_200_000),
        "int8": export("tiny", folder / "int8", only="language", quantize="int8"),
    }


def measured(build: Path, model: Any) -> dict[str, Measurement]:
    return {row.limit.key: row for row in compare_ops(Pair(read_build(build), model))}


@pytest.mark.parametrize("kind", ["ane", "gpu", "chain", "int8"])
def test_a_clean_build_passes_and_no_op_is_left_out(kind: str, exported: Any, model: Any) -> None:
    rows = measured(exported[kind], model)
    packed = {"op.language_packed_db", *FP16} - {"op.weights_db"}  # no weight of this build is fp16
    assert rows.keys() == (packed if kind == "int8" else FP16)
    assert all(row.passed for row in rows.values()), [row.as_json() for row in rows.values()]
    assert op_findings(Pair(read_build(exported[kind]), model)) == []


def test_the_table_states_what_is_measured(exported: Any, model: Any) -> None:
    rows = measured(exported["ane"], model)
    for key in ("op.weights_db", "op.plain_db"):
        assert abs(rows[key].value - LIMITS[key].measured) <= 5


def test_a_streaming_reference_gives_the_same_numbers(exported: Any, model: Any) -> None:
    found = measured(exported["chain"], load_checkpoint("tiny", stream=True))
    held = measured(exported["chain"], model)
    assert {key: row.value for key, row in found.items()} == {key: row.value for key, row in held.items()}


def test_one_block_alone_is_compared_for_the_bisection(tiny_build: Path, model: Any) -> None:
    opened = read_build(tiny_build)
    surgery = Surgery(opened.language[0].package, "prefill")
    for layer in (2, 1):
        with surgery.numbers(f"layers_{layer}_mlp_up_proj_weight_to_fp16") as weight:
            weight[11] *= -1
    pair = Pair(opened, model)
    (decode, prefill), every = op_findings(pair, "decoder.layers.2"), op_findings(pair)
    assert (decode.function, prefill.function) == ("decode", "prefill")
    assert decode.op == prefill.op == "layers_2_mlp_up_proj_weight_to_fp16"
    assert decode.index[1] == 11
    assert decode.program == pytest.approx(-decode.reference, rel=2e-2)
    assert decode.snr_db == pytest.approx(20 * math.log10(0.5), abs=0.1)
    order = [(finding.function, finding.block) for finding in every]
    assert order == [(name, f"decoder.layers.{layer}") for name in ("decode", "prefill") for layer in (1, 2)]


def test_an_op_that_no_piece_holds_is_counted(tiny_build: Path, model: Any) -> None:
    """A relu that nobody reads, beside one of the encoder's."""
    opened = replace(read_build(tiny_build), language=())
    assert opened.encoder is not None
    surgery = Surgery(opened.encoder, "encode_256")
    copy = type(surgery.first("relu"))()
    copy.CopyFrom(surgery.first("relu"))
    copy.outputs[0].name = "idle"
    surgery.block.operations.append(copy)
    surgery.save()
    rows = {row.limit.key: row for row in compare_ops(Pair(opened, model))}
    assert (rows["op.uncovered"].value, rows["op.unmatched"].value) == (1, 0)
    assert "relu 'idle'" in rows["op.uncovered"].subject
    assert [finding.problem for finding in op_findings(Pair(opened, model))] == [NOWHERE]


def test_a_comparison_that_leaves_a_piece_out_says_so(
    exported: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = EncoderPieces.__iter__

    def fewer(self: EncoderPieces) -> Iterator[Piece]:
        return (piece for piece in pieces(self) if "norm" not in piece.name)

    monkeypatch.setattr(EncoderPieces, "__iter__", fewer)
    pair = Pair(replace(read_build(exported["ane"]), language=()), model)
    rows = {row.limit.key: row for row in compare_ops(pair)}
    assert not rows["op.uncovered"].passed
    assert rows["op.plain_db"].passed


def test_what_the_reference_cannot_take_is_counted_not_raised(
    exported: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
        yield Case("normal", [torch.ones(shapes[0])], [torch.ones(2) @ torch.ones(3)])

    pieces = EncoderPieces.__iter__
    monkeypatch.setattr(
        EncoderPieces, "__iter__", lambda self: (replace(piece, cases=cases) for piece in list(pieces(self))[:1])
    )
    pair = Pair(replace(read_build(exported["ane"]), language=()), model)
    (finding,) = [each for each in op_findings(pair) if each.problem != NOWHERE]
    assert "the reference takes nothing of shape" in finding.problem


def test_the_worst_row_is_told_from_the_whole() -> None:
    expected = torch.randn(4096, 32)
    actual = expected * (1 + 1e-6)
    actual[77] *= -1
    worst = worst_row(expected, actual, (0,), 0.0)
    assert worst.snr_db == pytest.approx(-20 * math.log10(2), abs=0.01)
    assert worst.index[0] == 77
    assert worst.program == pytest.approx(-worst.reference, rel=1e-5)
    assert worst_row(expected, expected, (0,), 0.0).snr_db == math.inf
    actual[5, 6] = math.nan
    assert worst_row(expected, actual, (0,), 0.0).snr_db == -math.inf
    assert worst_row(expected, actual, (0,), 0.0).index == (5, 6)
    nothing = torch.zeros(3, 4)
    assert worst_row(nothing, nothing + 1e-3, (0,), 0.0).snr_db == -math.inf
    assert worst_row(nothing, nothing + 1e-3, (0,), 1.0).snr_db == pytest.approx(60, abs=0.01)


def test_a_part_of_a_module_is_run_and_the_module_left_alone(model: Any) -> None:
    mlp = model.decoder.layers[0].mlp
    gate, up = torch.randn(1, 3, 512), torch.randn(1, 3, 512)
    before = mlp(torch.ones(1, 1, 192))
    found = partly(mlp, None, given={"gate_proj": gate, "up_proj": up}, wanted="down_proj")
    assert torch.equal(found, torch.nn.functional.silu(gate) * up)
    assert torch.equal(mlp(torch.ones(1, 1, 192)), before)
