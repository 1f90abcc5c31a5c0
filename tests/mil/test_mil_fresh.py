"""Which results lie in memory of their own: in-place updates rest on the word of every op, so every op is held to it.

Each op runs on arguments that leave it something to do and, where there are such, on arguments that leave it nothing:
then it is tempted to hand back what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mil_messages import _NAMES, add_op, empty_program, give

from validation.mil import MILModel
from validation.mil.ops.packed import PackedLinear
from validation.mil.registry import OPS, Op
from validation.mil.rounding import PRECISIONS

Case = dict[str, Any]


class Computed:
    """An array that the program is given; every other argument is a constant of it."""

    def __init__(self, *shape: int, dtype: Any = None) -> None:
        values = np.random.default_rng(0).uniform(0.1, 0.9, shape)
        self.fixed = dtype is not None
        self.array = np.asarray(values if dtype is None else values.round(), dtype or np.float32)


class Given(Computed):
    """A computed array of these very values, whatever type the case runs in."""

    def __init__(self, values: Any, dtype: Any = np.int32) -> None:
        self.fixed, self.array = True, np.asarray(values, dtype)


def ints(*values: int) -> np.ndarray:
    return np.int32(values)


N = Computed
NONE = np.zeros(0, np.int32)
SHAPES = [(2, 3), (1, 1), (1,), (), (0, 3)]
LARGE = (1, 2, 33 * 33, 64)  # more than `rounding` and `pieces` take at once

UNARY = """relu relu6 elu gelu leaky_relu scaled_tanh sigmoid sigmoid_hard silu softplus softsign thresholded_relu
abs acos asin atan atanh ceil cos cosh erf exp exp2 floor inverse log round rsqrt sign sin sinh sqrt square
tan tanh""".split()
BINARY = """add sub mul real_div floor_div mod pow maximum minimum equal not_equal greater greater_equal less less_equal
logical_and logical_or logical_xor""".split()
REDUCTIONS = """reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max reduce_min reduce_mean
reduce_prod reduce_sum reduce_sum_square""".split()
SCATTER = {"data": N(2, 3), "updates": N(1, 3), "mode": "update"}
GRID = {"sampling_mode": "bilinear", "padding_mode": "border", "padding_value": np.float32(0)}
GRID |= {"coordinates_mode": "normalized_zero_to_one", "align_corners": True}
WINDOW = {"pad_type": "valid", "x": N(1, 2, 4, 4)}
QUANTUM = {"input": N(2, 3), "scale": np.float32(1)}
RECURRENT = {"x": N(2, 1, 2), "initial_h": N(1, 2), "activation": "tanh"}


def gates(count: int) -> Case:
    return {**RECURRENT, "weight_ih": N(2 * count, 2), "weight_hh": N(2 * count, 2)}


def reduced(**axes: Any) -> list[Case]:
    shapes = [shape for shape in SHAPES if 0 not in shape]
    return [{"x": N(*shape), **axes, "keep_dims": keep} for shape in shapes for keep in (False, True)]


CASES: dict[str, list[Case]] = {
    **{name: [{"x": N(*shape)} for shape in [*SHAPES, LARGE]] for name in UNARY},
    **{name: [{"x": N(*s), "y": N(*s)} for s in SHAPES] + [{"x": N(2, 3), "y": np.float32(1)}] for name in BINARY},
    **{name: [*reduced(), {"x": N(2, 1), "axes": ints(1)}, {"x": N(2, 3), "axes": NONE}] for name in REDUCTIONS},
    "reduce_log_sum_exp": [*reduced(), {"x": N(2, 1), "axes": ints(1)}],  # torch's takes no empty axes
    **{name: reduced(axis=ints(0)[0]) for name in ("reduce_argmax", "reduce_argmin")},
    "logical_not": [{"x": N(2, 3, dtype=np.bool_)}],
    "clip": [{"x": N(*s), "alpha": np.float32(0), "beta": np.float32(1)} for s in SHAPES],
    "clamped_relu": [{"x": N(2, 3), "alpha": np.float32(1), "beta": np.float32(1)}],
    "linear_activation": [{"x": N(2, 3), "alpha": np.float32(1), "beta": np.float32(0)}],
    "prelu": [{"x": N(1, 2, 3), "alpha": alpha} for alpha in (np.float32([1, 1]), N(2))],
    "softplus_parametric": [{"x": N(1, 2, 3), "alpha": np.float32([1, 1]), "beta": np.float32([1, 1])}],
    "softmax": [{"x": N(2, 3)}, {"x": N(2, 1), "axis": np.int32(0)}, {"x": N(1, 1)}],
    "threshold": [{"x": N(2, 3), "alpha": np.float32(0)}],
    "cast": [{"x": N(2, 3), "dtype": dtype} for dtype in ("fp32", "fp16", "int32")],
    # linear
    "linear": [
        {"x": N(1, 4), "weight": N(2, 4), "bias": N(2)},
        {"x": N(3, 4), "weight": np.ones((2, 4), np.float32)},
        {"x": N(1, 512), "weight": np.ones((1024, 512), np.float16), "bias": np.ones(1024, np.float16)},
        {"x": N(3, 512), "weight": np.ones((1024, 512), np.float16)},
    ],
    "matmul": [
        {"x": N(2, 3), "y": N(3, 2)},
        {"x": N(3), "y": N(3)},
        {"x": N(2, 512, 512), "y": N(2, 512, 2)},
        {"x": N(2, 3, 1, 64), "y": N(2, 1, 64, 512)},
        {"x": N(2, 1, 64, 512), "y": N(2, 3, 1, 512), "transpose_y": True},
    ],
    "scaled_dot_product_attention": [
        {"query": N(1, 2, 3), "key": N(1, 1, 3), "value": N(1, 1, 3)},
        {"query": N(1, 2, 3), "key": N(1, 2, 3), "value": N(1, 2, 3), "attn_mask": N(1, 2, 2)},
    ],
    "einsum": [{"values": [N(2, 3)], "equation": "ij->ji"}, {"values": [N(2, 3), N(3, 2)], "equation": "ij,jk->ik"}],
    # normalization, convolution, pools
    "batch_norm": [{"x": N(1, 2, 3), "mean": np.float32([0, 0]), "variance": np.float32([1, 1])}],
    "layer_norm": [{"x": N(2, 3), "axes": ints(axis)} for axis in (0, 1)] + [{"x": N(1, 1)}],
    "instance_norm": [{"x": N(1, 2, 3)}],
    "l2_norm": [{"x": N(2, 3)}],
    "local_response_norm": [{"x": N(1, 2, 3), "size": np.int32(1), "alpha": np.float32(0)}],
    "conv": [
        {"x": N(1, 2, 3), "weight": N(2, 2, 1)},
        {"x": N(1, 2, 33, 33), "weight": N(2, 2, 1, 1), "bias": N(2)},
        {"x": N(1, 1, 1, 1), "weight": np.ones((1, 1, 1, 1), np.float32)},
        {"x": N(1, 512, 1, 1), "weight": np.ones((1024, 512, 1, 1), np.float16), "bias": np.ones(1024, np.float16)},
        {"x": N(1, 512, 1, 3), "weight": np.ones((1024, 512, 1, 1), np.float16)},
    ],
    "conv_transpose": [{"x": N(1, 2, 3), "weight": N(2, 2, 1)}, {"x": N(1, 1, 2, 2), "weight": N(1, 1, 2, 2)}],
    "max_pool": [{**WINDOW, "kernel_sizes": ints(size, size)} for size in (1, 2)],
    "avg_pool": [{**WINDOW, "kernel_sizes": ints(size, size)} for size in (1, 2)],
    "l2_pool": [{**WINDOW, "kernel_sizes": ints(size, size)} for size in (1, 2)],
    # pictures
    "upsample_nearest_neighbor": [
        {"x": N(1, 1, 2, 2), "scale_factor_height": np.float32(scale), "scale_factor_width": np.float32(scale)}
        for scale in (1, 2)
    ],
    "resize_nearest_neighbor": [
        {"x": N(1, 1, 2, 2), "target_size_height": np.int32(size), "target_size_width": np.int32(size)}
        for size in (1, 2)
    ],
    "upsample_bilinear": [{"x": N(1, 1, 2, 2)}],
    "resize_bilinear": [
        {"x": N(1, 1, 2, 2), "target_size_height": np.int32(size), "target_size_width": np.int32(size)}
        for size in (1, 2)
    ],
    "resize": [
        {"x": N(1, 1, 2, 2), "shape": ints(0, 0)[:dims], "resized_dims": np.int32(dims), "interpolation_mode": mode}
        for dims in (0, 2)
        for mode in ("LINEAR", "NEAREST_NEIGHBOR")
    ],
    "crop": [{"x": N(1, 1, 2, 2), "crop_height": ints(top, 0), "crop_width": ints(0, 0)} for top in (0, 1)],
    "crop_resize": [
        {"x": N(1, 1, 2, 2), "boxes": Given([[0, 0, 1, 1]], np.float32), "target_height": np.int32(2)},
        {"x": N(1, 1, 2, 2), "roi": Given([[0, 0, 0, 1, 1]], np.float32)},
    ],
    "resample": [{"x": N(1, 1, 2, 2), "coordinates": N(1, 2, 2, 2), **GRID}],
    "affine": [
        {
            "x": N(1, 1, 2, 2),
            "transform_matrix": np.float32([[1, 0, 0, 0, 1, 0]]),
            "output_height": np.int32(2),
            "output_width": np.int32(2),
            **GRID,
        }
    ],
    # gathers and scatters
    "gather": [
        {"x": N(2, 3), "indices": Given([0, 1])},
        {"x": N(1, 3), "indices": Given(0)},
        {"x": N(2, 3), "indices": Given([[0], [1]]), "axis": np.int32(1), "batch_dims": np.int32(1)},
    ],
    "gather_along_axis": [{"x": N(2, 3), "indices": Given([[0, 0, 0], [1, 1, 1]])}],
    "gather_nd": [{"x": N(2, 3), "indices": Given([[0], [1]])}],
    "scatter": [{**SCATTER, "indices": Given([0])}],
    "scatter_along_axis": [{**SCATTER, "indices": Given([[0, 1, 0]])}],
    "scatter_nd": [{**SCATTER, "indices": Given([[0]])}],
    # other tensor operations
    "argsort": [{"x": N(2, 3)}, {"x": N(1)}],
    "topk": [{"x": N(2, 3), "k": np.int32(k)} for k in (-1, 1)],
    "band_part": [{"x": N(2, 3)}, {"x": N(2, 3), "lower": np.int32(0)}],
    "cumsum": [{"x": N(2, 3)}, {"x": N(1)}, {"x": N(1), "exclusive": True, "reverse": True}],
    "fill": [{"shape": ints(*shape), "value": N()} for shape in ((2, 3), (1,), ())] + [{"shape": Given([2])}],
    "fill_like": [{"ref_tensor": N(2, 3), "value": N()}, {"ref_tensor": N(), "value": N()}],
    "non_zero": [{"x": N(2, 3)}],
    "one_hot": [{"indices": Given([0, 1]), "one_hot_vector_size": np.int32(2)}],
    "range_1d": [{"start": N(), "end": np.float32(3), "step": np.float32(1)}],
    "non_maximum_suppression": [
        {"boxes": N(1, 4, 1), "scores": N(1, 1, 1), "iou_threshold": np.float32(0.5), "max_boxes": np.int32(1)}
    ],
    "flatten2d": [{"x": N(2, 3)}],
    "pad": [
        {"x": N(2, 3), "pad": ints(amount, amount), "mode": mode}
        for amount in (0, 1)
        for mode in ("constant", "reflect", "replicate")
    ],
    "sliding_windows": [{"x": N(4, 2), "axis": np.int32(0), "size": np.int32(size)} for size in (1, 3, 4)],
    "quantize": [{**QUANTUM, "output_dtype": "int8"}],
    "dequantize": [{**QUANTUM, "input": N(2, 3, dtype=np.int8)}, QUANTUM],
    "random_bernoulli": [{"shape": ints(2, 3), "seed": np.int32(1)}],
    "random_categorical": [{"x": N(2, 3), "seed": np.int32(1)}],
    "random_normal": [{"shape": ints(2, 3), "seed": np.int32(1)}],
    "random_uniform": [{"shape": ints(2, 3), "seed": np.int32(1)}],
    "rnn": [gates(1), {**gates(1), "output_sequence": True}],
    "gru": [gates(3), {**gates(3), "output_sequence": True}],
    "lstm": [{**gates(4), "initial_c": N(1, 2)}],
    # shapes
    "identity": [{"x": N(2, 3)}],
    "reshape": [{"x": N(2, 3), "shape": ints(3, 2)}],
    "reshape_like": [
        {"x": N(2, 3), "ref_tensors": [N(6)], "begins": [np.int32(0)], "ends": [np.int32(1)], "end_masks": [False]}
    ],
    "transpose": [{"x": N(2, 3), "perm": ints(1, 0)}],
    "expand_dims": [{"x": N(2, 3), "axes": ints(0)}],
    "squeeze": [{"x": N(1, 3)}],
    "concat": [{"values": values, "axis": np.int32(0)} for values in ([N(2, 3)], [N(1, 3), N(0, 3)], [N(), N()])]
    + [{"values": [N(2, 3)], "axis": np.int32(0), "interleave": True}],
    "stack": [{"values": [N(2, 3)], "axis": np.int32(0)}],
    "tile": [{"x": N(2, 3), "reps": ints(rep, 1)} for rep in (1, 2)],
    "select": [{"cond": cond, "a": N(2, 3), "b": N(2, 3)} for cond in (N(2, 3, dtype=np.bool_), Given(True, np.bool_))],
    "shape": [{"x": N(2, 3)}],
    "reverse": [{"x": N(2, 3)}, {"x": N(2, 3), "axes": NONE}, {"x": N(1)}],
    "reverse_sequence": [{"x": N(2, 3), "lengths": ints(1, 1, 1), "batch_axis": np.int32(1)}],
    "depth_to_space": [{"x": N(1, 4, 1, 1), "block_size": np.int32(size)} for size in (1, 2)],
    "space_to_depth": [{"x": N(1, 1, 2, 2), "block_size": np.int32(size)} for size in (1, 2)],
    "pixel_shuffle": [{"x": N(1, 4, 1, 1), "upscale_factor": np.int32(size)} for size in (1, 2)],
    "pixel_unshuffle": [{"x": N(1, 1, 2, 2), "downscale_factor": np.int32(size)} for size in (1, 2)],
    "space_to_batch": [{"x": N(1, 1, 2, 2), "block_shape": ints(1, 1), "paddings": ints(0, 0, 0, 0)}],
    "batch_to_space": [{"x": N(1, 1, 2, 2), "block_shape": ints(1, 1), "crops": ints(0, 0, 0, 0)}],
    "slice_by_index": [{"x": N(4), "begin": ints(0), "end": ints(4), "stride": ints(step)} for step in (1, 2)]
    + [{"x": N(4), "begin": ints(3), "end": ints(0), "stride": ints(-1)}],
    "slice_by_size": [{"x": N(4), "begin": ints(0), "size": ints(-1)}],
    "slice_update": [{"x": N(4), "update": N(4), "begin": ints(0), "end": ints(4)}],
    "split": [{"x": N(2, 3), "axis": np.int32(0), "num_splits": np.int32(1)}],
}
RESULTS = {"topk": 2, "non_maximum_suppression": 3, "rnn": 2, "gru": 2, "lstm": 3}

# No tensors in, none out, or what comes out is somebody else's by nature: nested blocks, lists, states, classifiers.
WITHOUT_CASES = {"cond", "while_loop", "classify", "read_state", "write_state", "coreml_update_state"}
WITHOUT_CASES |= {name for name in OPS if "list" in name or name.startswith("constexpr_")}


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedLinear):
        return tensors(list(vars(value).values()))
    return [tensor for item in value for tensor in tensors(item)] if isinstance(value, (tuple, list)) else []


def memory(values: Any) -> list[int]:
    """Where each tensor's memory begins; empty ones have none."""
    return [tensor.untyped_storage().data_ptr() for tensor in tensors(values) if tensor.numel()]


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether two of its elements are one in memory."""
    places = torch.zeros(tensor.shape, dtype=torch.int64)
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        places += (torch.arange(length) * stride).reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
    return places.unique().numel() < tensor.numel()


def program(kind: str, case: Case, dtype: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A spec of that one op, its floating computed arguments in dtype, and what to feed it."""
    feed: dict[str, np.ndarray] = {}
    arguments: Case = {}
    for name, value in case.items():
        items = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Computed):
                feed[f"in{len(feed)}"] = item.array if item.fixed else item.array.astype(dtype)
                item = f"@in{len(feed) - 1}"
            items.append(item)
        arguments[name] = items
    spec, block = empty_program(feed)
    results = {f"out{index}": _NAMES[np.dtype(dtype)] for index in range(RESULTS.get(kind, 1))}
    add_op(block, kind, results, arguments)
    give(spec, block, list(results))
    return spec, feed


def planned(kind: str, case: Case, dtype: Any, precision: str) -> tuple[Callable[..., Any], list[Any]]:
    """The op as a plan calls it, and what it is called with."""
    spec, feed = program(kind, case, dtype)
    model = MILModel(spec, precision=precision)
    frame = model.plan.binder.frame()
    model._bind_inputs(frame, feed)
    (step,) = model.plan.body.steps
    return step.function, list(step.take(frame))


def forms(op: Op) -> list[Callable[..., Any]]:
    return [form for form in (op.function, op.blocked, op.pieced) if form is not None]


def check(op: Op, function: Callable[..., Any], arguments: list[Any]) -> None:
    first, second = function(*arguments), function(*arguments)
    assert not any(overlaps(tensor) for tensor in tensors([first])), "elements of one result share memory"
    if op.fresh:
        results = memory([first, second])
        assert len(set(results)) == len(results), "results share memory with one another"
        assert not set(results) & set(memory(arguments)), "a result shares memory with an argument"


@pytest.mark.parametrize("kind", CASES)
@torch.inference_mode()
def test_results_are_where_the_op_says(kind: str) -> None:
    op = OPS[kind]
    for case in CASES[kind]:
        for precision in PRECISIONS:
            for dtype in (np.float32, np.float16):
                function, arguments = planned(kind, case, dtype, precision)
                check(op, function, arguments)


@pytest.mark.parametrize("kind", CASES)
@torch.inference_mode()
def test_results_are_where_the_op_says_before_they_take_their_declared_type(kind: str) -> None:
    """A conversion to the declared type may hide that the op gave back its argument; integers need none."""
    op = OPS[kind]
    for case in CASES[kind]:
        ran = False
        for dtype in (np.float32, np.float16, np.int32):
            _, arguments = planned(kind, case, dtype, "fp32" if dtype is np.float32 else "fp16-accumulate")
            for form in forms(op):
                try:
                    form(*arguments)
                except (RuntimeError, ValueError, IndexError, TypeError):
                    continue  # this form is not made for this type
                check(op, form, arguments)
                ran = True
        assert ran


def test_every_op_is_held_to_it() -> None:
    assert set(OPS) == set(CASES) | WITHOUT_CASES
    assert not {name for name in WITHOUT_CASES if OPS[name].fresh}


@pytest.mark.parametrize("kind", ["identity", "reshape", "einsum", "resize", "rnn", "cast", "reduce_prod", "split"])
def test_an_op_that_shares_memory_would_be_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = OPS[kind]
    monkeypatch.setitem(OPS, kind, type(op)(**{**vars(op), "fresh": True}))
    with pytest.raises(AssertionError, match="share"):
        test_results_are_where_the_op_says(kind)
