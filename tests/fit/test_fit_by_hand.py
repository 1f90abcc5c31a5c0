"""Numbers of the estimate worked out here, apart from the code: FLOPs, states, maps, limits, overheads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fit_limits import check, off

from fastvlm.devices import device
from validation.fit import estimate, sizes_of
from validation.fit.check import gpu_layer, reached
from validation.fit.decoder import decode_work, prefill_work
from validation.fit.estimating import Estimate
from validation.fit.memory import memory_of
from validation.fit.parts import Parts, parts_of
from validation.fit.sizes import Sizes
from validation.fit.tower import tower_work
from validation.fit.work import Weights, Work, flops

PHONE = "iPhone 15 Pro"
GB = 10**9
# layers, hidden, heads, heads of keys and values, width of a head, inner, vocabulary: Qwen2's and Vicuna's configs
QWEN2_7B = (28, 3584, 28, 4, 128, 18_944, 152_064)
VICUNA_7B = (32, 4096, 32, 32, 128, 11_008, 32_000)


def test_the_tower_computes_what_others_counted(half: Sizes) -> None:
    """487 GFLOP at 1024 were counted on PyTorch's own graph, which has no norms of maxima."""
    check("tower_flops", off(flops(tower_work(half.vision, half.text.hidden_size, 1024)), 487e9))


@pytest.mark.parametrize(("name", "numbers"), [("7b", QWEN2_7B), ("vicuna-7b", VICUNA_7B)])
def test_a_step_multiplies_by_every_weight_once(name: str, numbers: tuple[int, ...]) -> None:
    layers, hidden, heads, kv_heads, width, inner, rows = numbers
    weights = layers * (2 * hidden * heads * width + 2 * hidden * kv_heads * width + 3 * hidden * inner) + hidden * rows
    biases = layers * (heads + 2 * kv_heads) * width if name == "7b" else 0
    works = decode_work(sizes_of(name).text, 2048, "ane")
    products = sum(work.count * work.flops for work in works if work.op == "linear")
    # a head in parts of at most 16,384 rows, each a multiple of 8, has a few rows too many
    assert 0 <= products - (2 * weights + biases) <= 2 * hidden * 10 * 64
    attention = sum(work.count * work.flops for work in works if work.op == "matmul")
    assert attention == layers * 2 * 2 * heads * width * 2048


@pytest.mark.parametrize(
    ("name", "state"),
    [("0.5b", 25_165_824), ("1.5b", 58_720_256), ("7b", 117_440_512), ("vicuna-7b", 1_073_741_824)],
)
def test_the_state_of_each_size(name: str, state: int) -> None:
    """2 · layers · kv heads · head dim · 2048 positions · 2 bytes."""
    held = estimate(sizes_of(name), "MacBook Pro M4", "fp16").memory
    assert held.state == state
    # three maps of 96 channels at half of 1024 pixels, in fp16
    assert held.maps == 3 * 96 * 512 * 512 * 2
    assert held.need == held.weights + state + 150_994_944


def test_a_step_reads_the_whole_state_and_writes_one_position(half: Sizes) -> None:
    layers, width = 24, 2 * 64
    state = sum(work.count * work.state for work in decode_work(half.text, 2048, "ane"))
    assert state == layers * 2 * width * 2 * (2048 + 1)
    rows = sum(work.count * work.state for work in prefill_work(half.text, 64, 2048, "ane"))
    # of the last layer prefill writes keys and values, and reads one of them, to return a number of it
    assert rows == layers * 2 * width * 2 * 64 + (2 * (layers - 1) + 1) * width * 2 * 2048


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_builds_state_is_moved_as_the_closed_form_says(build: Path, stage: str) -> None:
    def states(parts: Parts) -> int:
        return sum(work.count * work.state for work in getattr(parts, stage))

    built = sizes_of(build)
    assert built.built is not None
    own = built.built
    planned = parts_of(replace(built, built=None), own.image_sizes[0], own.context, own.scheme, own.target)
    assert states(planned) == states(parts_of(built, own.image_sizes[0], 0, "", ""))


def test_layers_that_are_stored_alike_are_counted_as_if_one_by_one(half: Sizes) -> None:
    """One layer of 24 stored otherwise: its bytes are its own, and FLOPs are those of 24 layers."""

    def stores(layer: str, shape: tuple[int, ...]) -> Weights:
        dense = 2 * shape[0] * shape[1]
        return Weights(dense // 2 if ".layers.7." in layer else dense, dense)

    works, plain = (decode_work(half.text, 2048, "ane", *one) for one in ((stores,), ()))
    assert flops(works) == flops(plain)

    def stored(found: list[Work]) -> int:
        return sum(work.count * weights.stored for work in found for weights in work.weights)

    assert stored(plain) - stored(works) == 896 * (2 * 896 + 2 * 128 + 3 * 4864)


def test_any_number_of_layers_costs_no_time(half: Sizes) -> None:
    deep = replace(half.text, layers=20_000)
    assert len(decode_work(deep, 2048, "ane")) == len(decode_work(half.text, 2048, "ane"))


# --- memory


@pytest.mark.parametrize(
    ("name", "most"), [("iPhone 12 mini", 2.4), ("iPhone 13 Pro", 4.2), ("iPhone 15 Pro", 6.0), ("iPhone 17 Pro", 6.0)]
)
def test_a_tenth_of_the_most_is_the_apps(name: str, most: float) -> None:
    there = device(name)
    room = round(0.9 * most * GB)
    assert memory_of(there, room, 0, 0).fits
    over = memory_of(there, room + 1, 0, 0)
    assert (over.verdict, over.leaves_room, over.fits) == ("with increased-memory-limit", False, False)
    assert memory_of(there, round(most * GB) + 1, 0, 0).verdict == "no"


@pytest.mark.parametrize(
    ("name", "memory"), [("MacBook Air M1", 8), ("MacBook Pro M3 Pro", 18), ("Mac Studio M4 Max", 36)]
)
def test_two_thirds_of_a_mac(name: str, memory: int) -> None:
    held = memory_of(device(name), 1, 1, 1)
    assert held.limit == held.increased == pytest.approx(memory * GB * 2 / 3, abs=1)


@pytest.mark.parametrize(
    ("name", "told"), [("iPhone 12", True), ("iPhone 12 mini", True), ("iPad 10", True), ("iPhone 13 Pro", False)]
)
def test_what_is_reported_of_4_gb_is_told(name: str, told: bool) -> None:
    assert ("apple/ml-fastvlm#8" in memory_of(device(name), 1, 1, 1).basis) == told


def test_a_limit_names_the_device_that_it_was_measured_on() -> None:
    """A line of a table may stand for several devices, so that "it" would say nothing."""
    assert memory_of(device("iPhone 13 Pro"), 1, 1, 1).basis.startswith("measured on iPhone 13 Pro: ")


def test_encoder_and_language_model_fold_each_on_its_own_engine() -> None:
    """The encoder of a build for the GPU still runs on the Neural Engine, which on A14 makes its int8 fp16."""
    encode = (Work("conv", 0, (Weights(100, 200, "channel"),)),)
    decode = (Work("linear", 0, (Weights(1000, 2000, "channel"),)),)
    parts = Parts(estimate(sizes_of("0.5b"), PHONE).files, 0, encode, (), decode, 64)
    folds, nothing = frozenset({"channel"}), frozenset[str]()
    assert parts.held(folds, nothing) == parts.files.weights + 100
    assert parts.held(nothing, folds) == parts.files.weights + 1000


# --- what calls cost


def overheads(found: Estimate) -> list[float]:
    return [each.overhead for each in found.stages]


def test_a_call_of_each_package_costs_its_floor() -> None:
    """7b in fp16 for the engine: 16 packages, two of them the head's, which prefill does not call; A17 Pro: 0.23 ms."""
    found = estimate(sizes_of("7b"), PHONE, "fp16")
    assert (len(found.files.language), found.files.layered, found.stages[1].calls) == (16, 14, 5)
    assert overheads(found) == pytest.approx([0.23e-3, 5 * 14 * 0.23e-3, 16 * 0.23e-3])
    assert overheads(estimate(sizes_of("0.5b"), "iPhone 16", "fp16")) == pytest.approx([0.11e-3, 5 * 0.11e-3, 0.11e-3])


@pytest.mark.long
def test_a_chain_is_called_package_by_package(chained_tiny: Path, exported_tiny: Path) -> None:
    chain, whole = (estimate(sizes_of(build), PHONE) for build in (chained_tiny, exported_tiny))
    assert (len(chain.files.language), chain.files.layered) == (5, 4)
    assert overheads(chain) == pytest.approx([0.23e-3, 4 * 0.23e-3, 5 * 0.23e-3])
    assert [each.flops for each in chain.stages] == pytest.approx([each.flops for each in whole.stages], rel=1e-4)
    assert chain.memory.need == pytest.approx(whole.memory.need, rel=1e-3)


def test_the_gpu_prefills_what_the_gpu_is_asked_for(half: Sizes) -> None:
    found = estimate(half, PHONE, "fp16", target="gpu")
    assert overheads(found) == pytest.approx([0.23e-3, 5 * 24 * gpu_layer(), 24 * gpu_layer()])
    encode, prefill, _ = found.stages
    assert prefill.bound == "compute"
    # A17 Pro's GPU: 2.15 TFLOP/s
    assert prefill.compute == pytest.approx(prefill.flops / (reached("gpu").compute * 2.15e12), rel=0.02)
    assert encode.seconds == estimate(half, PHONE, "fp16").stages[0].seconds, "the encoder stays on the engine"
