"""The reference's attention of a decoder layer over a state: what comes out, and what lies in the state afterwards.

It attends in float64 over a cache of its own. The state is that cache as `export.decoder_weights` declares it: keys
without the constant part of their bias, as fp16 holds it, values as x · 2^−e, both in the target's layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from export.contract import STATE
from export.key_shift import k_bias, key_shift
from fastvlm_ref.model.decoder import Attention, rope_tables
from fastvlm_ref.model.kv_cache import KVCache
from validation.counterparts.decoder import DecoderPart
from validation.op_parity.features import ANE
from validation.op_parity.inputs import numbers
from validation.op_parity.partly import partly
from validation.op_parity.piece import Shape


@dataclass
class States:
    """The random state that all pieces of a package begin with, made once."""

    _known: dict[Shape, Tensor] = field(default_factory=dict)

    def of(self, shape: Shape) -> Tensor:
        """Returns float32 numbers of size 1; nobody may change them."""
        if shape not in self._known:
            self._known = {shape: numbers("normal", shape, STATE)}
        return self._known[shape]


@dataclass(frozen=True)
class CachedAttention:
    """Attention of layer `number` of a package; `module` is the reference's."""

    part: DecoderPart
    number: int
    module: Attention

    @property
    def rows(self) -> slice:
        """The layer's rows of the state: keys, then values."""
        return slice(2 * self.number, 2 * self.number + 2)

    @cached_property
    def shift(self) -> Tensor:
        """What every key of the state goes without, float64 (kv_heads, 1, D)."""
        sizes, text = self.part.sizes, self.part.sizes.text
        if not sizes.shifts_keys:
            return torch.zeros(text.kv_heads, 1, text.head_dim, dtype=torch.float64)
        bias = k_bias(self.part.decoder, self.part.layers[self.number])
        return key_shift(bias, text, sizes.context).half().double()[:, None]

    def rope(self, position: int, query: int) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine, float32 (Q, D)."""
        return rope_tables(self.part.sizes.text, torch.arange(position, position + query))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, position: int, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what o_proj takes, (1, Q, heads · D), and the state behind it.

        queries, keys, values: of the reference's projections, (1, Q, width), keys without their constant part. before:
        the state, float32, as the target has it.
        """
        query = queries.shape[1]
        cache = self._cache(before, position)
        cosine, sine = (table.double() for table in self.rope(position, query))
        mask = torch.arange(position + query) <= torch.arange(position, position + query)[:, None]
        given = {
            "q_proj": queries.double(),
            "k_proj": keys.double() + self.shift.reshape(-1),
            "v_proj": values.double(),
        }
        x = torch.empty(1, query, 1)
        mixed = partly(self.module, x, (cosine, sine), mask, cache, 0, given=given, wanted="o_proj")
        return mixed.float(), self._behind(before, cache, slice(position, position + query))

    def _cache(self, state: Tensor, position: int) -> KVCache:
        """The reference's cache with what the state holds up to `position`."""
        text, exponent = self.part.sizes.text, self._exponent
        cache = KVCache(replace(text, layers=1), self.part.sizes.context, dtype=torch.float64)
        keys, values = (self._turned(row).double() for row in state[self.rows])
        cache.keys[0, 0, :, :position] = (keys + self.shift)[:, :position]
        cache.values[0, 0, :, :position] = values[:, :position] * 2.0**exponent
        cache.length = position
        return cache

    def _behind(self, before: Tensor, cache: KVCache, written: slice) -> Tensor:
        """The state with the positions that the cache was given."""
        after = before.clone()
        keys, values = (self._turned(row) for row in after[self.rows])
        keys[:, written] = (cache.keys[0, 0, :, written] - self.shift).float()
        values[:, written] = (cache.values[0, 0, :, written] * 2.0**-self._exponent).float()
        return after

    @property
    def _exponent(self) -> int:
        return self.part.sizes.protection.values_of(self.part.layers[self.number])

    def _turned(self, row: Tensor) -> Tensor:
        """A row of the state as (kv_heads, C, D): a view."""
        return row.transpose(1, 2) if self.part.target == ANE else row
