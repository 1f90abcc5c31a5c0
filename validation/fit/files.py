"""The files of a build before it is made: encoder, packages of the language model, embedding table, and the rest.

What goes into a weight file is `export.sizes`' arithmetic, and how it is cut `export.chunks`'. Programs and tokenizer
are a few MB, estimated from a build of 0.5B.
It knows no chips.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.chunks import Chunk, chunks, head_split
from export.plan import FILE_SIZES, ExportPlan
from export.sizes import language_bytes, table_bytes
from fastvlm_ref.config import TextConfig, VisionConfig
from validation.fit.stored import Stored
from validation.fit.tower import tower_bytes

QUERY = 64  # rows of `prefill`, as an export makes it unless told
BLOB_BYTES = 96  # of each tensor in a weight file: 64 of metadata, and up to 64 to align its values
# Of a build of 0.5B: 1.1 MB of program for 24 layers, 0.32 MB for 44 blocks of the tower, 7.1 MB of tokenizer.
LAYER_PROGRAM, BLOCK_PROGRAM, TOKEN_BYTES = 46_500, 7_200, 47


@dataclass(frozen=True)
class Files:
    """Bytes: of the encoder's weights, of those of each package of the language model in order, and of the rest.

    layered: how many of the packages hold layers, the others hold parts of the head.
    """

    encoder: int
    language: tuple[int, ...]
    layered: int
    embeddings: int
    other: int  # programs, tokenizer, manifest

    @property
    def weights(self) -> int:
        """Of all packages."""
        return self.encoder + sum(self.language)

    @property
    def total(self) -> int:
        """Of the whole build."""
        return self.weights + self.embeddings + self.other


def files_of(vision: VisionConfig, text: TextConfig, stored: Stored, target: str) -> Files:
    """Returns the files of a build with one image size; each further one is a program of 0.3 MB over the same weights.

    Raises UsageError where a single layer is larger than a file for `target` may be.
    """
    encoder = tower_bytes(vision, text.hidden_size, stored.bytes, BLOB_BYTES)
    plan = ExportPlan((), QUERY, QUERY, target=target, max_file_size=FILE_SIZES[target])
    sizes = language_bytes(text, plan, stored, shifts_keys=text.qkv_bias)
    chain, parts = chunks(text, plan, sizes), head_split(text, target).count
    language = tuple(_package(sizes, chunk, parts) for chunk in chain)
    layered = sum(chunk.layers > 0 for chunk in chain)
    other = LAYER_PROGRAM * text.layers + BLOCK_PROGRAM * sum(vision.depths) + TOKEN_BYTES * text.vocab_size
    return Files(encoder, language, layered, table_bytes(text, stored.embeddings), other)


def _package(sizes: dict[str, int], chunk: Chunk, parts: int) -> int:
    """Bytes of one package's weight file."""
    layers = tuple(f"layers.{at}." for at in range(chunk.first, chunk.last))
    total = sum(size + BLOB_BYTES for name, size in sizes.items() if layers and name.startswith(layers))
    if chunk.parts:
        head = sizes["lm_head.weight"] * len(chunk.parts) // parts
        total += head + len(chunk.parts) * BLOB_BYTES + sizes["norm.weight"] + BLOB_BYTES
    return total
