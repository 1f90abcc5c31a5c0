"""How many bytes each tensor of the decoder takes in a package's weight file, known before one is written.

It is arithmetic on shapes and needs neither torch nor a model: `fastvlm fit` asks it about models that nobody has yet.
"""

from __future__ import annotations

from math import prod
from typing import Protocol

from export.chunks import BLOB_BYTES, HeadSplit, chunks, head_split
from export.compression.schemes import HALF_BYTES, Scheme, Shape
from export.plan import ExportPlan
from fastvlm_ref.config import TextConfig
from fastvlm_ref.shapes import decoder_shapes

LANGUAGE = "language."  # before the names of the decoder's layers
TABLE = "embed_tokens."  # of no package


class Stored(Protocol):
    """Who knows how a layer is stored: `export.choice.Compression` is one."""

    def bytes(self, layer: str, shape: Shape) -> int:
        """What a weight of that layer and shape takes in a weight file."""


def weight_bytes(scheme: Scheme | None, shape: Shape) -> int:
    """Returns what a weight of that shape takes in a weight file, where its tables are blobs too; None: in fp16."""
    if scheme is None:
        return HALF_BYTES * prod(shape)
    return scheme.bytes(shape) + BLOB_BYTES * len(scheme.table_shapes(shape))


def language_shapes(text: TextConfig, split: HeadSplit) -> dict[str, Shape]:
    """Returns the shapes of the decoder's weights; of a head in several outputs, that of one of them."""
    shapes = decoder_shapes(text)
    if split.count > 1:
        shapes["lm_head.weight"] = (split.rows, text.hidden_size)
    return {
        LANGUAGE + name: shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and not name.startswith(TABLE)
    }


def language_bytes(text: TextConfig, plan: ExportPlan, stored: Stored, *, shifts_keys: bool = False) -> dict[str, int]:
    """Returns bytes by the checkpoint's name of each tensor that goes into a package; the embedding table does not.

    For a GPU a norm's gain is stored twice, for x and −x (`export.norms`); a key's bias takes three vectors where keys
    are shifted (`export.key_shift`); the head counts also where it is tied, with the rows that fill up its last output.
    """
    split = head_split(text, plan.target)
    head = (split.rows, text.hidden_size)
    found = {}
    for name, shape in decoder_shapes(text).items():
        if name == "lm_head.weight":
            found[name] = split.count * stored.bytes(f"{LANGUAGE}lm_head", head)
        elif name.endswith("norm.weight"):
            found[name] = (2 if plan.target == "ane" else 4) * prod(shape)
        elif name.endswith("k_proj.bias"):
            found[name] = (6 if shifts_keys else 2) * prod(shape)
        elif name.endswith(".weight") and not name.startswith(TABLE):
            found[name] = stored.bytes(LANGUAGE + name.removesuffix(".weight"), shape)
        elif not name.startswith(TABLE):
            found[name] = 2 * prod(shape)
    return found


def table_bytes(text: TextConfig, dtype: str) -> int:
    """Returns the size of embeddings.bin, in "fp16" or "int8" with a scale for each row."""
    values = text.vocab_size * text.hidden_size
    return 2 * values if dtype == "fp16" else values + 2 * text.vocab_size


def check_files(text: TextConfig, plan: ExportPlan, stored: Stored) -> None:
    """Raises UsageError where not even single layers fit into the largest file that `plan` allows."""
    if plan.language:
        chunks(text, plan, language_bytes(text, plan, stored, shifts_keys=text.qkv_bias))
