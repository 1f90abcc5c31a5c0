"""embeddings.bin: the token embedding table, row-major fp16 [V, H], read by mmap on the host.

The table is in no package: looking up a row is one read, and 270 MB of a 0.5B model stay out of the program.
It knows nothing of Core ML.
"""

from __future__ import annotations

from pathlib import Path

from export.parameters import decoder_weight
from fastvlm_ref.model.decoder import Decoder

FILE = "embeddings.bin"
TABLE = "embed_tokens.weight"


def write_embeddings(path: Path, decoder: Decoder) -> dict[str, int]:
    """Writes the decoder's table (V, H) as fp16, piece by piece.

    Returns how many values were clamped, by the table's name, nothing where none was. TensorError for NaN or
    infinity.
    """
    clamped: dict[str, int] = {}
    with path.open("wb") as handle:
        handle.writelines(decoder_weight(decoder, TABLE).halves(clamped))
    return clamped
