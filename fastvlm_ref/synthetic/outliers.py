"""The hard statistics of real weights, planted into drawn ones by exact powers of two.

| what | where | compensated in |
|---|---|---|
| residual spikes of 1e3 to 1e4 on a few channels | rows of `mlp.down_proj` of layer 1 | the gains of every later norm |
| k biases of 1e2 to 1e3 (Qwen2 alone) | `k_proj.bias` of the first and last layer | nothing: softmax cancels them |
| tower activations beyond 65,504 on a few channels | rows of `network.8.proj.1`, hence `network.9` | what reads them |

Notable choices:
- every change is a factor 2**k of whole rows, exact in bf16 and undone by its inverse: a tool that folds powers of two
  into neighbouring weights can get the plain network's numbers back;
- what is planted is compensated where it is read, else a norm over spikes hides every other channel, a lost layer
  changes nothing and every comparison passes; so the spikes cost precision and range, not the signal;
- the k biases sit on the pair of channels that rotates slowest: they add nearly the same to all scores of a row, which
  softmax takes away again, as in Qwen2, whose scores for that reason need more range than their differences.
Sources: massive activations, arXiv 2402.17762; activations at network.8/9 of the official 0.5B,
tmorales2000/fastvlm-coreai.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.synthetic.layout import TOWER
from fastvlm_ref.synthetic.sizes import Size
from fastvlm_ref.synthetic.weights import Array

SPIKE_LAYER = 1
SPIKE_POWER = 12  # an MLP of this rule writes values of about 0.55: spikes of 2e3, the largest near 8e3
SPIKE_CHANNELS = 16  # so many that their sum of squares differs little between tokens
SPIKE_GAIN = -4  # after a norm the spikes are about √(H / SPIKE_CHANNELS)
K_BIAS_POWER = 12  # biases of 0.05 become 2e2
TOWER_POWER = 13  # activations here reach 8 on a black frame and 30 on a picture; fp16 still holds the inverse
TOWER_CHANNELS = 8


@dataclass(frozen=True)
class Powers:
    """The factors of a tensor's rows: 2**`power` for `rows`, 2**`others` for all others."""

    rows: tuple[int, ...]
    power: int
    others: int = 0

    def apply(self, block: Array, start: int) -> Array:
        """Returns the rows `start` … of the tensor, which `block` holds, scaled; exact."""
        exponents = np.full(len(block), self.others, np.int32)
        exponents[[row - start for row in self.rows if start <= row < start + len(block)]] = self.power
        return np.asarray(np.ldexp(block, exponents.reshape(-1, *[1] * (block.ndim - 1))))


def outliers(size: Size) -> dict[str, Powers]:
    """Returns {name under the rule of the weights: how its rows are scaled} for all that is planted in `size`."""
    return _residual(size.text) | _k_biases(size.text) | _tower(size.vision)


def spread(count: int, width: int) -> tuple[int, ...]:
    """Returns `count` channels of `width`, evenly spread."""
    return tuple((2 * index + 1) * width // (2 * count) for index in range(count))


def _residual(text: TextConfig) -> dict[str, Powers]:
    channels = spread(min(SPIKE_CHANNELS, text.hidden_size // 8), text.hidden_size)
    divided = 0.55 * 2**SPIKE_POWER * math.sqrt(len(channels) / text.hidden_size)  # by a norm over the spikes
    # An eighth, rounded down: what is left of a picture's tokens is 2 to 3, and an MLP squares its input. With a quarter
    # it grows from layer to layer, and the last ones amplify any rounding a hundredfold: no fp16 could follow.
    gains = Powers(channels, SPIKE_GAIN, math.floor(math.log2(divided / 8)))
    found = {f"model.layers.{SPIKE_LAYER}.mlp.down_proj.weight": Powers(channels, SPIKE_POWER)}
    for index in range(SPIKE_LAYER + 1, text.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{index}.{norm}.weight"] = gains
    # The head squares nothing, and logits of usual size are what a comparison of distributions needs.
    return found | {"model.norm.weight": Powers(channels, SPIKE_GAIN, math.floor(math.log2(divided / 2)))}


def _k_biases(text: TextConfig) -> dict[str, Powers]:
    if not text.qkv_bias:
        return {}
    half = text.head_dim // 2  # channels c and c + D/2 rotate together, the last pair slowest
    rows = tuple(head * text.head_dim + c for head in range(text.kv_heads) for c in (half - 1, text.head_dim - 1))
    return {f"model.layers.{layer}.self_attn.k_proj.bias": Powers(rows, K_BIAS_POWER) for layer in (0, text.layers - 1)}


def _tower(vision: VisionConfig) -> dict[str, Powers]:
    """`network.8` down-samples into the last stage, `network.9` is its position encoding, `network.10` its blocks."""
    channels = spread(TOWER_CHANNELS, vision.widths[-1])
    up, down = Powers(channels, TOWER_POWER), Powers(channels, -TOWER_POWER)
    wider = vision.features // vision.widths[-1]  # conv_exp is depthwise: channel c becomes c·wider …
    read = Powers(tuple(wider * channel + part for channel in channels for part in range(wider)), -TOWER_POWER)
    found = {f"{TOWER}network.8.proj.1.reparam_conv.{part}": up for part in ("weight", "bias")}
    for index in range(vision.depths[-1]):
        found[f"{TOWER}network.10.{index}.convffn.conv.conv.weight"] = down
    return found | {f"{TOWER}conv_exp.reparam_conv.weight": read}
