"""Packages for the tests of the MIL runtime, built with coremltools' builder and converter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from validation.mil import MILModel

TYPES = {np.float16: types.fp16, np.float32: types.fp32, np.int32: types.int32, np.bool_: types.bool}
FP16, FP32 = ct.precision.FLOAT16, ct.precision.FLOAT32


def build(
    body: Callable[..., Any],
    inputs: Sequence[tuple[tuple[int, ...], Any]],
    opset: Any = ct.target.iOS17,
    half: bool = False,
) -> Any:
    """An in-memory ML program whose function takes inputs x0, x1 ... of the given (shape, numpy type)."""
    specs = [mb.TensorSpec(shape, TYPES[dtype]) for shape, dtype in inputs]
    names = [f"x{index}" for index in range(len(specs))]
    # The builder reads the parameter names of the function that it decorates.
    source = f"lambda {', '.join(names)}: body({', '.join(names)})"
    program = mb.program(input_specs=specs, opset_version=opset)(eval(source, {"body": body}))
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        compute_precision=FP16 if half else FP32,
        compute_units=ct.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
        pass_pipeline=ct.PassPipeline.EMPTY if not half else ct.PassPipeline.DEFAULT,
    )


def outputs(model: Any, *arrays: np.ndarray, precision: str = "fp32") -> list[np.ndarray]:
    """The program's outputs, in order."""
    runtime = MILModel(model, precision=precision)
    return list(runtime.predict(dict(zip(runtime.inputs, arrays, strict=True))).values())


def convert(module: torch.nn.Module, example: Sequence[torch.Tensor], **options: Any) -> Any:
    """`module` traced and converted for iOS18."""
    traced = torch.jit.trace(module.eval(), tuple(example), check_trace=False)
    return ct.convert(traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, **options)


class Cache(torch.nn.Module):
    """A key/value cache with attention over it: the shape of a decoder layer."""

    def __init__(self, length: int = 32):
        super().__init__()
        self.register_buffer("kv", torch.zeros(2, 1, 2, length, 8, dtype=torch.float16))
        self.project = torch.nn.Linear(16, 16, dtype=torch.float16)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        rows = x.shape[1]
        keys = self.project(x).reshape(1, rows, 2, 8).transpose(1, 2)
        end = position[0] + rows
        self.kv[0, :, :, position[0] : end, :] = keys
        self.kv[1, :, :, position[0] : end, :] = keys * 2
        return torch.nn.functional.scaled_dot_product_attention(keys, self.kv[0], self.kv[1], mask)


def cache_model(rows: int, length: int = 32) -> Any:
    """`Cache` for `rows` new positions, as a stateful iOS18 program with state kv."""
    torch.manual_seed(0)
    module = Cache(length)
    example = (
        torch.rand(1, rows, 16).half(),
        torch.zeros(1, 1, rows, length).half(),
        torch.zeros(1, dtype=torch.int32),
    )
    return convert(
        module,
        example,
        inputs=[
            ct.TensorType("x", (1, rows, 16), dtype=np.float16),
            ct.TensorType("mask", (1, 1, rows, length), dtype=np.float16),
            ct.TensorType("position", (1,), dtype=np.int32),
        ],
        states=[ct.StateType(ct.TensorType(shape=(2, 1, 2, length, 8), dtype=np.float16), name="kv")],
        outputs=[ct.TensorType("y", dtype=np.float16)],
    )


def cache_package(folder: Path) -> Path:
    """A multifunction package: prefill (4 rows), decode (1 row, the default), one state."""
    description = ct.utils.MultiFunctionDescriptor()
    for name, rows in (("prefill", 4), ("decode", 1)):
        single = folder / f"{name}.mlpackage"
        cache_model(rows).save(str(single))
        description.add_function(str(single), "main", name)
    description.default_function_name = "decode"
    target = folder / "cache.mlpackage"
    ct.utils.save_multifunction(description, str(target))
    return target
