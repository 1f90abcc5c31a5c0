"""How many bytes each tensor of the decoder takes in a package's weight file, known before one is written."""

from __future__ import annotations

from math import prod

import torch

from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

TABLE = "embed_tokens."


def language_bytes(text: TextConfig) -> dict[str, int]:
    """Returns bytes by the checkpoint's name of each tensor that goes into a package; the embedding table does not.

    A norm's gain is stored twice, for x and −x (`export.norms`); the head counts also where it is tied.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Decoder(text).state_dict().items()}
    return {
        name: 2 * prod(shape) * (2 if name.endswith("norm.weight") else 1)
        for name, shape in shapes.items()
        if not name.startswith(TABLE)
    }
