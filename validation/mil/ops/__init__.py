"""Every op, one file per family. Importing this package registers them all in `validation.mil.registry.OPS`."""

from __future__ import annotations

from validation.mil.ops import (  # noqa: F401
    activation,
    conv,
    elementwise_binary,
    elementwise_unary,
    linear,
    normalization,
    reduction,
    scatter_gather,
    slicing,
    states,
    tensor_transformation,
)
