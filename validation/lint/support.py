"""Which ops have a path on which generation of the engine: one row an op, to be corrected by a device.

Most rows are those of ane-guide's appendix A, whose M1, M2 and M5 columns its author measured by compiling and running
one op at a time below Core ML, and whose M3 and M4 columns are read from the compiler. Where others who watched
Core ML place ops disagree, the row takes the worse answer and says so. An op that no row names is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from validation.lint.rule import Confidence, Source
from validation.lint.sources import ANEFORGE, CT_GATHER, GUIDE_OPS, JR_OPS, TOPK

MEASURED, DISPUTED = Confidence.MEASURED, Confidence.DISPUTED


@dataclass(frozen=True)
class Support:
    """How far an op goes: `first` is the earliest generation that takes it, None where none does."""

    first: str | None
    note: str
    sources: tuple[Source, ...] = (GUIDE_OPS,)
    confidence: Confidence = MEASURED


_ALWAYS = Support("H13", "runs on every generation")
_NATIVE = """
conv conv_transpose linear matmul einsum scaled_dot_product_attention avg_pool max_pool l2_pool
batch_norm layer_norm instance_norm l2_norm local_response_norm
abs add sub mul real_div floor_div pow square sqrt rsqrt inverse maximum minimum
equal not_equal greater greater_equal less less_equal logical_not select
relu relu6 leaky_relu prelu clamped_relu thresholded_relu threshold clip elu sigmoid sigmoid_hard tanh scaled_tanh
gelu silu softmax softplus softplus_parametric softsign erf exp exp2 log sign ceil floor round atan linear_activation
reduce_sum reduce_mean reduce_max reduce_min reduce_sum_square reduce_l1_norm reduce_l2_norm reduce_log_sum
reduce_log_sum_exp reduce_argmax
reshape reshape_like expand_dims squeeze flatten2d transpose concat split stack pad slice_by_size slice_by_index
slice_update reverse tile depth_to_space space_to_depth pixel_shuffle pixel_unshuffle space_to_batch batch_to_space
identity fill fill_like crop cast quantize dequantize read_state write_state coreml_update_state
"""
_HOST = "no hardware path; computed outside the engine"
_NEVER = """
reduce_prod scatter scatter_along_axis scatter_nd mod one_hot band_part reverse_sequence shape sliding_windows
logical_and logical_or logical_xor gru lstm rnn tan asin acos sinh cosh asinh acosh atanh
random_bernoulli random_categorical random_normal
list_gather list_length list_read list_scatter list_write make_list
"""
_TEXTURE = "needs the texture engine; a software path of other rounding before"

SUPPORT: dict[str, Support] = {
    **dict.fromkeys(_NATIVE.split(), _ALWAYS),
    **{name: Support(None, _HOST) for name in _NEVER.split()},
    "non_zero": Support(None, "its result's length depends on the data"),
    "cond": Support(None, "control flow is not compiled for the engine", (GUIDE_OPS, JR_OPS)),
    "while_loop": Support(None, "control flow is not compiled for the engine", (GUIDE_OPS, JR_OPS)),
    "range_1d": Support(None, "rejected by the code generator; a constant does the same"),
    "non_maximum_suppression": Support(None, "runs on CPU or GPU; the engine alone refuses it", (GUIDE_OPS, ANEFORGE)),
    "cumsum": Support(
        None, "seen on the engine by one route below Core ML, on the CPU by others", (GUIDE_OPS, JR_OPS), DISPUTED
    ),
    "gather": Support(
        None, "hardware from H14 below Core ML, a CPU op to those who watched Core ML", (CT_GATHER, JR_OPS, GUIDE_OPS),
        DISPUTED,
    ),
    "gather_along_axis": Support(None, "as gather", (CT_GATHER, JR_OPS, GUIDE_OPS), DISPUTED),
    "gather_nd": Support(None, "as gather", (JR_OPS, GUIDE_OPS), DISPUTED),
    "classify": Support(None, "gives a dictionary", (JR_OPS,), Confidence.UNKNOWN),
    "topk": Support("H14", "costs 1.75 ms on an A19 Pro when the rest is on the engine", (GUIDE_OPS, TOPK)),
    "argsort": Support("H14", "rejected by the code generator before", (GUIDE_OPS, JR_OPS), DISPUTED),
    "crop_resize": Support("H14", _TEXTURE, (GUIDE_OPS, ANEFORGE), DISPUTED),
    **{name: Support("H14", _TEXTURE) for name in ("resample", "affine")},
    **{
        name: Support("H14", _TEXTURE)
        for name in (
            "resize", "resize_bilinear", "resize_nearest_neighbor", "upsample_bilinear", "upsample_nearest_neighbor",
        )
    },
    **{name: Support("H15", "native from H15") for name in ("sin", "cos", "random_uniform", "reduce_argmin")},
}  # fmt: skip
