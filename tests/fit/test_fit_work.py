"""The closed form beside packages: every op that ships is counted once, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fit_limits import check, off

from export.encoder import EncoderGraph
from fastvlm_ref import load_checkpoint
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.shapes import decoder_shapes
from fastvlm_ref.synthetic.sizes import SIZES
from validation.fit.decoder import decode_work, prefill_work
from validation.fit.parts import Parts, parts_of
from validation.fit.sizes import Sizes, sizes_of
from validation.fit.stored import stored_as
from validation.fit.tower import tower_shapes, tower_work
from validation.fit.work import Weights, Work, flops, moved
from validation.lint import lint

STAGES = ("encode", "prefill", "decode")


def planned(built: Sizes) -> Parts:
    """What the closed form says of a build's numbers."""
    assert built.built is not None
    own = built.built
    sizes = Sizes("tiny", "checkpoint", built.vision, built.text, None)
    return parts_of(sizes, own.image_sizes[0], own.context, own.scheme, own.target)


def of_build(built: Sizes) -> Parts:
    """What its programs say."""
    assert built.built is not None
    return parts_of(built, built.built.image_sizes[0], 0, "", "")


@pytest.mark.parametrize("stage", STAGES)
def test_the_closed_form_is_what_ships(build: Path, stage: str) -> None:
    built = sizes_of(build)
    found, expected = getattr(planned(built), stage), getattr(of_build(built), stage)
    check("flops", off(flops(found), flops(expected)))
    check("bytes", off(moved(found), moved(expected)))


@pytest.mark.parametrize("kind", ["linear", "matmul"])
def test_an_op_that_is_left_out_is_more_than_the_limits(exported_tiny: Path, kind: str) -> None:
    built = sizes_of(exported_tiny)
    rest = [work for work in planned(built).prefill if work.op != kind]
    check("ops_left_out", off(flops(rest), flops(of_build(built).prefill)))


def test_a_build_is_counted_as_the_linter_counts(build: Path) -> None:
    built = sizes_of(build)
    assert built.built is not None
    for total in lint(build).totals:
        works = built.built.works[total.name]
        assert flops(works) == total.flops.total - total.flops.edge
        assert moved(works) == total.bytes.total - total.bytes.edge


def test_compressed_weights_are_known_by_their_form(gpu_tiny: Path, exported_tiny: Path) -> None:
    def forms(path: Path) -> set[str]:
        built = sizes_of(path).built
        assert built is not None
        return {weights.form for work in built.works["decode"] for weights in work.weights}

    assert forms(gpu_tiny) == {"dense", "channel"}
    assert forms(exported_tiny) == {"dense"}


def test_the_towers_shapes_are_the_graphs() -> None:
    model = load_checkpoint("tiny")
    graph = {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in EncoderGraph(model).named_parameters()
        if name.endswith(".weight")
    }
    assert tower_shapes(model.config.vision, model.config.text.hidden_size) == graph


@pytest.mark.parametrize("name", SIZES)
def test_the_decoders_shapes_are_the_modules(name: str) -> None:
    text = SIZES[name].text
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in Decoder(text).state_dict().items()}
    assert decoder_shapes(text) == expected


def test_work_grows_with_what_it_should(half: Sizes) -> None:
    """Four times the pixels are four times the convolutions and more than four of attention."""
    small, large = (flops(tower_work(half.vision, half.text.hidden_size, side)) for side in (512, 1024))
    assert 4 < large / small < 4.2
    short, long = (moved(decode_work(half.text, context, "ane")) for context in (1024, 2048))
    # a slice of keys and one of values: read, written, and read by a product, in fp16
    assert long - short > 3 * 2 * 2 * half.text.layers * half.text.kv_width * 1024
    one, two = (flops(prefill_work(half.text, rows, 2048, "ane")) for rows in (32, 64))
    assert off(two, 2 * one) < 1e-9


@pytest.mark.parametrize(("scheme", "target"), [("int8", "ane"), ("lut6", "ane"), ("lut4", "ane"), ("int4", "gpu")])
def test_schemes_change_bytes_and_nothing_else(half: Sizes, scheme: str, target: str) -> None:
    stored = stored_as(scheme, target, half.vision, half.text)
    dense = decode_work(half.text, 2048, target)
    small = decode_work(half.text, 2048, target, stored.weights)
    assert flops(small) == flops(dense)
    assert moved(small) < 0.6 * moved(dense)


def test_what_crosses_to_memory() -> None:
    work = Work("x", 0, (Weights(10, 40, "channel"),), state=5, tensors=(100, 1000))
    assert work.bytes == 10 + 5 + 1100
    assert work.traffic(None, frozenset()) == 15
    assert work.traffic(500, frozenset()) == 1015
    assert work.traffic(500, frozenset({"channel"})) == 1045
    assert work.traffic(500, frozenset({"block"})) == 1015
