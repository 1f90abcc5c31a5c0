"""Ops that move values: slicing, gathering, scattering, joining, padding, sorting, against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_messages import one_op

from fastvlm.errors import ExecutionError


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (np.arange(np.prod(shape, dtype=int), dtype=dtype) - 7).reshape(shape)


def same(got: np.ndarray, want: Any) -> None:
    np.testing.assert_array_equal(got, np.asarray(want))


FEW = settings(max_examples=30, deadline=None)


@FEW
@given(st.data())
def test_slice_by_index_is_numpys(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    x = numbers(*shape)
    begin, end, stride, begin_mask, end_mask, squeeze, index = [], [], [], [], [], [], []
    for length in shape:
        first, last = data.draw(st.integers(-length, length - 1)), data.draw(st.integers(-length - 1, length + 1))
        step = data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        open_begin, open_end, picked = (data.draw(st.booleans()) for _ in range(3))
        begin, end, stride = [*begin, first], [*end, last], [*stride, step]
        begin_mask, end_mask, squeeze = [*begin_mask, open_begin], [*end_mask, open_end], [*squeeze, picked]
        index.append(first if picked else slice(None if open_begin else first, None if open_end else last, step))
    arguments = {
        "begin": np.int32(begin),
        "end": np.int32(end),
        "stride": np.int32(stride),
        "begin_mask": np.array(begin_mask),
        "end_mask": np.array(end_mask),
        "squeeze_mask": np.array(squeeze),
    }
    computed = data.draw(st.booleans())
    given_begin = (np.int32(begin),) if computed else np.int32(begin)
    same(one_op("slice_by_index", {"x": (x,), **arguments, "begin": given_begin}, "fp32"), x[tuple(index)])


@FEW
@given(st.data())
def test_slice_update_writes_what_slicing_reads(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    x = numbers(*shape)
    begin = [data.draw(st.integers(0, length - 1)) for length in shape]
    end = [data.draw(st.integers(first + 1, length)) for first, length in zip(begin, shape, strict=True)]
    stride = [data.draw(st.integers(1, 2)) for _ in shape]
    place = tuple(map(slice, begin, end, stride))
    update = -100 - numbers(*x[place].shape)
    want = x.copy()
    want[place] = update
    options = {"begin": np.int32(begin), "end": np.int32(end), "stride": np.int32(stride)}
    same(one_op("slice_update", {"x": (x,), "update": (update,), **options}), want)


def test_slice_update_backwards() -> None:
    x, update = numbers(5), np.array([1, 2, 3], np.float32)
    want = x.copy()
    want[4:1:-1] = update
    options = {"begin": np.int32([4]), "end": np.int32([1]), "stride": np.int32([-1])}
    same(one_op("slice_update", {"x": (x,), "update": (update,), **options}), want)


def test_slice_update_backwards_in_strides_and_squeezed() -> None:
    x, update = numbers(3, 6), np.array([1, 2, 3], np.float32)
    want = x.copy()
    want[1, 5:0:-2] = update
    options = {"begin": np.int32([1, 5]), "end": np.int32([0, 0]), "stride": np.int32([1, -2])}
    squeeze = {"squeeze_mask": np.array([True, False])}
    same(one_op("slice_update", {"x": (x,), "update": (update,), **options, **squeeze}), want)


@pytest.mark.parametrize(
    ("begin", "end", "stride", "reason"),
    [
        (4, 7, 1, "end 7"),
        (6, 9, 1, "begin 6"),
        (-6, -2, 1, "begin -6"),
        (2, -6, 1, "end -6"),
        (5, 2, -1, "begin 5"),
        (2, 6, -1, "end 6"),
        (2, -7, -1, "end -7"),
    ],
)
def test_slice_update_out_of_range(begin: int, end: int, stride: int, reason: str) -> None:
    """Also where as many entries lie within the axis as the update has."""
    count = len(range(5)[begin:end:stride])
    options = {"begin": np.int32([begin]), "end": np.int32([end]), "stride": np.int32([stride])}
    with pytest.raises(ExecutionError, match=rf"slice_update.*{reason} on axis 0, which has 5 entries"):
        one_op("slice_update", {"x": (numbers(5),), "update": (numbers(count),), **options})


def test_slice_update_ignores_what_is_masked() -> None:
    """coremltools leaves any number where a mask is set, and at the end of a squeezed axis."""
    options = {"begin": np.int32([99, 1]), "end": np.int32([-99, 99])}
    masks = {"begin_mask": np.array([True, False]), "end_mask": np.array([True, False])}
    x = numbers(2, 3)
    arguments = {"x": (x,), "update": (numbers(2),), **options, **masks, "squeeze_mask": np.array([False, True])}
    x[:, 1] = numbers(2)
    same(one_op("slice_update", arguments), x)


@pytest.mark.parametrize(
    ("shape", "begin", "end", "squeeze"),
    [
        ((5,), [-1], [2], [False]),
        ((3, 4), [0, 0], [3, 4], [False, True]),
        ((3, 2), [0, 0], [2, 3], [False, False]),
    ],
)
def test_slice_update_takes_an_update_of_the_slice_s_shape(
    shape: tuple[int, ...], begin: list[int], end: list[int], squeeze: list[bool]
) -> None:
    arguments = {"x": (numbers(*[5, 4][: len(begin)]),), "update": (numbers(*shape),)}
    options = {"begin": np.int32(begin), "end": np.int32(end), "squeeze_mask": np.array(squeeze)}
    with pytest.raises(ExecutionError, match=rf"slice_update.*update of shape \[{', '.join(map(str, shape))}\]"):
        one_op("slice_update", {**arguments, **options})


def test_slice_update_does_not_turn_an_update_round() -> None:
    """(4, 2) numbers are as many as a squeezed slice of (2, 4) takes."""
    options = {"begin": np.int32([0, 0, 0]), "end": np.int32([1, 2, 4]), "squeeze_mask": np.array([True, False, False])}
    x = np.zeros((2, 2, 4), np.float32)
    with pytest.raises(ExecutionError, match=r"update of shape \[4, 2\] .* slice of \[2, 4\]"):
        one_op("slice_update", {"x": (x,), "update": (numbers(4, 2),), **options})
    same(one_op("slice_update", {"x": (x,), "update": (numbers(2, 4),), **options})[0], numbers(2, 4))


def test_slice_by_size() -> None:
    x = numbers(4, 6)
    same(one_op("slice_by_size", {"x": (x,), "begin": np.int32([1, -3]), "size": np.int32([2, -1])}), x[1:3, 3:])
    with pytest.raises(ExecutionError, match="slice of 4 from 1 on axis 0"):
        one_op("slice_by_size", {"x": (x,), "begin": np.int32([1, 0]), "size": np.int32([4, 1])})


@FEW
@given(st.data())
def test_gather_family(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, length = numbers(*shape), shape[axis]
    pick = st.integers(-length, length - 1)
    indices = np.int32(data.draw(st.lists(pick, min_size=1, max_size=4)))
    if data.draw(st.booleans()):
        indices = indices[:1].reshape(())
    same(one_op("gather", {"x": (x,), "indices": (indices,), "axis": np.int32(axis)}), np.take(x, indices, axis))
    along = np.int32(np.random.default_rng(0).integers(-length, length, shape))
    got = one_op("gather_along_axis", {"x": (x,), "indices": (along,), "axis": np.int32(axis)})
    same(got, np.take_along_axis(x, along, axis))


def test_gather_with_batch_dims() -> None:
    x, indices = numbers(2, 3, 4, 5), np.int32([[0, 2], [3, 1]])
    got = one_op("gather", {"x": (x,), "indices": (indices,), "axis": np.int32(2), "batch_dims": np.int32(1)})
    same(got, np.stack([np.take(x[b], indices[b], 1) for b in range(2)]))
    pairs = np.int32([[[0, 3], [2, 1]], [[1, 0], [1, 2]]])
    got = one_op("gather_nd", {"x": (x,), "indices": (pairs,), "batch_dims": np.int32(1)})
    same(got, np.stack([x[b][pairs[b][:, 0], pairs[b][:, 1]] for b in range(2)]))


@pytest.mark.parametrize("index", [4, -5])
@pytest.mark.parametrize("kind", ["gather", "gather_along_axis"])
def test_index_out_of_range_is_named(kind: str, index: int) -> None:
    with pytest.raises(ExecutionError, match=rf"{kind}: index {index} on an axis of 4"):
        one_op(kind, {"x": (numbers(4),), "indices": (np.int32([0, index]),)})


JOINS = {
    "update": lambda old, new: new,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("mode", list(JOINS))
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_family(mode: str, axis: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.uniform(1, 2, (3, 4, 2)).astype(np.float32)
    indices = np.int32([1, 0, 1]) if mode != "update" else np.int32([1, 0])
    moved = np.moveaxis(data.copy(), axis, 0)
    updates = rng.uniform(1, 2, (len(indices), *moved.shape[1:])).astype(np.float32)
    for index, update in zip(indices, updates, strict=True):
        moved[index] = JOINS[mode](moved[index], update)
    arguments = {"data": (data,), "indices": (indices,), "updates": (np.moveaxis(updates, 0, axis),)}
    got = one_op("scatter", {**arguments, "axis": np.int32(axis), "mode": mode})
    np.testing.assert_allclose(got, np.moveaxis(moved, 0, axis), rtol=1e-6)


@pytest.mark.parametrize("mode", list(JOINS))
def test_scatter_elements(mode: str) -> None:
    rng = np.random.default_rng(0)
    data = rng.uniform(1, 2, (3, 4)).astype(np.float32)
    pairs, values = np.int32([[0, 1], [2, 3], [1, 1]]), np.array([1.5, 0.5, 3], np.float32)
    want = data.copy()
    for (row, column), value in zip(pairs, values, strict=True):
        want[row, column] = JOINS[mode](want[row, column], value)
    got = one_op("scatter_nd", {"data": (data,), "indices": (pairs,), "updates": (values,), "mode": mode})
    np.testing.assert_allclose(got, want, rtol=1e-6)
    along = np.int32([[2, 0, 1, 1]])
    new = rng.uniform(1, 2, (1, 4)).astype(np.float32)
    want = data.copy()
    for column in range(4):
        want[along[0, column], column] = JOINS[mode](want[along[0, column], column], new[0, column])
    arguments = {"data": (data,), "indices": (along,), "updates": (new,), "axis": np.int32(0), "mode": mode}
    np.testing.assert_allclose(one_op("scatter_along_axis", arguments), want, rtol=1e-6)


def test_shapes() -> None:
    x = numbers(2, 3, 4)
    same(one_op("reshape", {"x": (x,), "shape": np.int32([0, -1, 0])}), x)
    same(one_op("reshape", {"x": (x,), "shape": (np.int32([4, 6]),)}), x.reshape(4, 6))
    same(one_op("transpose", {"x": (x,), "perm": np.int32([2, 0, 1])}), x.transpose(2, 0, 1))
    same(one_op("expand_dims", {"x": (x,), "axes": np.int32([0, -1])}), x[None, ..., None])
    same(one_op("squeeze", {"x": (x[:1, :, :1],), "axes": np.int32([0])}), x[0, :, :1])
    same(one_op("squeeze", {"x": (x[:1, :, :1],)}), x[0, :, 0])
    same(one_op("flatten2d", {"x": (x,), "axis": np.int32(2)}), x.reshape(6, 4))
    same(one_op("shape", {"x": (x,)}, "int32"), [2, 3, 4])
    same(one_op("reverse", {"x": (x,), "axes": np.int32([0, 2])}), x[::-1, :, ::-1])
    same(one_op("identity", {"x": (x,)}), x)
    like = {"x": (x,), "ref_tensors": [(numbers(6, 5),), (numbers(1, 4),)]}
    like |= {"begins": [np.int32(0), np.int32(1)], "ends": [np.int32(1), np.int32(0)]}
    same(one_op("reshape_like", {**like, "end_masks": [np.bool_(False), np.bool_(True)]}), x.reshape(6, 4))
    with pytest.raises(ExecutionError, match="cannot squeeze"):
        one_op("squeeze", {"x": (x,), "axes": np.int32([0])})


def test_joining_and_splitting() -> None:
    x, y = numbers(2, 3), numbers(2, 3) * 2
    both = [(x,), (y,)]
    same(one_op("concat", {"values": both, "axis": np.int32(-1)}), np.concatenate((x, y), -1))
    woven = np.stack((x, y), 1).reshape(4, 3)
    same(one_op("concat", {"values": both, "axis": np.int32(0), "interleave": np.bool_(True)}), woven)
    same(one_op("stack", {"values": both, "axis": np.int32(1)}), np.stack((x, y), 1))
    same(one_op("tile", {"x": (x,), "reps": np.int32([2, 3])}), np.tile(x, (2, 3)))
    parts = one_op("split", {"x": (x,), "axis": np.int32(1), "split_sizes": np.int32([1, 2])}, ["fp32", "fp32"])
    same(parts[0], x[:, :1])
    same(parts[1], x[:, 1:])
    parts = one_op("split", {"x": (x,), "axis": np.int32(1), "num_splits": np.int32(3)}, ["fp32"] * 3)
    same(parts[2], x[:, 2:])
    same(one_op("select", {"cond": (x > 0,), "a": (x,), "b": (y,)}, "fp32"), np.where(x > 0, x, y))


@FEW
@given(st.sampled_from(["constant", "reflect", "replicate"]), st.integers(1, 4), st.data())
def test_pad(mode: str, rank: int, data: st.DataObject) -> None:
    x = numbers(*data.draw(st.lists(st.integers(3, 5), min_size=rank, max_size=rank)))
    count = data.draw(st.integers(1, rank))
    pads = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(count)]
    whole = [(0, 0)] * (rank - count) + pads
    extra = {"constant_values": 2.5} if mode == "constant" else {}
    want = np.pad(x, whole, mode={"replicate": "edge"}.get(mode, mode), **extra)
    flat = np.int32(pads).reshape(-1)
    same(one_op("pad", {"x": (x,), "pad": flat, "mode": mode, "constant_val": np.float32(2.5)}), want)


def test_blocks_and_batches() -> None:
    x = numbers(1, 8, 4, 6)
    deep = one_op("space_to_depth", {"x": (x,), "block_size": np.int32(2)})
    same(deep[0, :8], x[0, :, ::2, ::2])
    same(deep[0, 8:16], x[0, :, ::2, 1::2])
    same(one_op("depth_to_space", {"x": (deep,), "block_size": np.int32(2)}), x)
    shuffled = one_op("pixel_shuffle", {"x": (x,), "upscale_factor": np.int32(2)})
    same(shuffled, torch.pixel_shuffle(torch.from_numpy(x), 2))
    same(one_op("pixel_unshuffle", {"x": (shuffled,), "downscale_factor": np.int32(2)}), x)
    options = {"block_shape": np.int32([2, 3]), "paddings": np.int32([[1, 1], [0, 0]])}
    batched = one_op("space_to_batch", {"x": (x,), **options})
    assert batched.shape == (6, 8, 3, 2)
    back = {"block_shape": np.int32([2, 3]), "crops": np.int32([[1, 1], [0, 0]])}
    same(one_op("batch_to_space", {"x": (batched,), **back}), x)
    windows = one_op("sliding_windows", {"x": (x,), "axis": np.int32(2), "size": np.int32(3), "stride": np.int32(1)})
    same(windows, np.lib.stride_tricks.sliding_window_view(x, 3, 2).transpose(0, 1, 2, 4, 3))


def test_sorting_and_counting() -> None:
    x = np.array([[3, 1, 3, -2], [0, 5, 5, 5]], np.float32)
    same(one_op("argsort", {"x": (x,), "ascending": np.bool_(True)}, "int32"), np.argsort(x, -1, kind="stable"))
    same(one_op("argsort", {"x": (x,)}, "int32"), np.argsort(-x, -1, kind="stable"))
    values, indices = one_op("topk", {"x": (x,), "k": np.int32(2)}, ["fp32", "int32"])
    same(values, [[3, 3], [5, 5]])
    same(indices, [[0, 2], [1, 2]])
    values, indices = one_op(
        "topk", {"x": (x,), "k": np.int32(1), "axis": np.int32(0), "ascending": np.bool_(True)}, ["fp32", "int32"]
    )
    same(values, [[0, 1, 3, -2]])
    same(indices, [[1, 0, 0, 0]])
    only = one_op("topk", {"x": (x,), "k": np.int32(-1), "return_indices": np.bool_(False)}, ["fp32"])
    same(only[0], -np.sort(-x))
    same(one_op("non_zero", {"x": (x,)}, "int32"), np.argwhere(x))
    hot = one_op("one_hot", {"indices": (np.int32([2, 0, 9]),), "one_hot_vector_size": np.int32(3)}, "fp32")
    same(hot, [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    start = {"start": np.int32(3), "step": np.int32(-2)}
    same(one_op("range_1d", {"end": (np.int32(-4),), **start}, "int32"), np.arange(3, -4, -2))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(exclusive: bool, reverse: bool) -> None:
    x = numbers(3, 4)
    flipped = x[:, ::-1] if reverse else x
    want = np.cumsum(flipped, 1) - (flipped if exclusive else 0)
    options = {"axis": np.int32(1), "exclusive": np.bool_(exclusive), "reverse": np.bool_(reverse)}
    same(one_op("cumsum", {"x": (x,), **options}), want[:, ::-1] if reverse else want)


def test_filling_and_bands() -> None:
    same(one_op("fill", {"shape": (np.int32([2, 3]),), "value": np.float32(1.5)}, "fp32"), np.full((2, 3), 1.5))
    same(one_op("fill_like", {"ref_tensor": (numbers(2, 2),), "value": np.int32(7)}, "int32"), np.full((2, 2), 7))
    x = numbers(2, 4, 5)
    for lower, upper, want in ((0, -1, np.triu(x)), (-1, 0, np.tril(x)), (1, 1, np.triu(np.tril(x, 1), -1))):
        same(one_op("band_part", {"x": (x,), "lower": np.int32(lower), "upper": np.int32(upper)}), want)
    lengths = np.int32([2, 0, 3])
    got = one_op("reverse_sequence", {"x": (numbers(3, 4),), "lengths": lengths, "seq_axis": np.int32(1)})
    same(got, [[-6, -7, -5, -4], [-3, -2, -1, 0], [3, 2, 1, 4]])


def test_non_maximum_suppression_keeps_the_best() -> None:
    boxes = np.array([[[1, 1, 2, 2], [1.1, 1, 2, 2], [5, 5, 2, 2], [9, 9, 1, 1]]], np.float32)
    scores = np.array([[[0.5], [0.9], [0.3], [0.01]]], np.float32)
    options = {"iou_threshold": np.float32(0.5), "score_threshold": np.float32(0.1), "max_boxes": np.int32(3)}
    results = ["fp32", "fp32", "int32", "int32"]
    kept, best, indices, counts = one_op(
        "non_maximum_suppression", {"boxes": (boxes,), "scores": (scores,), **options}, results
    )
    same(indices, [[1, 2, -1]])
    same(counts, [2])
    same(kept[0, :2], boxes[0, [1, 2]])
    same(best[0, :, 0], np.float32([0.9, 0.3, 0]))
    del options["score_threshold"]
    new = {"boxes": (boxes.transpose(0, 2, 1).copy(),), "scores": (scores.transpose(0, 2, 1).copy(),), **options}
    same(one_op("non_maximum_suppression", new, results[:3])[2], [[1, 2, 3]])
