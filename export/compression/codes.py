"""Both directions of compression: rows to codes and tables, and back to the numbers that a runtime computes.

A block of rows is compressed alone, so that weights larger than memory can pass through block by block, and so that
threads can share the work. `dense` is the definition of the stored form, in float32: `scale · (code − offset)`, or a
table's entry.
It does not know how many rows a weight has in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.compression.linear import compress_blocks, compress_channels
from export.compression.palette import compress_palette
from export.compression.schemes import Scheme
from export.compression.stored import Codes

_COMPRESS = {"channel": compress_channels, "block": compress_blocks, "palette": compress_palette}


def compress(scheme: Scheme, rows: Tensor, importance: Tensor | None = None) -> Codes:
    """Compresses whole rows (n, K, ...) float32 so that Σ importance_j · (w_ij − q_ij)² is small.

    importance: E[x_j²] of each input channel (K,), None for all alike; it must be finite and not negative. n is a
    multiple of 32 for palettes. ValueError for rows that the scheme cannot hold, or that are not finite.
    """
    problem = scheme.problem(tuple(rows.shape))
    if problem:
        raise ValueError(f"{scheme.name}: a block of shape {tuple(rows.shape)} {problem}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{scheme.name}: the rows hold NaN or infinity")
    return _COMPRESS[scheme.kind](scheme, rows.float(), _weights(rows, importance))


def _weights(rows: Tensor, importance: Tensor | None) -> Tensor | None:
    """The importance with mean 1; none below 1e-4, so that an input that calibration never met is not given up."""
    if importance is None:
        return None
    if importance.shape != rows.shape[1:2] or not bool((torch.isfinite(importance) & (importance >= 0)).all()):
        raise ValueError(f"importance of shape {tuple(importance.shape)}: {rows.shape[1]} finite values ≥ 0 expected")
    mean = importance.double().mean()
    if mean == 0:
        return None
    return (importance.double() / mean).clamp(min=1e-4).float()


def dense(scheme: Scheme, codes: Codes) -> Tensor:
    """Returns the weights (n, K, ...) float32 that the stored values stand for, computed in float32."""
    if scheme.kind == "palette":
        return _looked_up(codes)
    values, scale = codes.codes.float(), codes.tables["scale"].float()
    if "offset" in codes.tables:
        values -= _spread(codes.tables["offset"].float(), values)
    values *= _spread(scale, values)
    return values


def _spread(table: Tensor, values: Tensor) -> Tensor:
    """The table (n, blocks, ...) repeated along axis 1 where it has more than one block."""
    return table if table.shape[1] == 1 else table.repeat_interleave(values.shape[1] // table.shape[1], dim=1)


def _looked_up(codes: Codes) -> Tensor:
    tables = codes.tables["lut"].flatten(1).float()  # (groups, entries)
    indices = codes.codes.reshape(len(tables), -1).long()
    return tables.gather(1, indices).reshape(codes.codes.shape)
