"""Named arrays and pictures on their way between two processes: bytes in a file, what they are as plain data.

A row is [name, kind, dtype, shape]; kind is "array" or "picture". The bytes lie in the order of the rows, and
whoever opens a parcel has been told its rows by whoever made it. It does not know what the values are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastvlm.errors import ExecutionError

ARRAY, PICTURE = "array", "picture"
Row = list[Any]


def make(values: Mapping[str, Any], file: Path) -> list[Row]:
    """Writes arrays, numbers and PIL images into `file`; returns their rows. ExecutionError for anything else."""
    rows: list[Row] = []
    with file.open("wb") as out:
        for name, value in values.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise ExecutionError(f"{name!a:.60} is {type(value).__name__}, expected numbers or a picture")
            kind = PICTURE if isinstance(value, Image.Image) else ARRAY
            rows.append([name, kind, array.dtype.str, list(array.shape)])
            out.write(array.tobytes())
    return rows


def take(rows: Sequence[Row], file: Path) -> dict[str, Any]:
    """Returns what was put into `file`: arrays of their own memory, and PIL images."""
    data, place, values = file.read_bytes(), 0, {}
    for name, kind, dtype, shape in rows:
        array = np.frombuffer(data, np.dtype(dtype), math.prod(shape), place).reshape(shape).copy()
        place += array.nbytes
        values[name] = array if kind == ARRAY else Image.fromarray(array)
    return values
