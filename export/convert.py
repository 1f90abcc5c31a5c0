"""One graph to one Core ML function: trace, convert, hand over the protobuf and its weight file.

Notable choices: `torch.jit.trace` without its re-check (which runs everything again), at a shape of the caller's
choosing; coremltools gets the real shapes, so a size-free graph is traced small. Everything declared is fp16 or
int32, so that coremltools inserts no cast at inputs and outputs; where a contract asks for float32, it inserts one
there, and all between stays fp16. Equal constants stay apart, because stand-in weights are all equal: in the weight
file equal blobs lie once all the same.
The package that coremltools writes is temporary; `export.package` writes the one that ships.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.contract import SCALE, FunctionSpec, TensorSpec
from export.parameters import GraphWeight
from export.quiet import import_coremltools, quietly
from fastvlm.mlpackage import WEIGHT_FILE

# Those of coremltools' 84 that change a graph of ours; it checks the whole program after each, which takes longer than
# the passes. Left out with the others is const_deduplication. A test compares with all of them.
PASSES = (
    "cast_optimization", "const_elimination", "rank0_expand_dims_swap", "fuse_layernorm_or_instancenorm",
    "fuse_transpose_matmul", "remove_redundant_ops", "dedup_op_and_var_names", "add_fp16_cast", "update_output_dtypes",
    "const_elimination", "dead_code_elimination", "cast_optimization", "canonicalize_inplace_pattern",
    "prefer_state_in_downstream", "topological_reorder", "dead_code_elimination",
)  # fmt: skip
FULL = 1 << 20  # bytes: a disk with less free could not take the weights that were being written


@dataclass(frozen=True)
class Converted:
    """One function as coremltools made it: its contract, the Model protobuf and the weight file it points into.

    `parameters`: by name, the constants whose numbers come from elsewhere than that file.
    """

    spec: FunctionSpec
    proto: Any  # coremltools.proto.Model_pb2.Model
    weights: Path
    parameters: Mapping[str, GraphWeight] = field(default_factory=dict)


def constant_name(parameter: str) -> str:
    """What coremltools calls the fp16 constant of a graph's parameter."""
    return f"{parameter.replace('.', '_')}_to_fp16"


def trace(graph: nn.Module, shapes: tuple[tuple[int, ...], ...], *, position: bool = False) -> Any:
    """Returns the traced graph; inputs are float32 of `shapes`, then an int32 (1,) where `position` says so."""
    inputs = [torch.zeros(shape) for shape in shapes]
    if position:
        inputs.append(torch.zeros(1, dtype=torch.int32))
    with quietly(), torch.no_grad():
        return torch.jit.trace(graph.eval(), tuple(inputs), check_trace=False)


@contextmanager
def converted(traced: Any, spec: FunctionSpec) -> Iterator[Converted]:
    """Converts a traced graph at the shapes of `spec`; the weight file lives as long as the block."""
    proto, package = convert(traced, spec)
    try:
        yield Converted(spec, proto, package / WEIGHT_FILE)
    finally:
        shutil.rmtree(package, ignore_errors=True)


def convert(traced: Any, spec: FunctionSpec) -> tuple[Any, Path]:
    """Returns coremltools' Model protobuf of a traced graph, and its temporary package, which the caller removes."""
    ct = import_coremltools()
    passes = ct.PassPipeline(pass_names=[f"common::{name}" for name in PASSES])
    with quietly(), _faults_of_the_disk():
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[_input(ct, tensor) for tensor in spec.inputs],
            outputs=[ct.TensorType(name=tensor.name, dtype=_dtype(tensor)) for tensor in spec.outputs],
            states=[_state(ct, spec.state)] if spec.state else None,
            minimum_deployment_target=getattr(ct.target, spec.system),
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    return model._spec, Path(model.package_path)


@contextmanager
def _faults_of_the_disk() -> Iterator[None]:
    """Makes an OSError of what coremltools' writer of weights says in its own words, or in none ("Unknown error")."""
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith(("[MIL FileWriter]", "[MIL StorageWriter]")):
            raise
        place = tempfile.gettempdir()
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            code = errno.EFBIG
        else:
            code = errno.ENOSPC if shutil.disk_usage(place).free < FULL else errno.EIO
        raise OSError(code, os.strerror(code), os.path.join(place, "weight.bin")) from problem


def _dtype(tensor: TensorSpec) -> Any:
    import numpy as np

    return {"float16": np.float16, "float32": np.float32, "int32": np.int32}[tensor.dtype]


def _input(ct: Any, tensor: TensorSpec) -> Any:
    if tensor.kind == "image":
        return ct.ImageType(
            name=tensor.name, shape=tensor.shape, scale=SCALE, bias=[0, 0, 0], color_layout=ct.colorlayout.RGB
        )
    return ct.TensorType(name=tensor.name, shape=tensor.shape, dtype=_dtype(tensor))


def _state(ct: Any, state: TensorSpec) -> Any:
    return ct.StateType(wrapped_type=ct.TensorType(shape=state.shape, dtype=_dtype(state)), name=state.name)
