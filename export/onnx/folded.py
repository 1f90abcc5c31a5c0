"""What numbers belong into the decoder's graph: the checkpoint's tensors, and in float16 what is folded into them.

| tensor | is the checkpoint's times |
|---|---|
| `q_proj` | 2^−scores |
| `k_proj.bias` | 1, without its constant part (`export.key_shift`) |
| `v_proj`, `o_proj` | 2^−values, 2^(values − residual) |
| `up_proj`, `down_proj` | 2^−mlp, 2^(mlp − residual) |

The exponents are a scan's (`export.protection`); all factors are exact. Other dtypes take the tensors as they are.
It knows no ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from export.key_shift import k_bias, key_shift
from export.parameters import GraphWeight, tensor_weight
from export.protection import PROTECTED, Protection
from fastvlm_ref.model.decoder import Decoder

BIASED = ("q_proj", "k_proj", "v_proj")  # of Qwen2; a Llama has no biases


class DecoderNumbers:
    """The weights of a decoder for a graph of float16 (`halves`) or of others; `context` C positions."""

    def __init__(self, decoder: Decoder, halves: bool, context: int, protection: Protection = PROTECTED) -> None:
        self.decoder, self.text, self.halves, self.context = decoder, decoder.config, halves, context
        self.protection = protection if halves else PROTECTED

    def weight(self, name: str) -> GraphWeight:
        """Returns a tensor by the checkpoint's name."""
        power = self._power(name)
        weight = tensor_weight(self.decoder, name)
        if power:
            weight = replace(weight, pieces=_times(weight, 2.0**power))
        if name.endswith("k_proj.bias") and (shift := self.shift(_layer(name))) is not None:
            rest = k_bias(self.decoder, _layer(name)) - shift.reshape(-1)
            weight = replace(weight, pieces=lambda: iter([rest]))
        return weight

    def bias(self, module: str) -> GraphWeight | None:
        """Returns the bias of a linear layer, None for one that has none."""
        biased = self.text.qkv_bias and module.rpartition(".")[2] in BIASED
        return self.weight(f"{module}.bias") if biased else None

    def shift(self, layer: int) -> Tensor | None:
        """Returns what the keys of a layer go without, float32 (kv_heads, D), None where that is nothing."""
        if not (self.halves and self.text.qkv_bias):
            return None
        shift = key_shift(k_bias(self.decoder, layer), self.text, self.context)
        return shift if bool(shift.any()) else None

    def _power(self, name: str) -> int:
        layer, protection = _layer(name), self.protection
        mlp, values = protection.mlp_of(layer), protection.values_of(layer)
        powers = {
            "q_proj": -protection.scores, "v_proj": -values, "o_proj": values - protection.residual,
            "up_proj": -mlp, "down_proj": mlp - protection.residual,
        }  # fmt: skip
        return powers.get(name.split(".")[-2], 0)


def _layer(name: str) -> int:
    """The number of a tensor's layer, 0 for one that is in none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else 0


def _times(weight: GraphWeight, factor: float) -> Callable[[], Iterator[Tensor]]:
    return lambda: (piece.float() * factor for piece in weight.pieces())
