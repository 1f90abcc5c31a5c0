"""What a package keeps of a conversation against what the reference keeps of it: keys and values, layer by layer.

The package takes the rows in chunks, the last one padded, as a host fills it; the reference takes all of them at once.
Then the package takes the last rows once more, one by one, in their places: what `decode` writes over what `prefill`
had written must be the same but for rounding, or one of the two looks at rows that it should not see.
Everything is judged beside the reference with each op rounded to fp16. Rotary tables are left out of the rounding, a
host computes them in float32: an angle of 300 rounded to fp16 would be off by 0.1.
It knows neither pictures nor text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from export.contract import state_spec
from fastvlm.errors import PackageError
from fastvlm_ref.model.decoder import Decoder, rope_tables
from fastvlm_ref.model.kv_cache import KVCache
from validation.counterparts.decoder import DecoderPart
from validation.counterparts.state import KINDS, Kept, state_counterparts
from validation.engine import PackageEngine
from validation.metrics import snr_db
from validation.pair import Pair
from validation.parity import loss_db
from validation.reference import check
from validation.rounding import RoundEachOp

Rows = NDArray[np.float32]
AGAIN = 3  # rows that are decoded once more


@dataclass(frozen=True)
class Filled:
    """What the reference keeps of rows (S, H) taken at once, in float32 and with every op rounded to fp16."""

    rows: Rows
    exact: KVCache
    rounded: KVCache


@dataclass
class StateParity:
    """By kind ("keys", "values") and layer, in dB: how much worse than fp16 alone the package's state is.

    chunking: the same of the last rows, of what `decode` writes against what `prefill` wrote: their difference beside
    the error of fp16 alone.
    """

    loss: dict[str, dict[str, float]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    chunking: dict[str, float] = field(default_factory=dict)


def rows_to_fill(embeds: Rows, query: int) -> Rows:
    """Returns rows (S, H), without the last one where S is a multiple of Q: so that the last chunk is padded."""
    return embeds[:-1] if len(embeds) % query == 0 else embeds


def fill(decoder: Decoder, rows: Rows, stopped: Event) -> Filled:
    """Returns what the reference keeps of rows (S, H)."""
    with torch.no_grad():
        check(stopped)
        exact = _fill(decoder, rows, rounded=False)
        check(stopped)
        return Filled(rows, exact, _fill(decoder, rows, rounded=True))


def _fill(decoder: Decoder, rows: Rows, rounded: bool) -> KVCache:
    length = len(rows)
    cache = KVCache(decoder.config, length)
    positions = torch.arange(length)
    cos, sin = rope_tables(decoder.config, positions)
    rope = (cos.half().float(), sin.half().float()) if rounded else (cos, sin)
    mask = positions <= positions[:, None]
    x = torch.from_numpy(rows)[None]  # (1, S, H)
    for number, layer in enumerate(decoder.layers):
        if rounded:
            with RoundEachOp():  # type: ignore[no-untyped-call]  # torch does not annotate its base
                x = layer(x, rope, mask, cache, number)
        else:
            x = layer(x, rope, mask, cache, number)
    cache.advance(length)
    return cache


def compare_state(pair: Pair, package: PackageEngine, filled: Filled) -> StateParity:
    """Fills the package with the rows that the reference was filled with, and returns how far its states are.

    Raises PackageError for a state of another shape than the manifest's target, context and layers make.
    """
    parity, rows = StateParity(), filled.rows
    package.reset()
    package.prefill(rows)
    before = list(_kept(pair, package, len(rows)))
    last = rows[-AGAIN:]
    package.position -= len(last)
    for row in last:
        package.decode(row[None])
    for (kept, first), (_, second) in zip(before, _kept(pair, package, len(rows)), strict=True):
        exact, rounded = (_as_kept(kept, cache) for cache in (filled.exact, filled.rounded))
        name, ends = f"layer {kept.layer}", np.s_[:, -len(last) :]
        parity.loss[kept.kind][name] = loss_db(snr_db(exact, rounded), snr_db(exact, first))
        apart = loss_db(snr_db(exact[ends], rounded[ends]), snr_db(first[ends], second[ends]))
        parity.chunking[f"{kept.kind} of {name}"] = apart
    return parity


def _kept(pair: Pair, package: PackageEngine, positions: int) -> Iterator[tuple[Kept, Rows]]:
    """Keys and values of every layer, as the packages hold them, (kv_heads, S, D)."""
    for state, (path, part) in zip(package.read_states(), pair.parts(), strict=True):
        if state is not None:
            _check_shape(state.shape, path, part, pair)
            yield from ((kept, kept.filled(state, positions)) for kept in state_counterparts(part))


def _check_shape(found: tuple[int, ...], package: Path, part: DecoderPart, pair: Pair) -> None:
    build = pair.build
    wanted = state_spec(pair.model.config.text, build.context, len(part.layers), build.target).shape
    if found != wanted:
        raise PackageError(
            f"{package.name} keeps a state of shape {list(found)}, expected {list(wanted)} for {len(part.layers)} "
            f"layers, target {build.target} and context {build.context}, as manifest.json has them; export again"
        )


def _as_kept(kept: Kept, cache: KVCache) -> Rows:
    held = (cache.keys if kept.kind == "keys" else cache.values)[kept.layer, 0]
    result: Rows = kept.result(held).numpy()
    return result
