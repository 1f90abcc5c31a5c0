"""A language model's graph run op by op, each result rounded to its dtype, as a machine with halves computes it.

onnxruntime's CPU kernels compute most of a float16 graph in float32 and leave out the roundings between them; so what
fp16 costs, and what leaves it, shows only here: onnx's own reference ops in numpy, and numpy forms of onnxruntime's.
Inside one op sums are float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from export.onnx.graph import MICROSOFT

Array = NDArray[Any]


class SkipSimplifiedLayerNormalization(OpRun):
    """x + skip, and its RMS norm times gamma."""

    op_domain = MICROSOFT

    def _run(self, x: Array, skip: Array, gamma: Array, epsilon: float = 1e-5) -> tuple[Array, ...]:
        total = x + skip
        wide = total.astype(np.float32)
        normed = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + np.float32(epsilon)) * gamma
        nothing = np.zeros(0, np.float32)
        return normed.astype(x.dtype), nothing, nothing, total


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """(S, heads, D) by tables (S, D / 2) of its rows."""
    first, second = np.split(x.astype(np.float32), 2, -1)
    cos, sin = cos[:, None].astype(np.float32), sin[:, None].astype(np.float32)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), -1).astype(x.dtype)


class RotaryEmbedding(OpRun):
    """Rows (1, S, heads · D) from a position on."""

    op_domain = MICROSOFT

    def _run(self, x: Array, begin: Array, cos: Array, sin: Array, **_: Any) -> tuple[Array]:
        rows = slice(int(begin[0]), int(begin[0]) + x.shape[1])
        return (rotated(x.reshape(x.shape[1], -1, 2 * cos.shape[1]), cos[rows], sin[rows]).reshape(x.shape),)


class GroupQueryAttention(OpRun):
    """Attention of S rows over a cache, which it returns with the rows written."""

    op_domain = MICROSOFT

    def _run(
        self, q: Array, k: Array, v: Array, keys: Array, values: Array, last: Array, total: Array,
        cos: Array | None = None, sin: Array | None = None, num_heads: int = 0, kv_num_heads: int = 0,
        do_rotary: int = 0, scale: float = 0.0,
    ) -> tuple[Array, ...]:  # fmt: skip
        count, head_dim = q.shape[1], keys.shape[3]
        end = int(last[0]) + 1
        begin = end - count
        split = [each.reshape(count, -1, head_dim) for each in (q, k, v)]
        if do_rotary and cos is not None and sin is not None:
            split[:2] = [rotated(each, cos[begin:end], sin[begin:end]) for each in split[:2]]
        keys, values = keys.copy(), values.copy()
        keys[0, :, begin:end], values[0, :, begin:end] = split[1].transpose(1, 0, 2), split[2].transpose(1, 0, 2)
        queries = split[0].astype(np.float32).transpose(1, 0, 2).reshape(kv_num_heads, -1, count, head_dim)
        scores = queries @ keys[0, :, None, :end].astype(np.float32).swapaxes(-1, -2) * (scale or head_dim**-0.5)
        scores[..., np.arange(end) > begin + np.arange(count)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ values[0, :, None, :end].astype(np.float32)).reshape(num_heads, count, head_dim)
        return mixed.transpose(1, 0, 2).reshape(1, count, -1).astype(q.dtype), keys, values


OPS = [SkipSimplifiedLayerNormalization, RotaryEmbedding, GroupQueryAttention]


def half_machine(path: Path, rows: NDArray[np.float32], ends: list[int]) -> NDArray[np.float32]:
    """Logits (len(ends), V) behind each of `ends`, one call up to each, as `Runner.parts`."""
    model = onnx.load(path)
    evaluator, found = ReferenceEvaluator(model, new_ops=OPS), []
    caches = {}
    for value in model.graph.input:
        if value.name.startswith("past"):
            kind = value.type.tensor_type
            shape = [dim.dim_value for dim in kind.shape.dim]
            caches[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    floats = next(iter(caches.values())).dtype
    names = ["logits", *(name.replace("past", "present") for name in caches)]
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        given = {"inputsEmbeds": rows[None, start:end].astype(floats), "seqlensK": np.array([end - 1], np.int32)}
        with np.errstate(over="ignore", invalid="ignore"):
            logits, *presents = evaluator.run(names, given | caches | {"totalSequenceLength": np.array(end, np.int32)})
        caches = dict(zip(caches, presents, strict=True))
        found.append(logits[0, 0])
    return np.stack(found)
