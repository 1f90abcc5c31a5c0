"""A piece of a function computes what the function computes there, and a cut that is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvlm.build import Build, read_build
from fastvlm.errors import PackageError
from validation.host import LanguageInputs
from validation.metrics import snr_db
from validation.mil import MILModel
from validation.mil.package import Package, open_folder
from validation.program import Function, read_program
from validation.program.anchors import Anchors, Unmatched
from validation.program.cutting import Cut, Cutter

pytestmark = pytest.mark.usefixtures("one_thread")
PRECISION = "fp32"
LEAST_SNR = 120.0  # dB; measured 133


@pytest.fixture(scope="module")
def build(exported_tiny: Path) -> Build:
    return read_build(exported_tiny)


class Place:
    """A function cut behind one of its values: what both halves take and give, worked out from the facts alone."""

    def __init__(self, function: Function, index: int) -> None:
        self.marker = function.ops[index].result.name
        states = {value.name for value in function.states}
        inputs = {value.name for value in function.inputs} - states
        made = {value.name for op in function.ops[: index + 1] for value in op.outputs}
        results = {value.name for value in function.results}
        read = {value.name for op in function.ops[index + 1 :] for value in op.values} | results
        crossing = sorted(made & read)
        first, second = self.needed(function, crossing, 0), self.needed(function, results, index + 1, crossing)
        writes = [at for at, op in enumerate(function.ops) if op.type == "write_state"]
        self.states = sorted(states)
        early, late = any(at <= index for at in writes), any(at > index for at in writes)
        if early:
            first |= self.needed(function, [op.value("data").name for op in function.ops[: index + 1]
                                            if op.type == "write_state"], 0)  # fmt: skip
        self.first = sorted(first & inputs) + (self.states if early or first & states else [])
        self.second = sorted(second & inputs) + crossing + (self.states if late or second & states else [])
        self.crossing = crossing + (self.states if early else [])
        self.results = sorted(results - set(crossing)) + (self.states if late else [])
        self.passed = sorted(results & set(crossing))

    @staticmethod
    def needed(function: Function, ends: Any, start: int, begins: Any = ()) -> set[str]:
        """Names of all values that the ends are made of, walked backwards through the ops from `start` on."""
        wanted = set(ends) - set(begins)
        for op in reversed(function.ops[start:]):
            written = op.type == "write_state" and op.value("input").name in wanted
            if written or wanted & {value.name for value in op.outputs}:
                wanted |= {value.name for value in op.values if value.name} - set(begins)
        return wanted


def halves(package: Package, function: Function, index: int) -> tuple[Place, Cut, Cut]:
    place, cutter = Place(function, index), Cutter(package, function.name)
    first = cutter.cut(place.first, place.crossing, until=place.marker)
    return place, first, cutter.cut(place.second, place.results, since=place.marker)


def run_halves(package: Package, function: Function, index: int, data: dict[str, Any], state: Any) -> dict[str, Any]:
    """The function's results by way of its two halves; the state, where there is one, goes through both."""
    place, first, second = halves(package, function, index)
    given = dict(data)
    for names, cut in ((place.first, first), (place.second, second)):
        inputs = {name: given[name] for name in names if name not in place.states}
        given |= MILModel(cut.package, precision=PRECISION).predict(inputs, state if place.states else None)
    return {name: given[name] for name in (*place.results, *place.passed) if name not in place.states}


def language_data(build: Build, function: str) -> dict[str, Any]:
    query = build.query if function == "prefill" else 1
    rows = np.random.default_rng(0).standard_normal((query, 192)).astype(np.float32)
    return LanguageInputs(build.head_dim, build.rope_theta, build.context).inputs(rows, 300, query)


def test_cut_anywhere_the_decoder_gives_the_same_bits(build: Build) -> None:
    """Every eleventh place of both functions, with the state before and behind every place."""
    path = build.language[0].package
    package, generator = open_folder(path), np.random.default_rng(1)
    for function in read_program(path).functions:
        model, data = MILModel(path, function.name, PRECISION), language_data(build, function.name)
        earlier = generator.standard_normal(model.make_state().read_state("kvCache").shape).astype(np.float16)
        whole = model.make_state()
        whole.write_state("kvCache", earlier)
        expected = model.predict(data, whole)
        places = [at for at, op in enumerate(function.ops[:-1]) if op.outputs][::11]
        assert len(places) > 15
        for at in places:
            state = model.make_state()
            state.write_state("kvCache", earlier)
            found = run_halves(package, function, at, data, state)
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in expected), function.ops[at].title
            assert np.array_equal(state.read_state("kvCache"), whole.read_state("kvCache")), function.ops[at].title


def test_cut_anywhere_the_encoder_gives_the_same_numbers(build: Build) -> None:
    """To float32's end: a map that is handed over is laid out anew, and sums over it may run in another order."""
    assert build.encoder is not None
    (function,) = read_program(build.encoder).functions
    package, side = open_folder(build.encoder), build.image_sizes[0]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = {"image": Image.fromarray(pixels)}
    expected = MILModel(build.encoder, function.name, PRECISION).predict(data)["imageFeatures"]
    for at in range(0, len(function.ops) - 1, 11):
        found = run_halves(package, function, at, data, None)["imageFeatures"]
        assert snr_db(expected, found) >= LEAST_SNR, function.ops[at].title


@pytest.fixture
def prefill(build: Build) -> tuple[Cutter, Anchors]:
    path = build.language[0].package
    function = next(each for each in read_program(path).functions if each.name == "prefill")
    return Cutter(open_folder(path), "prefill"), Anchors(function)


def test_a_piece_holds_its_ops_and_their_constants_alone(prefill: tuple[Cutter, Anchors]) -> None:
    cutter, anchors = prefill
    op = anchors.weighted("layers.1.mlp.gate_proj")
    cut = cutter.cut([op.need("x").name], [op.result.name])
    assert {f"prefill:{place}" for place in cut.places} == {op.where}
    block = next(iter(cut.package.program.functions["main"].block_specializations.values()))
    kinds = [operation.type for operation in block.operations]
    assert kinds.count("conv") == 1
    assert set(kinds) == {"conv", "const"}
    model = MILModel(cut.package, precision=PRECISION)
    assert model.inputs[op.need("x").name].dtype == "fp16"
    assert model.outputs[op.result.name].shape == (1, 512, 1, 64)


def test_free_axes_are_granted_where_every_op_allows_them(prefill: tuple[Cutter, Anchors]) -> None:
    cutter, anchors = prefill
    gate, down = anchors.given("layers.0.mlp.gate_proj").name, anchors.taken("layers.0.mlp.down_proj").name
    taken, up = anchors.taken("layers.0.mlp.gate_proj").name, anchors.given("layers.0.mlp.up_proj").name
    cut = cutter.cut([taken], [gate], free=(3,))
    assert cut.free == (3,)
    found = MILModel(cut.package, precision=PRECISION).predict({taken: torch.ones(1, 192, 1, 3)})[gate]
    assert found.shape == (1, 512, 1, 3)
    assert cutter.cut([gate, up], [down], free=(3,)).free == (3,)
    normed = cutter.cut([anchors.added("layers.0.self_attn.o_proj").name], [taken], free=(3,))
    assert normed.free == ()  # it splits


def test_what_is_no_piece_is_refused(prefill: tuple[Cutter, Anchors]) -> None:
    cutter, anchors = prefill
    taken, given = anchors.taken("layers.0.mlp.gate_proj").name, anchors.given("layers.0.mlp.gate_proj").name
    other, summed = anchors.given("layers.0.mlp.up_proj").name, anchors.added("layers.0.mlp.down_proj").name
    refused = {
        f"{given} is made without {other}": ([taken, other], [given]),
        f"nothing is computed between {given} and {given}": ([given], [given]),
        f"{summed} is also made of ": ([given, other], [summed]),
        "no value nobody": (["nobody"], [given]),
        "kvCache is also made of": (["position"], ["kvCache"]),
    }
    for message, names in refused.items():
        with pytest.raises(PackageError, match=message):
            cutter.cut(*names)
    with pytest.raises(Unmatched, match="made of constants alone"):
        cutter.cut([taken], ["layers_0_mlp_gate_proj_weight_to_fp16"])
    with pytest.raises(PackageError, match="no function 'encode'"):
        Cutter(cutter.package, "encode")


def test_a_state_is_not_read_as_it_was_before_the_piece(prefill: tuple[Cutter, Anchors]) -> None:
    """Layer 1's keys, asked for behind layer 2: what lies in the state by then is not what the value was made of."""
    cutter, anchors = prefill
    begins = [anchors.given("layers.1.self_attn.q_proj").name, "ropeCos", "ropeSin", "causalMask", "kvCache"]
    end, since = anchors.taken("layers.1.self_attn.o_proj").name, anchors.given("layers.3.self_attn.v_proj").name
    with pytest.raises(Unmatched, match="as it was before the piece"):
        cutter.cut(begins, [end], since=since)
