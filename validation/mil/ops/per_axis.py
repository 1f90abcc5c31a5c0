"""Values that belong to the entries of one axis: scales and zero points, of tensors and of stored arrays alike."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from validation.mil.registry import Tensor

Values = TypeVar("Values", np.ndarray, Tensor)


def along(values: Values, rank: int, axis: int | None) -> Values:
    """values () or (N,), shaped to act on `axis` of something of `rank` axes; ValueError where N need an axis."""
    if math.prod(values.shape) == 1:
        return values.reshape(())
    if axis is None:
        raise ValueError(f"{math.prod(values.shape)} scales need an axis")
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
