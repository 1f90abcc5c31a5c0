"""Bytes of safetensors files whose header says whatever it shall, true or not."""

from __future__ import annotations

import json
from typing import Any


def with_header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Returns a safetensors file with this header (JSON or bytes), of the stated length or another."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    """Returns the entry of a tensor of two float32 values, or whatever else it shall claim."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more
