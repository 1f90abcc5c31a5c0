"""Programs that hold between them what a program can.

Stored and inline constants, palettes and scales, states, branches, loops, lists, an image, and ops whose results grow
with a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stranger_packages import Original, Program, Stored, declare, stored


def drawn(*shape: int) -> np.ndarray:
    """Numbers of fp16."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16)


def convolutions() -> Program:
    """A picture through stored, palettised and scaled weights."""
    made = Program()
    x = made.image("image", 8)
    x = made.op("mul", "scaled", "fp16", (1, 3, 8, 8), x=x, y=np.float16(1 / 255))
    pads: dict[str, Any] = {
        "strides": [1, 1],
        "pad_type": "custom",
        "pad": [1, 1, 1, 1],
        "dilations": [1, 1],
        "groups": 1,
    }
    pads = {name: value if isinstance(value, (str, int)) else np.int32(value) for name, value in pads.items()}
    x = made.op("conv", "first", "fp16", (1, 4, 8, 8), x=x, weight=stored(drawn(4, 3, 3, 3)), bias=drawn(4), **pads)
    x = made.op("gelu", "bent", "fp16", (1, 4, 8, 8), x=x, mode="EXACT")
    codes = Stored("uint4", (4, 4, 3, 3), bytes(range(72)))
    lut = stored(drawn(1, 1, 1, 1, 16, 1))
    palette = made.op("constexpr_lut_to_dense", "palette", "fp16", (4, 4, 3, 3), indices=codes, lut=lut)
    x = made.op("conv", "second", "fp16", (1, 4, 8, 8), x=x, weight=palette, **pads)
    data, scale = stored(np.arange(64, dtype=np.int8).reshape(16, 4, 1, 1)), stored(drawn(16, 1, 1, 1))
    scaled = made.op("constexpr_blockwise_shift_scale", "wide", "fp16", (16, 4, 1, 1), data=data, scale=scale)
    x = made.op("conv", "third", "fp16", (1, 16, 8, 8), x=x, weight=scaled, **pads | {"pad": np.int32([0] * 4)})
    pool = {
        "kernel_sizes": np.int32([2, 2]),
        "strides": np.int32([2, 2]),
        "pad_type": "valid",
        "pad": np.int32([0] * 4),
    }
    x = made.op("avg_pool", "pooled", "fp16", (1, 16, 4, 4), x=x, exclude_padding_from_average=False, **pool)
    x = made.op("reshape", "rows", "fp16", (1, 16, 16), x=x, shape=np.int32([1, 16, 16]))
    made.give(made.op("transpose", "features", "fp16", (1, 16, 16), x=x, perm=np.int32([0, 2, 1])))
    return made


def attention() -> Program:
    """A row through a cache: states, slices, attention, a table's rows."""
    made = Program()
    x, position = made.input("x", "fp16", (1, 2, 16)), made.input("position", "int32", (1,))
    mask, cache = made.input("mask", "fp16", (1, 1, 2, 32)), made.state("kv", (2, 1, 32, 16))
    weight = {"weight": stored(drawn(16, 16)), "bias": stored(drawn(16))}
    x = made.op("linear", "q", "fp16", (1, 2, 16), x=x, **weight)
    x = made.op("layer_norm", "normed", "fp16", (1, 2, 16), x=x, axes=np.int32([-1]), epsilon=np.float16(1e-5))
    row = made.op("expand_dims", "row", "fp16", (1, 1, 2, 16), x=x, axes=np.int32([1]))
    end = made.op("add", "end", "int32", (1,), x=position, y=np.int32([2]))
    held = made.op("read_state", "held", "fp16", (2, 1, 32, 16), input=cache)
    zero, width = np.int32([0]), np.int32([16])
    begin = made.op("concat", "begin", "int32", (4,), values=[zero, zero, position, zero], axis=0, interleave=False)
    ends = made.op(
        "concat", "ends", "int32", (4,), values=[np.int32([1]), np.int32([1]), end, width], axis=0, interleave=False
    )
    new = made.op("slice_update", "new", "fp16", (2, 1, 32, 16), x=held, update=row, begin=begin, end=ends)
    made.none("write_state", "kept", input=cache, data=new)
    again = made.op("read_state", "again", "fp16", (2, 1, 32, 16), input=cache)
    part = {"end": np.int32([1, 1, 32, 16]), "begin": np.int32([0] * 4)}
    keys = made.op("slice_by_index", "keys", "fp16", (1, 1, 32, 16), x=again, **part)
    mixed = made.op(
        "scaled_dot_product_attention", "mixed", "fp16", (1, 1, 2, 16), query=row, key=keys, value=keys, attn_mask=mask
    )
    scores = made.op("softmax", "likely", "fp16", (1, 1, 2, 16), x=mixed, axis=-1)
    best = made.op("reduce_argmax", "best", "int32", (1, 1, 2), x=scores, axis=-1, keep_dims=False)
    rows = made.op("gather", "found", "fp16", (1, 1, 2, 16), x=stored(drawn(16, 16)), indices=best, axis=0)
    made.give(made.op("matmul", "logits", "fp16", (1, 1, 2, 8), x=rows, y=stored(drawn(16, 8))), scores)
    return made


def control() -> Program:
    """A branch, a loop and a list."""
    made = Program()
    x = made.input("x", "fp32", (4,))
    total = made.op("reduce_sum", "total", "fp32", (), x=x, axes=np.int32([0]), keep_dims=False)
    positive = made.op("greater", "positive", "bool", (), x=total, y=np.float32(0))
    branch = made.none("cond", "branch", pred=positive)
    for kind in ("exp", "tanh"):
        block = branch.blocks.add()
        block.outputs.append(made.op(kind, f"{kind}ed", "fp32", (4,), block, x=x)[1:])
    declare(branch.outputs.add(name="branched").type, "fp32", (4,))
    loop = made.none("while_loop", "loop", loop_vars=[np.float32(0), "@branched"])
    for kind in ("less", "add"):
        block = loop.blocks.add()
        for name, shape in (("count", ()), ("value", (4,))):
            declare(block.inputs.add(name=f"{kind}{name}").type, "fp32", shape)
        y = np.float32(3 if kind == "less" else 1)
        result = made.op(kind, f"{kind}ing", "bool" if kind == "less" else "fp32", (), block, x=f"@{kind}count", y=y)
        block.outputs.append(result[1:])
        if kind == "add":
            block.outputs.append(made.op("sqrt", "root", "fp32", (4,), block, x="@addvalue")[1:])
    for name, shape in (("rounds", ()), ("looped", (4,))):
        declare(loop.outputs.add(name=name).type, "fp32", shape)
    items = made.none(
        "make_list", "items", init_length=np.int32(2), dynamic_length=True, dtype="fp32", elem_shape=[np.int32(4)]
    )
    declare(items.outputs.add(name="items").type.listType.type, "fp32", (4,))
    items = made.none("list_write", "written", ls="@items", index=np.int32(1), value="@looped")
    declare(items.outputs.add(name="written").type.listType.type, "fp32", (4,))
    made.op("list_gather", "gathered", "fp32", (2, 4), ls="@written", indices=np.int32([0, 1]))
    made.give("@gathered", "@rounds")
    return made


def growing() -> Program:
    """Ops whose results are as large as a number says."""
    made = Program()
    x = made.input("x", "fp32", (2, 4))
    made.op("fill", "filled", "fp32", (2, 4), shape=np.int32([2, 4]), value=np.float32(1))
    made.op("tile", "tiled", "fp32", (4, 8), x=x, reps=np.int32([2, 2]))
    made.op(
        "pad", "padded", "fp32", (4, 6), x=x, pad=np.int32([1, 1, 1, 1]), mode="constant", constant_val=np.float32(0)
    )
    made.op("range_1d", "counted", "int32", (5,), start=np.int32(0), end=np.int32(10), step=np.int32(2))
    ends = {"axis": -1, "on_value": np.int32(1), "off_value": np.int32(0)}
    made.op("one_hot", "hot", "int32", (5, 12), indices="@counted", one_hot_vector_size=np.int32(12), **ends)
    made.op("cumsum", "summed", "int32", (5, 12), x="@hot", axis=0, exclusive=False, reverse=False)
    made.op("reshape", "map", "fp32", (1, 1, 2, 4), x=x, shape=np.int32([1, 1, 2, 4]))
    twice = {"scale_factor_height": np.float32(2), "scale_factor_width": np.float32(2)}
    made.op("upsample_nearest_neighbor", "larger", "fp32", (1, 1, 4, 8), x="@map", **twice)
    made.op("upsample_bilinear", "smooth", "fp32", (1, 1, 4, 8), x="@map", align_corners=False, **twice)
    places = {"strides": np.int32([2, 2]), "pad_type": "valid", "pad": np.int32([0] * 4), "groups": np.int32(1)}
    weight = np.ones((1, 2, 2, 2), np.float32)
    made.op("conv_transpose", "spread", "fp32", (1, 2, 4, 8), x="@map", weight=weight, **places)
    made.op("gather_nd", "picked", "fp32", (1, 4), x=x, indices=np.int32([[1]]), batch_dims=np.int32(0))
    made.op("einsum", "product", "fp32", (2, 2), values=[x, x], equation="ij,kj->ik")
    made.give("@filled", "@tiled", "@padded", "@summed", "@larger", "@smooth", "@spread", "@picked", "@product")
    return made


PROGRAMS = {"convolutions": convolutions, "attention": attention, "control": control, "growing": growing}


def originals(folder: Path) -> list[Original]:
    """The packages of PROGRAMS, written into `folder`."""
    return [Original(make().write(folder / f"{name}.mlpackage")) for name, make in PROGRAMS.items()]
