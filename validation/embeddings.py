"""How far the rows of embeddings.bin are from the checkpoint's, block by block: the table of 7B has 545 million values.

Both forms are held against the checkpoint rounded to fp16: what is beyond it was clamped by the export, which reported
it, and the rows of tokens that were never trained may be too small for it, which is no fault of eight bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 22  # values


def table_error(table: NDArray[np.float32], stored: NDArray[np.floating]) -> float:
    """Returns the largest difference of a table (V, H) from the checkpoint's, which beside fp16 is rounded to it.

    NaN counts.
    """
    if stored.dtype == np.float32:
        return float(np.max(np.abs(table - stored)))
    return float(np.max([np.abs(expected - stored[rows]).max() for rows, expected in _blocks(table)]))


def worst_scaled_row(
    table: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float16]
) -> tuple[int, float]:
    """Returns which row of an int8 table (V, H) with scales (V,) has the least SNR, and the SNR in dB."""
    found = []
    for rows, expected in _blocks(table):
        with np.errstate(divide="ignore", invalid="ignore"):  # a damaged scale may be infinite
            wrong = expected - codes[rows] * scales[rows, None].astype(np.float32)
            noise, signal = (np.square(x, dtype=np.float64).sum(1) for x in (wrong, expected))
            found.append(np.where(noise == 0, np.inf, 10 * np.log10(signal / np.where(noise == 0, 1, noise))))
    decibel = np.concatenate(found)
    row = int(decibel.argmin())  # the first NaN, where there is one
    return row, float(decibel[row])


def _blocks(table: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of rows of the checkpoint's table as fp16 can hold them, float32."""
    limit, step = np.finfo(np.float16).max, max(1, BLOCK // table.shape[1])
    for start in range(0, len(table), step):
        rows = slice(start, start + step)
        yield rows, np.clip(table[rows], -limit, limit).astype(np.float16).astype(np.float32)
