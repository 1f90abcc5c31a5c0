"""What is taken for each chip: figures of the table, and a sentence for each that it lacks."""

from __future__ import annotations

import pytest

from fastvlm.devices import CHIPS, DEVICES, ENGINES, UNVERIFIED, Chip
from validation.fit.chips import COUNTS_INT8, engine_speeds, folded, gpu_speeds
from validation.fit.timing import Efficiency, stage
from validation.fit.work import Weights, Work
from validation.lint.rules import RULES

BY_NAME = {chip.name: chip for chip in CHIPS}


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_every_chip_has_speeds(chip: Chip) -> None:
    engine, gpu = engine_speeds(chip), gpu_speeds(chip, 1e-3)
    assert 5e12 < engine.flops < 25e12
    assert 25e9 < engine.bandwidth < 130e9
    assert engine.on_chip is not None
    assert 1e6 < engine.on_chip < 6e6
    assert 1e12 < gpu.flops < 20e12
    assert chip.memory_gbs is not None
    assert gpu.bandwidth == chip.memory_gbs.value * 1e9 >= engine.bandwidth


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_nothing_is_taken_in_silence(chip: Chip) -> None:
    """A figure that is missing, unverified or halved is a sentence that names the chip."""
    told = " ".join((*engine_speeds(chip).assumed, *gpu_speeds(chip, 0).assumed))
    memory = chip.memory_gbs
    expected = {
        "half of Apple's": chip.engine.name in COUNTS_INT8 and (chip.tops is not None or chip.tflops is None),
        "engine reads": chip.engine_gbs is None,
        "stays in": chip.engine.working_set is None or chip.working_set is not None,
        f"TFLOP/s of {chip.name}'s GPU": chip.gpu_tflops is None,
        f"published TOPS of {chip.name}'s engine": chip.tops is None and chip.tflops is None,
        f"of {chip.name}'s memory stand in the table unverified": memory is not None and memory.source == UNVERIFIED,
        f"TOPS of {chip.name}'s engine stand in the table unverified": (
            chip.tops is not None and chip.tops.source == UNVERIFIED
        ),
        f"{chip.name}'s engine: 4.2 MB predicted": chip.working_set is not None,
    }
    assert {words: words in told for words in expected} == expected


def test_every_device_has_a_chip_of_the_table() -> None:
    assert {device.chip.name for device in DEVICES} <= set(BY_NAME)


def test_a_stand_in_is_of_the_same_line_and_tier() -> None:
    assert "M4's 4.6" in " ".join(gpu_speeds(BY_NAME["M5"], 0).assumed)
    assert "A18's" in " ".join(gpu_speeds(BY_NAME["A19 Pro"], 0).assumed)


def test_engines_fold_as_the_linter_says() -> None:
    (rule,) = [rule for rule in RULES if rule.id == "scales-fold"]
    for engine in ENGINES:
        assert ("channel" in folded(engine.name)) == rule.holds_for(engine)
        assert "palette" not in folded(engine.name)
    assert [engine.name for engine in ENGINES if "block" in folded(engine.name)] == ["H13", "H14"]


def test_a_folded_weight_takes_the_time_of_a_dense_one() -> None:
    def seconds(chip: str, form: str) -> float:
        work = [Work("linear", 0, (Weights(10**9, 2 * 10**9, form),))]
        return stage("x", work, engine_speeds(BY_NAME[chip]), Efficiency(1, 1)).bandwidth

    assert seconds("M1", "channel") == 2 * seconds("M1", "palette")
    assert seconds("M2", "channel") == seconds("M2", "palette")


def test_a_stage_waits_for_the_slower_of_products_and_bytes() -> None:
    speeds = engine_speeds(BY_NAME["M1"])
    works = [Work("a", 11 * 10**12), Work("b", 0, state=round(60.87e9), count=2)]
    made = stage("x", works, speeds, Efficiency(0.5, 1.0), calls=3, packages=2)
    assert made.compute == pytest.approx(3 * 2.0)
    assert made.bandwidth == pytest.approx(3 * 2.0)
    assert made.overhead == pytest.approx(3 * 2 * 0.23e-3)
    assert made.seconds == pytest.approx(12.00138)
    assert (made.flops, made.bytes) == (33 * 10**12, 6 * round(60.87e9))
    assert stage("x", works[:1], speeds, Efficiency(0.5, 1.0)).bound == "compute"
    assert stage("x", works[1:], speeds, Efficiency(0.5, 1.0)).bound == "bandwidth"
    assert stage("x", [], speeds, Efficiency(0.5, 1.0)).bound == "overhead"
