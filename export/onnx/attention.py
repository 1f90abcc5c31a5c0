"""Grouped-query attention by onnxruntime's op, and where queries and keys are rotated.

`GroupQueryAttention` rotates both by tables of every position that lie in the graph, with angles in float32, as the
reference computes them. Keys whose bias fp16 should not add (`export.key_shift`) are rotated before it, without the
part of the bias that softmax does not see:

    R_j(W x) + (R_j b − b), the second term a table of every position too, computed in float64

Where the first row stands is known from the inputs, so that no position ids are passed.
It knows neither weights nor files.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from export.onnx.forms import DTYPES
from export.onnx.graph import MICROSOFT, Graph
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import rope_tables, rotate

ROWS = "rows"  # how files call the number S


class AttentionOps:
    """Adds attention of S rows over C positions; `embeds` (1, S, H), `last` (1,) and `total` are the graph's inputs."""

    def __init__(
        self, graph: Graph, text: TextConfig, context: int, floats: int, embeds: str, last: str, total: str
    ) -> None:  # fmt: skip
        self.graph, self.text, self.context, self.floats = graph, text, context, floats
        self._embeds, self._last, self._total = embeds, last, total
        cos, sin = rope_tables(text, torch.arange(context))
        self._tables = tuple(
            self._table(name, half[:, : text.head_dim // 2]) for name, half in (("cos", cos), ("sin", sin))
        )
        self._rows: tuple[str, str] | None = None

    def rotated(self, q: str, k: str, index: int, shift: Tensor) -> tuple[str, str]:
        """Returns rotated q and k (1, S, …) of layer `index`; `shift`: of `key_shift`, what its keys go without."""
        op, (begin, end) = self.graph.op, self._positions()
        turned = (self.graph.microsoft("RotaryEmbedding", x, begin, *self._tables) for x in (q, k))
        widths = (self.text.heads * self.text.head_dim, self.text.kv_width)
        q, k = (self._typed(x, width) for x, width in zip(turned, widths, strict=True))
        table = self._table(f"key_shift.{index}", _turned_shift(self.text, self.context, shift))
        return q, op("Add", k, op("Slice", table, begin, end, self._numbers(0)))

    def mixed(self, index: int, q: str, k: str, v: str, rotate: bool, scale: float | None) -> str:
        """Returns mixed values (1, S, heads · D) and writes the cache; `rotate`: q and k are not rotated yet.

        scale: of the scores, 1 / √D for None.
        """
        graph, text = self.graph, self.text
        shape = [1, text.kv_heads, self.context, text.head_dim]
        past = [graph.input(f"past{kind}.{index}", self.floats, shape) for kind in ("Keys", "Values")]
        present = [graph.result(f"present{kind}.{index}", self.floats, shape) for kind in ("Keys", "Values")]
        tables = self._tables if rotate else ()
        mixed, *_ = graph.ops(
            "GroupQueryAttention", q, k, v, *past, self._last, self._total, *tables,
            count=3, domain=MICROSOFT, into=[f"layers.{index}.self_attn/mixed", *present],
            num_heads=text.heads, kv_num_heads=text.kv_heads, do_rotary=int(rotate),
            **({} if scale is None else {"scale": scale}),
        )  # fmt: skip
        return self._typed(mixed, text.heads * text.head_dim)

    def _positions(self) -> tuple[str, str]:
        """The first row's position and the one behind the last, int64 (1,)."""
        if self._rows is None:
            op = self.graph.op
            end = op("Add", op("Cast", self._last, to=TensorProto.INT64), self._numbers(1))
            self._rows = op("Sub", end, op("Shape", self._embeds, start=1, end=2)), end
        return self._rows

    def _numbers(self, *values: int) -> str:
        return self.graph.constant(np.array(values, np.int64))

    def _table(self, name: str, values: Tensor) -> str:
        table: NDArray[np.floating] = values.numpy().astype(DTYPES[self.floats])
        return self.graph.weight(f"rotary.{name}", self.floats, table.shape, lambda: [table.tobytes()])

    def _typed(self, x: str, width: int) -> str:
        return self.graph.typed(x, self.floats, [1, ROWS, width])


def _turned_shift(text: TextConfig, context: int, shift: Tensor) -> Tensor:
    """R_j b − b (C, kv_heads · D), float64, of b (kv_heads, D)."""
    exponents = -torch.arange(0, text.head_dim, 2).double() / text.head_dim
    angles = torch.arange(context).double()[:, None] * text.rope_theta**exponents
    angles = torch.cat((angles, angles), -1)
    bias = shift.double()[:, None]  # (kv_heads, 1, D)
    # cos − 1 as −2 sin²: near 1 a cosine has no digits left.
    turned = bias * (-2 * (angles / 2).sin() ** 2) + rotate(bias, torch.zeros(()), angles.sin())
    return turned.transpose(0, 1).reshape(context, -1)
