"""What a channels-first decoder is made of: 1x1 convolutions, attention over a cache that ends in positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_messages import _declare, _fill, add_op, empty_program, give, one_op
from mil_programs import convert
from test_mil_packed import half_type, needs_fbgemm
from test_mil_pieces import halves

from fastvlm.errors import PackageError
from validation.mil import MILModel
from validation.mil.ops import batched, packed, pointwise
from validation.mil.ops.packed import BLOCK, PackedLinear

HALF = torch.float16
WIDE = 512  # channels of a square weight that is just worth laying out
POSITIONS = [(1,), (1, 1), (5,), (1, 7), (3, 3), (1, 64)]


@pytest.fixture
def on_threads() -> Iterator[Callable[[Callable[[], torch.Tensor]], list[torch.Tensor]]]:
    """Computes something on one thread, on two, and on three."""
    before = torch.get_num_threads()

    def run(compute: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(compute())
        return results

    yield run
    torch.set_num_threads(before)


def check_one_sum(got: torch.Tensor, exact: torch.Tensor, magnitudes: torch.Tensor) -> None:
    """got fp16 is a float32 sum rounded once: exact is that sum in float64, magnitudes that of its terms' sizes."""
    assert got.dtype == HALF
    assert got.shape == exact.shape
    rounding = exact.abs() * 2**-11 + 2**-25
    assert ((got.double() - exact).abs() <= rounding + magnitudes * 2**-21).all()  # float32 has 2**-24


def check_conv(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    wide = None if bias is None else bias.double()
    exact = F.linear(x.double().movedim(1, -1), weight.double().flatten(1), wide).movedim(-1, 1)
    sizes = F.linear(x.double().abs().movedim(1, -1), weight.double().abs().flatten(1)).movedim(-1, 1)
    check_one_sum(got, exact, sizes)


def pictures(batch: int, channels: int, positions: tuple[int, ...]) -> torch.Tensor:
    return halves(batch, channels, *positions, seed=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 300), st.sampled_from(POSITIONS), st.integers(1, 2), st.booleans())
def test_a_1x1_convolution_is_one_sum_rounded_once(
    blocks: int, channels: int, positions: tuple[int, ...], batch: int, biased: bool
) -> None:
    x = pictures(batch, channels, positions)
    weight = halves(blocks * BLOCK, channels, *[1] * len(positions))
    bias = halves(blocks * BLOCK, seed=2) if biased else None
    check_conv(pointwise._packed(x, pointwise._pack(weight, bias)), x, weight, bias)
    for given_weight, given_bias in ((weight, bias), (weight.float(), None if bias is None else bias.float())):
        few = pointwise.few(x, given_weight, given_bias)
        assert few is not None
        check_conv(few, x, weight, bias)


@pytest.mark.parametrize("rows", [1, 5, 7, 9, 64])
def test_few_positions_give_the_same_bytes_on_any_number_of_threads(rows: int, on_threads: Any) -> None:
    """Torch's convolution does not: of these it fails from 5 on."""
    x, weight = halves(1, 896, 1, rows), halves(1536, 896, 1, 1, seed=1)
    layout = pointwise._pack(weight)
    for compute in (
        lambda: pointwise._packed(x, layout),
        lambda: pointwise.few(x, weight, None),
        lambda: pointwise.few(x, weight.float(), None),
    ):
        first, *others = on_threads(compute)
        assert all(torch.equal(first, other) for other in others)


def conv_model(positions: tuple[int, ...], precision: str = "fp16", **options: Any) -> tuple[MILModel, np.ndarray]:
    """One convolution of an fp16 picture, and that picture."""
    channels = options.pop("channels", WIDE)
    x = halves(1, channels, *positions).numpy()
    weight = halves(WIDE, WIDE, *[1] * len(positions), seed=1).numpy()
    spec, block = empty_program({"x": x})
    add_op(block, "conv", {"y": "fp16"}, {"x": "@x", "weight": weight, **options})
    give(spec, block, ["y"])
    return MILModel(spec, precision=precision), x


def bound(model: MILModel) -> list[Any]:
    """The weight, as the op takes it."""
    taken = [value for value in model.plan.binder.frame() if isinstance(value, (PackedLinear, torch.Tensor))]
    return [value for value in taken if isinstance(value, PackedLinear) or value.numel() >= WIDE * WIDE]


PLAIN = {"strides": np.int32([1, 1]), "pad_type": "custom", "pad": np.int32([0, 0, 0, 0])}
PLAIN |= {"dilations": np.int32([1, 1]), "groups": np.int32(1)}


@needs_fbgemm
@pytest.mark.parametrize("options", [{}, PLAIN, {"pad_type": "same"}])
def test_a_large_weight_is_laid_out_for_few_positions(options: dict[str, Any]) -> None:
    for positions in ((1, 1), (1, 64), (8, 16)):
        (layout,) = bound(conv_model(positions, **options)[0])
        assert isinstance(layout, PackedLinear)
        assert (layout.outputs, layout.inputs) == (WIDE, WIDE)
    (layout,) = bound(conv_model((64,))[0])  # of rank 3 alike
    assert isinstance(layout, PackedLinear)


@needs_fbgemm
def test_other_convolutions_keep_their_weight() -> None:
    kept = bound(conv_model((1, pointwise.FEW + 1))[0])
    assert [tensor.dtype for tensor in kept] == [HALF], "raised for each call: small beside its product"
    for options in ({"strides": np.int32([2, 2])}, {"pad_type": "custom", "pad": np.int32([0, 1, 0, 0])}):
        assert [tensor.dtype for tensor in bound(conv_model((1, 4), **options)[0])] == [torch.float32], options
    assert [tensor.dtype for tensor in bound(conv_model((32, 32))[0])] == [torch.float32], "pictures raise it once"


@needs_fbgemm
@pytest.mark.parametrize("precision", ["fp16", "fp16-accumulate"])
def test_beyond_half_the_memory_the_weight_stays_fp16(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is not laid out is not raised either: that would take twice the memory that was denied."""
    most = 2 * WIDE * WIDE
    monkeypatch.setattr("validation.mil.plan.half_of_memory", lambda: most)
    if precision == "fp16":
        assert isinstance(bound(conv_model((1, 1))[0])[0], PackedLinear)
    monkeypatch.setattr("validation.mil.plan.half_of_memory", lambda: most - 1)
    model, x = conv_model((1, 1), precision)
    assert [tensor.dtype for tensor in bound(model)] == [HALF]
    (got,) = model.predict({"x": x}).values()
    (exact,) = conv_model((1, 1), "fp32")[0].predict({"x": x}).values()
    np.testing.assert_allclose(got, exact, atol=0.02 if precision == "fp16" else 0.5)
    assert np.abs(exact).max() > 10


@needs_fbgemm
@pytest.mark.parametrize("positions", [(1, 1), (1, 5)])
def test_a_compressed_weight_takes_the_same_way(positions: tuple[int, int]) -> None:
    x = halves(1, WIDE, *positions)
    codes = np.random.default_rng(0).integers(-127, 128, (WIDE, WIDE, 1, 1)).astype(np.int8)
    scale = np.random.default_rng(1).uniform(0.001, 0.002, (WIDE, 1, 1, 1)).astype(np.float16)
    spec, block = empty_program({"x": x.numpy()})
    operation = block.operations.add(type="constexpr_blockwise_shift_scale")
    _fill(operation.attributes["name"], "w")
    for name, value in (("data", codes), ("scale", scale)):
        _fill(operation.inputs[name].arguments.add().value, value)
    _declare(operation.outputs.add(name="w").type, "fp16", codes.shape)
    add_op(block, "conv", {"y": "fp16"}, {"x": "@x", "weight": "@w", "bias": np.ones(WIDE, np.float16)})
    give(spec, block, ["y"])
    model = MILModel(spec)
    (layout,) = bound(model)
    assert isinstance(layout, PackedLinear)
    weight = torch.from_numpy(codes.astype(np.float32) * scale.astype(np.float32)).half()
    got = torch.from_numpy(model.predict({"x": x.numpy()})["y"])
    check_conv(got, x, weight, torch.ones(WIDE, dtype=HALF))


@pytest.mark.parametrize(
    "options",
    [
        {"bias": np.ones(7, np.float16)},
        {"bias": np.ones((WIDE, 1), np.float16)},
        {"strides": np.int32([1, 1, 1])},
        {"groups": np.int32(3)},
        {"pad_type": "round"},
        {"channels": WIDE - 1},
        {"dilations": np.int32([1, 1, 1])},
    ],
)
def test_what_contradicts_itself_is_named(options: dict[str, Any]) -> None:
    model, x = conv_model((1, 1), **options)
    with pytest.raises(PackageError, match=r"op 'y' \(conv\)"):
        model.predict({"x": x})


def test_a_parameter_that_cannot_be_read_is_named() -> None:
    with pytest.raises(PackageError, match="takes one value holds 2"):
        conv_model((1, 1), groups=np.int32([1, 1]))


def test_suits_asks_for_known_positions() -> None:
    square = half_type(WIDE, WIDE, 1, 1)
    unknown = type(square)(square.dtype, (1, WIDE, 1, None))
    assert not pointwise.CONV.suits(unknown, square)
    assert pointwise.CONV.suits(half_type(1, WIDE, 1, 1), square)
    assert not pointwise.CONV.suits(half_type(1, WIDE, 1, 1), half_type(WIDE, WIDE // 2, 1, 1))
    assert not pointwise.CONV.pays(half_type(0, WIDE, 1, 1))


# batch axes of the left operand, of the right one
BATCHES = [((2, 7), (2, 1)), ((2, 1), (2, 7)), ((2, 3, 4), (2, 1, 1)), ((5,), (5,)), ((3, 1), (1, 3)), ((1, 2), (3, 2))]
BATCHES += [((4,), (1,)), ((2, 3), (3,)), ((), (3,)), ((1, 7), (1, 1)), ((2, 7), (1, 1))]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BATCHES), st.sampled_from([1, 3, 40]), st.integers(1, 70), st.sampled_from([1, 20, 33]))
def test_matmul_is_one_sum_rounded_once(batches: Any, rows: int, terms: int, columns: int) -> None:
    left = halves(*batches[0], rows, terms)
    right = halves(*batches[1], terms, columns, seed=1)
    exact, sizes = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    for table in (1, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batched, "TABLE", table)
            patch.setattr(batched, "WHOLE", terms * columns)
            check_one_sum(batched.matmul(left, right), exact, sizes)
            check_one_sum(batched.matmul(left.mT.contiguous().mT, right.mT.contiguous().mT), exact, sizes)


KEYS = (2, 1, 64, 512)  # kv_heads, 1, D, C


def attention(kv_heads: int, group: int, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both products of attention as `matmul` gets them: queries times keys, values times weights."""
    keys, values = halves(kv_heads, *KEYS[1:]), halves(kv_heads, *KEYS[1:], seed=1)
    queries, weights = halves(kv_heads, group, 64, rows, seed=2), halves(kv_heads, group, rows, 512, seed=3)
    return [(queries.mT, keys), (values, weights.mT)]


@pytest.mark.parametrize("rows", [1, 64])
def test_attention_neither_repeats_nor_raises_a_cache_that_groups_share(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = [left.double() @ right.double() for left, right in attention(2, 7, rows)]
    sizes = [left.double().abs() @ right.double().abs() for left, right in attention(2, 7, rows)]

    whole = torch.matmul

    def refuse(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.shape[:-2] == right.shape[:-2], "torch repeats what broadcasts"
        return whole(left, right)

    monkeypatch.setattr(torch, "matmul", refuse)
    got = [batched.matmul(left, right) for left, right in attention(2, 7, rows)]
    for result, exact, size in zip(got, want, sizes, strict=True):
        check_one_sum(result, exact, size)


@needs_fbgemm
def test_the_scores_of_a_step_are_sums_of_table_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    bag = torch.embedding_bag
    monkeypatch.setattr(torch, "embedding_bag", lambda *given, **named: (counted.append(1), bag(*given, **named))[1])
    (queries, keys), (values, weights) = attention(2, 7, 1)
    assert packed.is_here()
    counted.clear()
    batched.matmul(queries, keys)
    assert len(counted) == 1
    batched.matmul(values, weights)
    assert len(counted) == 1, "values lie across: their columns are no table's rows"


@pytest.mark.parametrize("group", [1, 5, 6, 7, 9, 14])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("table", [1, 1 << 30])
def test_a_step_s_products_give_the_same_bytes_on_any_number_of_threads(
    kv_heads: int, group: int, table: int, on_threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "TABLE", table)
    for left, right in attention(kv_heads, group, 1):
        first, *others = on_threads(lambda left=left, right=right: batched.matmul(left, right))
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    "shapes", [((0, 4), (4, 3)), ((2, 0, 4), (2, 4, 3)), ((2, 3, 0), (2, 0, 5)), ((0, 2, 3), (0, 3, 2))]
)
def test_nothing_times_something(shapes: Any) -> None:
    x, y = (np.ones(shape, np.float16) for shape in shapes)
    got = one_op("matmul", {"x": (x,), "y": (y,)}, "fp16", "fp16")
    np.testing.assert_array_equal(got, x @ y)


class Step(torch.nn.Module):
    """One layer's attention as a channels-first decoder writes it, over a state whose last axis is the position."""

    def __init__(self, query: int, context: int, kv_heads: int = 2, group: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes = kv_heads, group, head_dim, query
        width = kv_heads * group * head_dim
        self.q, self.o = torch.nn.Conv2d(width, width, 1), torch.nn.Conv2d(width, width, 1, bias=False)
        self.k, self.v = (torch.nn.Conv2d(width, kv_heads * head_dim, 1) for _ in "kv")
        self.register_buffer("kv", torch.zeros(2, kv_heads, head_dim, context))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        kv_heads, group, head_dim, query = self.sizes
        new = torch.cat([part(x).reshape(1, kv_heads, head_dim, query) for part in (self.k, self.v)], 0)
        self.kv[0:2, :, :, position[0] : position[0] + query] = new
        keys, values = (self.kv[row].reshape(kv_heads, 1, head_dim, -1) for row in (0, 1))
        scores = torch.matmul(self.q(x).reshape(kv_heads, group, head_dim, query).transpose(2, 3), keys)
        weights = torch.softmax(scores / 8 + mask, -1)
        mixed = torch.matmul(values, weights.transpose(2, 3))
        return x + self.o(mixed.reshape(1, -1, 1, query))


CONTEXT = 256


def step_model(query: int) -> MILModel:
    shapes = {"x": (1, WIDE, 1, query), "mask": (1, 1, query, CONTEXT)}
    inputs = [ct.TensorType(name, shape, dtype=np.float16) for name, shape in shapes.items()]
    states = [ct.StateType(ct.TensorType(shape=(2, 2, 64, CONTEXT), dtype=np.float16), name="kv")]
    example = [*(torch.zeros(shape) for shape in shapes.values()), torch.zeros(1, dtype=torch.int32)]
    model = convert(
        Step(query, CONTEXT),
        example,
        inputs=[*inputs, ct.TensorType("position", (1,), dtype=np.int32)],
        states=states,
        outputs=[ct.TensorType("y", dtype=np.float16)],
    )
    return MILModel(model)


def step_inputs(query: int, position: int) -> dict[str, np.ndarray]:
    visible = np.arange(CONTEXT)[None] <= position + np.arange(query)[:, None]
    mask = np.where(visible, 0, -1e4).astype(np.float16)[None, None]
    x = halves(1, WIDE, 1, query, seed=position).numpy()
    return {"x": x, "mask": mask, "position": np.array([position], np.int32)}


@needs_fbgemm
def test_a_chunk_and_a_step_are_torch_s_and_the_cache_is_never_copied() -> None:
    chunk, step, reference = step_model(8), step_model(1), Step(8, CONTEXT).eval()
    state = chunk.make_state()
    place = state.boxes["kv"].tensor.data_ptr()
    for model, query, position in ((chunk, 8, 0), (chunk, 8, 8), (step, 1, 16), (step, 1, 17)):
        inputs = step_inputs(query, position)
        views: list[int] = []

        def look(name: str, kind: str, value: Any, views: list[int] = views) -> None:
            if kind == "slice_by_index" and value.ndim > 1:
                views.append(value.untyped_storage().data_ptr())

        got = model.predict(inputs, state, hook=look)["y"]
        reference.sizes = (*reference.sizes[:3], query)
        with torch.no_grad():
            given = [torch.from_numpy(array) for array in inputs.values()]
            want = reference(given[0].float(), given[1].float(), given[2])
        np.testing.assert_allclose(got, want.numpy(), atol=4e-3)
        assert state.boxes["kv"].tensor.data_ptr() == place
        assert views == [place] * 2, "keys and values are read where they lie"
        updates = [one for one in model.plan.body.steps if one.type == "slice_update"]
        assert [one.function is one.inplace for one in updates] == [True]
        assert len(bound(model)) == 2, "q and o; k and v are small"
    assert not state.read_state("kv")[..., 18:].any()
    assert np.abs(state.read_state("kv")[..., :18]).min() > 0
