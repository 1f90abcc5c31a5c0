"""How many bytes each tensor of the decoder takes in a package's weight file, known before one is written."""

from __future__ import annotations

from math import prod

import torch

from export.choice import LANGUAGE, TABLE, Compression
from export.chunks import HeadSplit, chunks, head_split
from export.plan import ExportPlan
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder


def language_bytes(text: TextConfig, split: HeadSplit, compression: Compression) -> dict[str, int]:
    """Returns bytes by the checkpoint's name of each tensor that goes into a package; the embedding table does not.

    A norm's gain may be stored twice, for x and −x (`export.norms`), a key's bias as three vectors
    (`export.decoder_weights`); the head counts also where it is tied, with the rows that fill up its last output.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Decoder(text).state_dict().items()}
    head = (split.rows, text.hidden_size)
    found = {}
    for name, shape in shapes.items():
        if name == "lm_head.weight":
            found[name] = split.count * compression.bytes(f"{LANGUAGE}lm_head", head)
        elif name.endswith("norm.weight"):
            found[name] = 4 * prod(shape)
        elif name.endswith("k_proj.bias"):
            found[name] = 6 * prod(shape)
        elif name.endswith(".weight") and not name.startswith(TABLE):
            found[name] = compression.bytes(LANGUAGE + name.removesuffix(".weight"), shape)
        elif not name.startswith(TABLE):
            found[name] = 2 * prod(shape)
    return found


def check_files(text: TextConfig, plan: ExportPlan, compression: Compression) -> None:
    """Raises UsageError where not even single layers fit into the largest file that `plan` allows."""
    if plan.language:
        chunks(text, plan, language_bytes(text, head_split(text, plan.target), compression))
