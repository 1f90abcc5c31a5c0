"""Whether a model is compared layer by layer: where its weights take more than half of the memory.

What a comparison in memory holds at the same time: the reference's decoder in float32, and the build's, whose weights
are in fp16 as they run, whatever they are stored in. The encoders of both (0.8 GB) and the libraries (0.7 GB) are part
of what the other half is for.
"""

from __future__ import annotations

import torch

from fastvlm.build import Build
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder
from validation.within_memory import half_of_memory

FLOAT, HALF = 4, 2  # bytes of a weight


def decoder_weights(text: TextConfig) -> int:
    """Returns how many weights a decoder has, table and head counted once where they are one."""
    with torch.device("meta"):
        return sum(weights.numel() for weights in Decoder(text).parameters())


def needs_layerwise(build: Build, text: TextConfig, half: int | None = None) -> bool:
    """Returns whether reference and build together take more than `half` bytes, by default half of the memory.

    Never for a build of the encoder alone, whose decoder nobody runs.
    """
    if not build.language:
        return False
    taken = decoder_weights(text) * (FLOAT + HALF)
    return taken > (half_of_memory() if half is None else half)
