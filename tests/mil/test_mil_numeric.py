"""Ops that sum: convolutions, matrices, norms, pools, reductions, recurrence, against torch; and fp16-accumulate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_messages import one_op

RNG = np.random.default_rng(0)
FEW = settings(max_examples=25, deadline=None)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def near(got: np.ndarray, want: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, np.asarray(want), rtol=tolerance, atol=tolerance)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@FEW
@given(st.data())
def test_conv(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 2]))
    sizes, kernel, strides, dilations = (
        [data.draw(st.integers(*limits)) for _ in range(axes)] for limits in ((5, 7), (1, 3), (1, 2), (1, 2))
    )
    x, weight, bias = normal(2, 4, *sizes), normal(6, 4 // groups, *kernel), normal(6)
    pads = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(axes)]
    kind = data.draw(st.sampled_from(["valid", "custom", "same", "same_lower"]))
    if kind == "valid":
        pads = [(0, 0)] * axes
    if kind.startswith("same"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        pads = [(t // 2, t - t // 2) if kind == "same" else (t - t // 2, t // 2) for t in totals]
    options = {"strides": np.int32(strides), "dilations": np.int32(dilations), "pad_type": kind}
    options |= {"pad": np.int32(pads).reshape(-1), "groups": np.int32(groups)}
    got = one_op("conv", {"x": (x,), "weight": weight, "bias": bias, **options})
    padded = F.pad(torch.from_numpy(x), [amount for pair in reversed(pads) for amount in pair])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    near(got, function(padded, *tensors(weight, bias), tuple(strides), 0, tuple(dilations), groups), 1e-4)


@FEW
@given(st.data())
def test_conv_transpose(data: st.DataObject) -> None:
    axes, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2]))
    sizes, kernel, strides = (
        [data.draw(st.integers(*limits)) for _ in range(axes)] for limits in ((3, 4), (2, 3), (1, 2))
    )
    x, weight, bias = normal(1, 4, *sizes), normal(4, 3, *kernel), normal(3 * groups)
    pads = [data.draw(st.integers(0, 1)) for _ in range(axes)]
    options = {"strides": np.int32(strides), "groups": np.int32(groups), "pad_type": "custom"}
    options["pad"] = np.int32([[amount, amount] for amount in pads]).reshape(-1)
    got = one_op("conv_transpose", {"x": (x,), "weight": weight, "bias": bias, **options})
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    near(got, function(*tensors(x, weight, bias), tuple(strides), tuple(pads), 0, groups), 1e-4)
    same = one_op("conv_transpose", {"x": (x,), "weight": weight, **options, "pad_type": "same"})
    assert list(same.shape[2:]) == [n * s for n, s in zip(sizes, strides, strict=True)]


@FEW
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(5, 8)) for _ in range(axes)]
    kernel = [data.draw(st.integers(2, 4)) for _ in range(axes)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(axes)]
    pads = [data.draw(st.integers(0, width // 2)) for width in kernel]
    ceil, exclude = axes < 3 and data.draw(st.booleans()), data.draw(st.booleans())
    x = normal(1, 2, *sizes)
    options: dict[str, Any] = {"kernel_sizes": np.int32(kernel), "strides": np.int32(strides), "pad_type": "custom"}
    options |= {"pad": np.int32([[amount, amount] for amount in pads]).reshape(-1), "ceil_mode": np.bool_(ceil)}
    (value,) = tensors(x)
    highest = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[axes]
    near(one_op("max_pool", {"x": (x,), **options}), highest(value, kernel, strides, pads, 1, ceil))
    mean = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[axes]
    got = one_op("avg_pool", {"x": (x,), **options, "exclude_padding_from_average": np.bool_(exclude)})
    near(got, mean(value, kernel, strides, pads, ceil, not exclude))
    if axes < 3 and not any(pads) and not ceil:
        norm = {1: F.lp_pool1d, 2: F.lp_pool2d}[axes]
        kernel_size = kernel[0] if axes == 1 else tuple(kernel)
        near(one_op("l2_pool", {"x": (x,), **options}), norm(value, 2, kernel_size, tuple(strides)), 1e-4)


def test_linear_and_matmul() -> None:
    x, weight, bias = normal(2, 3, 5), normal(4, 5), normal(4)
    near(one_op("linear", {"x": (x,), "weight": weight, "bias": bias}), x @ weight.T + bias)
    near(one_op("linear", {"x": (x,), "weight": weight}), x @ weight.T)
    y = normal(2, 5, 4)
    near(one_op("matmul", {"x": (x,), "y": (y,)}), x @ y)
    flags = {"transpose_x": np.bool_(True), "transpose_y": np.bool_(True)}
    near(one_op("matmul", {"x": (np.swapaxes(x, 1, 2).copy(),), "y": (np.swapaxes(y, 1, 2).copy(),), **flags}), x @ y)
    near(one_op("matmul", {"x": (x,), "y": (y[0, :, 0].copy(),)}), x @ y[0, :, 0])
    a, b = normal(2, 3, 4, 5), normal(2, 5, 4, 6)
    near(one_op("einsum", {"values": [(a,), (b,)], "equation": "nchw,nwhu->nchu"}), np.einsum("nchw,nwhu->nchu", a, b))


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention(mask: str | None) -> None:
    query, key, value = normal(1, 2, 3, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 4)
    arguments: dict[str, Any] = {"query": (query,), "key": (key,), "value": (value,)}
    attn_mask = None
    if mask is not None:
        attn_mask = RNG.random((3, 5)) > 0.3 if mask == "bool" else normal(3, 5)
        attn_mask[:, 0] = 1
        arguments["attn_mask"] = (attn_mask,)
    want = F.scaled_dot_product_attention(*tensors(query, key, value), None if mask is None else tensors(attn_mask)[0])
    near(one_op("scaled_dot_product_attention", arguments), want)


def test_norms() -> None:
    x, (gamma, beta, mean), variance = normal(2, 3, 4, 5), normal(3, 3), np.float32([0.5, 1, 2])
    pair, eps = {"gamma": gamma, "beta": beta}, {"epsilon": np.float32(1e-3)}
    value = torch.from_numpy(x)
    got = one_op("batch_norm", {"x": (x,), "mean": mean, "variance": variance, **pair, **eps})
    near(got, F.batch_norm(value, *tensors(mean, variance, gamma, beta), False, 0, 1e-3))
    near(
        one_op("instance_norm", {"x": (x,), **pair, **eps}),
        F.instance_norm(value, None, None, *tensors(gamma, beta), True, 0, 1e-3),
        1e-4,
    )
    last = {"gamma": normal(4, 5), "beta": normal(4, 5)}
    got = one_op("layer_norm", {"x": (x,), "axes": np.int32([2, -1]), **last, **eps})
    near(got, F.layer_norm(value, (4, 5), *tensors(*last.values()), 1e-3), 1e-4)
    got = one_op("layer_norm", {"x": (x,), "axes": np.int32([1]), **pair, **eps})
    near(got, F.layer_norm(value.permute(0, 2, 3, 1), (3,), *tensors(gamma, beta), 1e-3).permute(0, 3, 1, 2), 1e-4)
    near(one_op("l2_norm", {"x": (x,), **eps}), x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-3))
    options = {"size": np.int32(3), "alpha": np.float32(0.1), "beta": np.float32(0.7), "k": np.float32(2)}
    near(one_op("local_response_norm", {"x": (x,), **options}), F.local_response_norm(value, 3, 0.1, 0.7, 2))


REDUCTIONS = {
    "reduce_sum": np.sum,
    "reduce_mean": np.mean,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_l1_norm": lambda x, **options: np.sum(np.abs(x), **options),
    "reduce_l2_norm": lambda x, **options: np.sqrt(np.sum(x * x, **options)),
    "reduce_sum_square": lambda x, **options: np.sum(x * x, **options),
    "reduce_log_sum": lambda x, **options: np.log(np.sum(x, **options)),
    "reduce_log_sum_exp": lambda x, **options: np.log(np.sum(np.exp(x), **options)),
}


@pytest.mark.parametrize("name", list(REDUCTIONS))
@pytest.mark.parametrize("axes", [None, [0], [-1, 1], [0, 1, 2]])
@pytest.mark.parametrize("keep", [True, False])
def test_reductions(name: str, axes: list[int] | None, keep: bool) -> None:
    x = RNG.uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    options = {"keep_dims": np.bool_(keep)} | ({} if axes is None else {"axes": np.int32(axes)})
    want = REDUCTIONS[name](x, axis=None if axes is None else tuple(axes), keepdims=keep)
    near(one_op(name, {"x": (x,), **options}), want)


@pytest.mark.parametrize(("name", "want"), [("reduce_argmax", np.argmax), ("reduce_argmin", np.argmin)])
def test_arguments_of_extremes(name: str, want: Any) -> None:
    x = np.array([[1, 3, 3], [2, 2, 0]], np.float32)
    got = one_op(name, {"x": (x,), "axis": np.int32(1), "keep_dims": np.bool_(True)}, "int32")
    assert got.tolist() == want(x, 1, keepdims=True).tolist()


def test_resizing() -> None:
    x = normal(1, 2, 5, 7)
    (value,) = tensors(x)
    both = {"scale_factor_height": np.float32(2), "scale_factor_width": np.float32(3)}
    for corners in (True, False):
        got = one_op("upsample_bilinear", {"x": (x,), **both, "align_corners": np.bool_(corners)})
        near(got, F.interpolate(value, scale_factor=(2, 3), mode="bilinear", align_corners=corners))
    near(one_op("upsample_nearest_neighbor", {"x": (x,), **both}), F.interpolate(value, scale_factor=(2, 3)))
    size = {"target_size_height": np.int32(8), "target_size_width": np.int32(4)}
    near(one_op("resize_nearest_neighbor", {"x": (x,), **size}), F.interpolate(value, (8, 4)))
    got = one_op("resize_bilinear", {"x": (x,), **size, "sampling_mode": "UNALIGN_CORNERS"})
    near(got, F.interpolate(value, (8, 4), mode="bilinear"))
    new = {"x": (x,), "shape": (np.int32([8, 0]),), "resized_dims": np.uint32(2)}
    near(
        one_op("resize", {**new, "sampling_mode": "STRICT_ALIGN_CORNERS"}),
        F.interpolate(value, (8, 7), mode="bilinear", align_corners=True),
    )
    got = one_op("resize", {**new, "interpolation_mode": "NEAREST_NEIGHBOR", "sampling_mode": "UNALIGN_CORNERS"})
    near(got, F.interpolate(value, (8, 7), mode="nearest-exact"))
    near(one_op("crop", {"x": (x,), "crop_height": np.int32([1, 2]), "crop_width": np.int32([0, 3])}), x[..., 1:3, :4])


@pytest.mark.parametrize(
    ("mode", "points"),
    [
        ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
    ],
)
def test_sampling_modes_are_the_documented_ones(mode: str, points: list[float]) -> None:
    x = np.float32([[[0, 1]]])
    size = {"target_size_height": np.int32(1), "target_size_width": np.int32(5), "sampling_mode": mode}
    near(one_op("resize_bilinear", {"x": (x,), **size})[0, 0], points)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["constant", "border", "reflection"])
def test_resample_is_grid_sample(align: bool, sampling: str, padding: str) -> None:
    x, grid = normal(2, 3, 5, 4), RNG.uniform(-1.8, 1.8, (2, 6, 3, 2)).astype(np.float32)
    mode = "symmetric" if padding == "reflection" and not align else padding
    options = {"sampling_mode": sampling, "padding_mode": mode, "padding_value": np.float32(0)}
    options |= {"coordinates_mode": "normalized_minus_one_to_one", "align_corners": np.bool_(align)}
    got = one_op("resample", {"x": (x,), "coordinates": (grid,), **options})
    torch_padding = "zeros" if padding == "constant" else padding
    want = F.grid_sample(*tensors(x, grid), mode=sampling, padding_mode=torch_padding, align_corners=align)
    near(got, want, 1e-4)


def test_affine_is_affine_grid() -> None:
    x, matrix = normal(1, 2, 5, 6), normal(1, 6)
    options = {"output_height": np.int32(4), "output_width": np.int32(3), "sampling_mode": "bilinear"}
    options |= {"padding_mode": "constant", "padding_value": np.float32(0), "align_corners": np.bool_(True)}
    options["coordinates_mode"] = "normalized_minus_one_to_one"
    got = one_op("affine", {"x": (x,), "transform_matrix": (matrix,), **options})
    value, theta = tensors(x, matrix)
    grid = F.affine_grid(theta.reshape(1, 2, 3), [1, 2, 4, 3], align_corners=True)
    near(got, F.grid_sample(value, grid, align_corners=True), 1e-4)


def test_crop_resize_reads_corners_of_the_box() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    options = {"target_height": np.int32(2), "target_width": np.int32(2), "sampling_mode": "STRICT_ALIGN_CORNERS"}
    got = one_op("crop_resize", {"x": (x,), "boxes": (np.float32([[1, 0, 3, 2]]),), **options})
    near(got[0, 0], [[4, 6], [12, 14]])
    roi = np.float32([[0, 1, 0, 3, 2]]).reshape(1, 1, 5, 1, 1)
    near(one_op("crop_resize", {"x": (x,), "roi": (roi,), **options})[0, 0, 0], [[4, 6], [12, 14]])
    wide = np.float32([[1, 0, 3, 8]])
    got = one_op("crop_resize", {"x": (x,), "boxes": (wide,), **options, "pad_value": np.float32(-5)})
    near(got[0, 0], [[4, -5], [12, -5]])
    backwards = np.float32([[3, 2, 1, 0]])
    near(one_op("crop_resize", {"x": (x,), "boxes": (backwards,), **options})[0, 0], [[14, 12], [6, 4]])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_is_torchs(direction: str) -> None:
    ways = 2 if direction == "bidirectional" else 1
    module = torch.nn.LSTM(3, 4, bidirectional=ways == 2)
    x, h, c = normal(5, 2, 3), normal(2, 4 * ways), normal(2, 4 * ways)
    states = [torch.from_numpy(value).reshape(2, ways, 4).transpose(0, 1) for value in (h, c)]
    value = torch.from_numpy(x)
    with torch.no_grad():
        out, (last_h, last_c) = module(value.flip(0) if direction == "reverse" else value, tuple(states))

    def gates(name: str) -> np.ndarray:  # torch: i f z o; Core ML: i f o z
        i, f, z, o = getattr(module, name).detach().numpy().reshape(4, 4, -1)
        return np.concatenate((i, f, o, z)).squeeze()

    arguments: dict[str, Any] = {"x": (x,), "initial_h": (h,), "initial_c": (c,), "direction": direction}
    for end, suffix in (("", ""), ("_back", "_reverse"))[:ways]:
        arguments |= {
            f"weight_ih{end}": gates(f"weight_ih_l0{suffix}"),
            f"weight_hh{end}": gates(f"weight_hh_l0{suffix}"),
        }
        arguments[f"bias{end}"] = gates(f"bias_ih_l0{suffix}") + gates(f"bias_hh_l0{suffix}")
    got = one_op("lstm", {**arguments, "output_sequence": np.bool_(True)}, ["fp32"] * 3)
    near(got[0], out)
    near(got[1], last_h.transpose(0, 1).reshape(2, -1))
    near(got[2], last_c.transpose(0, 1).reshape(2, -1))


def test_rnn_and_gru_after_are_torchs() -> None:
    x, h = normal(5, 2, 3), normal(2, 4)
    plain, gated = torch.nn.RNN(3, 4), torch.nn.GRU(3, 4)
    weights = {name: value.detach().numpy() for name, value in plain.named_parameters()}
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    arguments = {"x": (x,), "initial_h": (h,), "output_sequence": np.bool_(True)}
    own = {"weight_ih": weights["weight_ih_l0"], "weight_hh": weights["weight_hh_l0"], "bias": bias}
    with torch.no_grad():
        want = [module(*tensors(x, h[None]))[0] for module in (plain, gated)]
    near(one_op("rnn", {**arguments, **own}, ["fp32", "fp32"])[0], want[0])

    def gates(name: str) -> np.ndarray:  # torch: r z o; Core ML: r o z
        r, z, o = getattr(gated, name).detach().numpy().reshape(3, 4, -1)
        return np.concatenate((r, o, z)).squeeze()

    own = {"weight_ih": gates("weight_ih_l0"), "weight_hh": gates("weight_hh_l0")}
    own |= {"bias": gates("bias_hh_l0"), "input_bias": gates("bias_ih_l0"), "reset_after": np.bool_(True)}
    near(one_op("gru", {**arguments, **own}, ["fp32", "fp32"])[0], want[1])


def test_quantize_and_back() -> None:
    x = np.float32([[-1, 0.25, 0.75], [3, 100, -100]])
    scale, zero = np.float32([0.5, 1]), np.int8([0, 3])
    options = {"scale": scale, "zero_point": zero, "axis": np.int32(0)}
    whole = one_op("quantize", {"input": (x,), **options, "output_dtype": "int8"}, "int8")
    assert whole.tolist() == [[-2, 0, 2], [6, 103, -97]]
    near(one_op("dequantize", {"input": (whole,), **options}, "fp32"), [[-1, 0, 1], [3, 100, -100]])


def test_random_follows_its_seed() -> None:
    # A program needs an input; the shape arrives as one.
    given_shape = {"shape": (np.int32([4000]),)}
    for kind, options, mean in (
        ("random_normal", {"mean": np.float32(3), "stddev": np.float32(2)}, 3),
        ("random_uniform", {"low": np.float32(-1), "high": np.float32(5)}, 2),
        ("random_bernoulli", {"prob": np.float32(0.3)}, 0.3),
    ):
        first = one_op(kind, {**given_shape, **options, "seed": np.int32(7)}, "fp32")
        assert np.array_equal(first, one_op(kind, {**given_shape, **options, "seed": np.int32(7)}, "fp32"))
        assert not np.array_equal(first, one_op(kind, {**given_shape, **options, "seed": np.int32(8)}, "fp32"))
        assert abs(first.mean() - mean) < 0.2
    logits = np.log(np.float32([[0.1, 0.9]]))
    options = {"size": np.int32(2000), "seed": np.int32(1)}
    drawn = one_op("random_categorical", {"x": (logits,), **options}, "fp32")
    assert abs(drawn.mean() - 0.9) < 0.05


def half(*shape: int) -> np.ndarray:
    return (normal(*shape) / 4).astype(np.float16)


def blocks_of_32(products: np.ndarray) -> np.ndarray:
    """The last axis summed in float32 over 32, the blocks in fp16: the definition, term by term."""
    total = np.zeros(products.shape[:-1], np.float16)
    for start in range(0, products.shape[-1], 32):
        total = total + products[..., start : start + 32].sum(-1, dtype=np.float32).astype(np.float16)
    return total


def test_accumulation_in_blocks_is_its_definition() -> None:
    x, weight = half(3, 200), half(5, 200)
    products = x.astype(np.float32)[:, None] * weight.astype(np.float32)[None]
    want = blocks_of_32(products)
    got = one_op("linear", {"x": (x,), "weight": weight}, "fp16", "fp16-accumulate")
    np.testing.assert_allclose(got, want, atol=2e-3)
    once = one_op("linear", {"x": (x,), "weight": weight}, "fp16", "fp16")
    exact = products.sum(-1, dtype=np.float64)
    assert np.abs(got - exact).mean() > 1.5 * np.abs(once - exact).mean()
    flags = {"transpose_y": np.bool_(True)}
    np.testing.assert_array_equal(
        one_op("matmul", {"x": (x,), "y": (weight,), **flags}, "fp16", "fp16-accumulate"), got
    )


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (40, 7), (4, 3)])
def test_convolution_in_blocks_sums_the_same_terms(groups: int, kernel: int) -> None:
    x, weight, bias = half(1, 40, 9, 9), half(40, 40 // groups, kernel, kernel), half(40)
    options = {"weight": weight, "bias": bias, "groups": np.int32(groups), "pad_type": "same"}
    got = one_op("conv", {"x": (x,), **options}, "fp16", "fp16-accumulate").astype(np.float32)
    want = one_op("conv", {"x": (x,), **options}, "fp16", "fp32")
    assert 0 < np.abs(got - want).max() < 0.02
