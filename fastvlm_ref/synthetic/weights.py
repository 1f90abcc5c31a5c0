"""The rule of the weights: every tensor is a pure function of its LLaVA name, its shape and a seed.

The rule keeps the network alive and sensitive: mixers near the identity, stem and down-sampling gains above one. (With
a default initialisation layer scales are 1e-5 and every comparison passes.) It is the rule of the project's reference
data, `seeded_weights.py`, of which the tests keep a copy; a test says that both give the same bits.
Notable choice: values come in blocks of rows, because one tensor of 7B has 0.5 billion. PCG64 hands out one stream, so
blocks drawn one after the other are the bits that the whole shape would have got; the rest is element by element.
It does not know files, nor which tensors there are.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 1 << 22  # values drawn at a time, 16 MB
MIXER = re.compile(r"network\.\d+\.(\d+\.token_mixer\.)?reparam_conv\.weight$")  # RepMixer, RepCPE


def seeded_blocks(name: str, shape: tuple[int, ...], seed: int = 0, block: int = BLOCK) -> Iterator[Array]:
    """Yields the values of tensor `name`, float32 (counters int64), in blocks of whole rows of about `block` values.

    `name` is the full name in the LLaVA layout; a shape of no axes is one block.
    """
    if name.endswith("num_batches_tracked"):
        yield np.zeros(shape, np.int64)
        return
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
    rows = max(1, block // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        if name.endswith("running_mean"):
            yield np.zeros(part, np.float32)
        else:
            yield _shaped(name, shape, rng.standard_normal(part, dtype=np.float32))


def _shaped(name: str, shape: tuple[int, ...], value: Array) -> Array:
    """Turns standard normal rows of tensor `name` into its values; `shape` is the whole tensor's."""
    if "layer_scale" in name:
        return 0.3 + 0.05 * value
    if name.endswith("running_var"):
        return 0.75 + 0.25 * np.abs(value)
    if name.endswith("bias"):
        return 0.05 * value
    if len(shape) == 1:  # norm gains
        return 1.0 + 0.1 * value
    fan_in = shape[0] if name.endswith("head.proj") else math.prod(shape[1:])
    value /= np.sqrt(fan_in, dtype=np.float32)
    if MIXER.search(name):
        value *= 0.3
        value[:, 0, shape[2] // 2, shape[3] // 2] += 1.0
    elif "patch_embed" in name or (".proj." in name and "token_mixer" not in name):
        value *= 1.6
    return value
