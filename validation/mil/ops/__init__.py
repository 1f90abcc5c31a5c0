"""Every op, one file per family. Importing this package registers them all in `validation.mil.registry.OPS`."""

from __future__ import annotations

from validation.mil.ops import (  # noqa: F401
    activation,
    constexpr,
    control_flow,
    conv,
    elementwise_binary,
    elementwise_unary,
    image_resizing,
    linear,
    normalization,
    pool,
    quantization,
    random,
    recurrent,
    reduction,
    scatter_gather,
    slicing,
    states,
    tensor_operation,
    tensor_transformation,
)
