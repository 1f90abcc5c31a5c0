"""embeddings.bin: the token embedding table [V, H], read by mmap on the host.

fp16: row-major. fp32: the same, beside ONNX files that compute in float32. int8: the codes row-major, then an fp16
scale for each row; a row is its codes times its scale. The table is in no package: looking up a row is one read, and
270 MB of a 0.5B model stay out of the program.
It knows nothing of Core ML.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.compression.codes import compress
from export.compression.schemes import SCHEMES
from export.parameters import tensor_weight
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

FILE = "embeddings.bin"
TABLE = "embed_tokens.weight"
FLOATS = {"fp16": "float16", "fp32": "float32"}


def write_embeddings(path: Path, decoder: Decoder, dtype: str = "fp16") -> dict[str, int]:
    """Writes the decoder's table (V, H) as "fp16", "fp32" or "int8", piece by piece.

    Returns how many values were clamped, by the table's name, nothing where none was. TensorError for NaN or
    infinity.
    """
    clamped: dict[str, int] = {}
    weight = tensor_weight(decoder, TABLE)
    with path.open("wb") as handle:
        if dtype == "fp16":
            handle.writelines(weight.halves(clamped))
            return clamped
        if dtype == "fp32":
            handle.writelines(weight.singles())
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
    if dtype != "int8":
        return record | {"dtype": FLOATS[dtype]}
    scales = {"dtype": "float16", "offset": text.vocab_size * text.hidden_size}
    return record | {"dtype": "int8", "scales": scales}
