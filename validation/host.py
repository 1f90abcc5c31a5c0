"""The host's half of the language model: everything between ids and `predict`, in numpy alone.

This is the rule that a Swift runtime repeats: rotary tables, causal mask, the cutting of a
prompt into prefill chunks, and rows of `embeddings.bin`. It knows neither torch nor coremltools nor any backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import MASKED
from fastvlm.errors import BuildError, PromptError
from fastvlm.paths import open_plain

EMBEDS = "inputsEmbeds"  # what goes into every package of the language model


@dataclass(frozen=True)
class Chunk:
    """One call of the language model: `rows` real rows from `start`, written at `position`, by `function`."""

    function: str  # "prefill" | "decode"
    start: int  # first row of the prompt's embeddings
    rows: int  # real rows; the rest of a prefill call is padding
    position: int  # where in the context they go


def plan_prefill(length: int, *, past: int, query: int, context: int) -> Iterator[Chunk]:
    """Cuts `length` rows that follow `past` filled positions into calls; raises PromptError when they do not fit.

    A padded last chunk must stay inside the context: where position + query > context, `decode` finishes.
    """
    if past + length > context:
        raise PromptError(
            f"{past} positions are used and {length} more do not fit into the context of {context}; "
            "shorten the prompt, or export with a larger --context"
        )
    start = 0
    while start < length:
        position = past + start
        fits = position + query <= context
        rows = min(query, length - start) if fits else 1
        yield Chunk("prefill" if fits else "decode", start, rows, position)
        start += rows


def pad_rows(rows: NDArray[np.floating], query: int) -> NDArray[np.float16]:
    """Returns fp16 [1, Q, H] of real rows (≤ Q, H), padded with the last real row.

    Never with zeros: RMSNorm of a zero row is 0·rsqrt(eps), and an engine that flushes eps makes that NaN.
    """
    missing = query - len(rows)
    padded = np.concatenate((rows, np.repeat(rows[-1:], missing, 0))) if missing else rows
    return padded.astype(np.float16)[None]


def rope_tables(
    position: int, query: int, head_dim: int, theta: float
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Returns ropeCos and ropeSin, fp16 [1, 1, Q, D], for positions position … position + Q − 1.

    Angles are computed in float32 (theta 1e6 needs it) and only the tables are rounded to fp16.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(theta) ** -exponents  # (D/2,)
    positions = np.arange(position, position + query, dtype=np.float32)
    angles = positions[:, None] * frequencies  # (Q, D/2)
    angles = np.concatenate((angles, angles), 1)[None, None]
    return np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)


def causal_mask(position: int, rows: int, query: int, context: int) -> NDArray[np.float16]:
    """Returns causalMask fp16 [1, 1, Q, C]: 0 where a row may look, −1e4 elsewhere.

    Real row i looks at positions ≤ position + i. Padded rows look where the last real row looks, so that the
    padding behind it stays invisible to everyone.
    """
    last_visible = position + np.minimum(np.arange(query), rows - 1)
    visible = np.arange(context) <= last_visible[:, None]
    return np.where(visible, 0.0, MASKED).astype(np.float16)[None, None]


@dataclass(frozen=True)
class LanguageInputs:
    """What the host must know to make a language function's inputs: D, theta, C."""

    head_dim: int
    theta: float
    context: int

    def inputs(self, rows: NDArray[np.floating], position: int, query: int) -> dict[str, NDArray[Any]]:
        """Returns what a function of Q = `query` positions takes, for real rows (≤ Q, H) from `position` on."""
        cos, sin = rope_tables(position, query, self.head_dim, self.theta)
        return {
            EMBEDS: pad_rows(rows, query),
            "ropeCos": cos,
            "ropeSin": sin,
            "causalMask": causal_mask(position, len(rows), query, self.context),
            "position": np.array([position], np.int32),
        }


class EmbeddingTable:
    """`embeddings.bin`, row-major [V, H], mapped: only the rows that are asked for are read.

    dtype "float16", "float32", or "int8" with an fp16 scale for each row behind all of them: a row is its codes times
    its scale.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str = "float16") -> None:
        codes = np.dtype(dtype)
        self.scales: NDArray[np.float16] | None = None
        expected = rows * width * codes.itemsize + (2 * rows if dtype == "int8" else 0)
        try:
            with open_plain(path) as file:
                found: int | None = os.fstat(file.fileno()).st_size
                if found == expected:
                    self.table = np.memmap(file, codes, "r", shape=(rows, width))
                if found == expected and dtype == "int8":
                    file.seek(rows * width)
                    self.scales = np.frombuffer(file.read(2 * rows), np.float16)
        except OSError:
            found = None
        if found != expected:
            raise BuildError(
                f"{path.name}: expected {expected} bytes for {rows} rows of {width} {dtype}, found "
                f"{'no file that can be read' if found is None else f'{found} bytes'}; export again"
            )

    def __call__(self, ids: Sequence[int]) -> NDArray[np.floating]:
        """Returns rows (S, H), fp16 or float32, of ids (S,); raises PromptError for an id outside the table."""
        outside = [i for i in ids if not 0 <= i < len(self.table)]
        if outside:
            raise PromptError(f"ids {outside[:5]} are outside the embedding table of {len(self.table)} rows")
        places = np.asarray(ids, np.int64)
        rows = np.asarray(self.table[places])
        if self.scales is None:
            return rows
        return (rows.astype(np.float32) * self.scales[places, None].astype(np.float32)).astype(np.float16)
