"""When a model is compared layer by layer, in how many steps, and what is said about it first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastvlm.build import read_build
from fastvlm.errors import UsageError
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.synthetic.sizes import SIZES
from validation.layerwise.expected import LOWER_RUNGS, Pace, announcement, expected_seconds, measured_pace, work_of
from validation.layerwise.need import decoder_weights, needs_layerwise
from validation.steps import IN_MEMORY, LAYERWISE, steps_for

MODEL = load_checkpoint("tiny", stream=True)
TEXT = MODEL.config.text
PACE = Pace(1e9, 4e10, 2e9)


def test_what_takes_more_than_half_of_the_memory(exported_tiny: Path) -> None:
    build, taken = read_build(exported_tiny), decoder_weights(TEXT) * 6
    assert not needs_layerwise(build, TEXT)
    assert not needs_layerwise(build, TEXT, taken)
    assert needs_layerwise(build, TEXT, taken - 1)
    assert not needs_layerwise(replace(build, language=()), TEXT, 0)
    assert needs_layerwise(build, SIZES["7b"].text, 16 << 30)  # of a machine with 32 GiB


def test_weights_are_counted_once() -> None:
    assert TEXT.tied_head
    assert decoder_weights(TEXT) == sum(weights.numel() for weights in load_checkpoint("tiny").decoder.parameters())
    head = TEXT.vocab_size * TEXT.hidden_size
    assert decoder_weights(replace(TEXT, tied_head=False)) == decoder_weights(TEXT) + head


def test_how_many_steps() -> None:
    assert (steps_for(None, layerwise=False), steps_for(None, layerwise=True)) == (IN_MEMORY, LAYERWISE) == (64, 8)
    assert steps_for(1, layerwise=True) == 1
    assert steps_for(256, layerwise=True) == steps_for(256, layerwise=False) == 256
    for wrong in (0, 257, -1):
        with pytest.raises(UsageError, match=f"{wrong}, expected 1 to 256"):
            steps_for(wrong, layerwise=True)


@pytest.mark.parametrize("tied", [True, False])
def test_work_is_counted(tied: bool) -> None:
    text = replace(TEXT, tied_head=tied)
    work = work_of(text, [10, 20], [3, 5], 100)
    assert work.layer == sum(weights.numel() for weights in MODEL.decoder.layers[0].parameters())
    assert work.decoder + text.hidden_size == decoder_weights(text) - (0 if tied else work.head)
    assert (work.positions, work.passes, work.tokens, work.samples) == (30, 5, 8, 2)


def test_more_work_takes_longer() -> None:
    work = work_of(SIZES["7b"].text, [310] * 3, [8] * 3, 3 * 1024**2)
    seconds = expected_seconds(work, PACE)
    more = [
        replace(work, passes=64, tokens=192), replace(work, positions=2000), replace(work, pixels=4 * work.pixels),
        replace(work, layers=40), replace(work, runs=3),
    ]  # fmt: skip
    assert all(expected_seconds(other, PACE) > seconds for other in more)
    # One pass alone: 7.6e9 weights at 1e9 a second by the reference, as many by the package, and the rungs below.
    bare = replace(work, passes=1, tokens=0, positions=0, pixels=0)
    assert expected_seconds(bare, PACE) == pytest.approx((2 + LOWER_RUNGS) * bare.decoder / PACE.read)


def test_what_is_said_first() -> None:
    work = work_of(SIZES["7b"].text, [310] * 3, [8] * 3, 3 * 1024**2)
    said = announcement(work, 725.0)
    assert "28 layers of 0.93 GB, 8 steps on 3 samples, about 12 minutes" in said
    assert "about 40 seconds" in announcement(work, 40.4)


def test_the_pace_of_this_machine() -> None:
    pace = measured_pace(MODEL)
    assert min(pace.read, pace.products, pace.row) > 0
    assert all(layer.mlp.up_proj.weight.device.type == "meta" for layer in MODEL.decoder.layers)
