"""embeddings.bin: the token embedding table, row-major fp16 [V, H], read by mmap on the host.

The table is in no package: looking up a row is one read, and 270 MB of a 0.5B model stay out of the program.
It knows nothing of Core ML.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from export.weights import saturate

FILE = "embeddings.bin"
CHUNK_ROWS = 8192  # 30 MB of float32 at H = 896: memory stays flat whatever V is


def write_embeddings(path: Path, table: Tensor) -> int:
    """Writes a float32 table (V, H) as fp16; returns how many values were clamped. TensorError for NaN or infinity."""
    clamped = 0
    with path.open("wb") as handle:
        for start in range(0, table.shape[0], CHUNK_ROWS):
            rows, count = saturate("decoder.embed_tokens.weight", table[start : start + CHUNK_ROWS])
            clamped += count
            handle.write(rows.half().contiguous().numpy().tobytes())
    return clamped
