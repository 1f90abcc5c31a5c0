"""embeddings.bin: the token embedding table [V, H], read by mmap on the host.

fp16, and fp32 beside ONNX files: row-major. int8: the codes row-major, then an fp16 scale for each row; a row is its
codes times its scale. The table is in no package: looking up a row is one read, and 270 MB of a 0.5B model stay out of
the program.
It knows nothing of Core ML.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.compression.codes import compress
from export.compression.schemes import SCHEMES
from export.parameters import tensor_weight
from export.weights import saturate
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

FILE = "embeddings.bin"
TABLE = "embed_tokens.weight"
FLOATS = {"fp32": "float32", "fp16": "float16"}


def write_embeddings(path: Path, decoder: Decoder, dtype: str = "fp16") -> dict[str, int]:
    """Writes the decoder's table (V, H) as "fp32", "fp16" or "int8", piece by piece.

    Returns how many values were clamped, by the table's name, nothing where none was. TensorError for NaN or
    infinity.
    """
    clamped: dict[str, int] = {}
    weight = tensor_weight(decoder, TABLE)
    with path.open("wb") as handle:
        if dtype == "fp32":
            for piece in weight.pieces():
                saturate(weight.name, piece)  # refuses NaN and infinity; what fp16 cannot hold, float32 can
                handle.write(np.ascontiguousarray(piece.numpy()).tobytes())
            return clamped
        if dtype == "fp16":
            handle.writelines(weight.halves(clamped))
            return clamped
        scales = []
        for rows in weight.blocks(clamped):
            made = compress(SCHEMES["int8"], rows)
            handle.write(made.codes.numpy().tobytes())
            scales.append(made.tables["scale"].numpy())
        handle.write(np.concatenate(scales).tobytes())
    return clamped


def table_record(text: TextConfig, dtype: str) -> dict[str, object]:
    """Returns the manifest's entry."""
    record: dict[str, object] = {"file": FILE, "rows": text.vocab_size, "width": text.hidden_size}
    if dtype in FLOATS:
        return record | {"dtype": FLOATS[dtype]}
    scales = {"dtype": "float16", "offset": text.vocab_size * text.hidden_size}
    return record | {"dtype": "int8", "scales": scales}
