"""The checkpoint's embedding table as rows of an array that are read when they are asked for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastvlm_ref.checkpoint.stream import StreamedEmbedding


class StreamedTable:
    """A table (V, H) that stays in its file; a slice of it is float32 in memory."""

    def __init__(self, table: StreamedEmbedding) -> None:
        self._table = table
        self.shape: tuple[int, int] = (table.num_embeddings, table.embedding_dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Returns rows (n, H)."""
        ids = torch.arange(*rows.indices(len(self)))
        found: NDArray[np.float32] = self._table.table.rows(ids).float().numpy()
        return found
