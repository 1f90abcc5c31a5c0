"""The KV cache: keys and values of every layer, in one buffer of fixed length C, filled from the front."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.errors import PromptError
from fastvlm_ref.config import TextConfig


class KVCache:
    """Keys and values (layers, B, kv_heads, C, D), float32 unless asked; `length` positions are filled."""

    def __init__(
        self,
        config: TextConfig,
        capacity: int,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, kv_heads, S, D) behind `length`; returns all keys and values up to there, (…, length + S, D).

        `length` itself moves once per step, by `advance`, after the last layer. Raises PromptError when full.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise PromptError(
                f"the context is full: {self.length} positions used and {keys.shape[2]} more do not fit into "
                f"{self.capacity}; shorten the prompt or raise --context"
            )
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, positions: int) -> None:
        """Counts `positions` as filled, after every layer has written them."""
        self.length += positions
