"""Packages for the linter's tests: coremltools' builder where it can write them, messages where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from mil_messages import _declare, _fill, empty_program, give
from mil_programs import TYPES

HALF, FULL, WHOLE = np.float16, np.float32, np.int32
Shape = tuple[int, ...]


def builder(
    body: Callable[..., Any],
    inputs: Sequence[tuple[Shape, Any]] = (((1, 4, 8, 32), HALF),),
    states: Sequence[Shape] = (),
) -> Any:
    """An iOS18 program as the builder writes it, no pass run: inputs x0, x1 …, then states s0, s1 … in fp16."""
    specs = {f"x{place}": mb.TensorSpec(shape, TYPES[dtype]) for place, (shape, dtype) in enumerate(inputs)}
    specs |= {f"s{place}": mb.StateTensorSpec(shape, types.fp16) for place, shape in enumerate(states)}
    source = f"lambda {', '.join(specs)}: body({', '.join(specs)})"  # the builder reads the names of the parameters
    decorate = mb.program(input_specs=list(specs.values()), opset_version=ct.target.iOS18)
    return ct.convert(
        decorate(eval(source, {"body": body})),
        convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32,
        compute_units=ct.ComputeUnit.CPU_ONLY, skip_model_load=True, pass_pipeline=ct.PassPipeline.EMPTY,
    )  # fmt: skip


def converted(module: torch.nn.Module, shape: Shape, **options: Any) -> Any:
    """A traced module as `ct.convert` writes it with its defaults."""
    traced = torch.jit.trace(module.eval(), (torch.zeros(shape),), check_trace=False)
    return ct.convert(traced, minimum_deployment_target=ct.target.iOS18, skip_model_load=True, **options)


Typed = tuple[str, Shape | tuple[int | None, ...]]  # element type, shape


def message(
    ops: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Typed]]], inputs: Mapping[str, np.ndarray] | None = None
) -> Any:
    """A spec written op by op: (type, arguments: values or @names, results: name -> type); the last results go out."""
    spec, block = empty_program(inputs or {"x": np.zeros((1, 4, 8, 32), HALF)})
    for kind, arguments, results in ops:
        operation = block.operations.add(type=kind)
        _fill(operation.attributes["name"], next(iter(results), kind))
        for parameter, value in arguments.items():
            binding = operation.inputs[parameter].arguments.add()
            if isinstance(value, str) and value.startswith("@"):
                binding.name = value[1:]
            else:
                _fill(binding.value, value)
        for name, (dtype, shape) in results.items():
            _declare(operation.outputs.add(name=name).type, dtype, shape)
    give(spec, block, list(ops[-1][2]))
    return spec


def package(model: Any, folder: Path, name: str = "Model") -> Path:
    """Writes a spec or a coremltools model as an `.mlpackage`, its weights beside it."""
    spec = model.get_spec() if hasattr(model, "get_spec") else model
    target = folder / f"{name}.mlpackage"
    home = target / "Data" / "com"
    (home / "weights").mkdir(parents=True)
    weights = Path(model.weights_dir) / "weight.bin" if getattr(model, "weights_dir", None) else None
    if weights is not None and weights.is_file():
        shutil.copy(weights, home / "weights" / "weight.bin")
    (home / "model.mlmodel").write_bytes(spec.SerializeToString())
    items = {"1": {"path": "com/model.mlmodel"}, "2": {"path": "com/weights"}}
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "1"}
    (target / "Manifest.json").write_text(json.dumps(manifest))
    return target


def conv(x: Any, outputs: int = 4, kernel: Shape = (3, 3), **options: Any) -> Any:
    """A convolution of ones; the input's channels are its second axis."""
    weight = options.pop("weight", None)
    groups = options.get("groups", 1)
    if weight is None:
        weight = np.ones((outputs, x.shape[1] // groups, *kernel), HALF)
    return mb.conv(x=x, weight=weight, pad_type="same" if len(kernel) < 3 else "valid", **options)


def palette(shape: Shape, groups: int = 1, entries: int = 16, vector: int = 1, axis: int = 0) -> Any:
    """A palettised weight of that shape, `groups` palettes along `axis`."""
    lut = [1] * len(shape)
    lut[axis] = groups
    table = np.arange(np.prod(lut) * entries * vector, dtype=HALF).reshape(*lut, entries, vector)
    codes = list(shape)
    codes[0] //= vector
    held = {16: types.np_uint4_dtype, 64: types.np_uint6_dtype}[entries]
    return mb.constexpr_lut_to_dense(
        indices=np.zeros(codes, np.uint8).astype(held), lut=table, **({"vector_axis": 0} if vector > 1 else {})
    )


def scaled(shape: Shape, scale: Shape, offset: bool = False, data: Any = None) -> Any:
    """An int8 weight of that shape with scales of shape `scale`; data: codes that another op computes."""
    codes = np.ones(shape, np.int8) if data is None else data
    extra = {"offset": np.ones(scale, np.int8)} if offset else {}
    return mb.constexpr_blockwise_shift_scale(data=codes, scale=np.ones(scale, HALF), **extra)


def cache_write(x: Any, state: Any, standalone: bool = False) -> Any:
    """Writes x (1, 2, 1, 32) into a state (1, 2, 64, 32); standalone: what was updated is used at once."""
    held = mb.read_state(input=state)
    updated = mb.slice_update(x=held, update=x, begin=[0, 0, 3, 0], end=[1, 2, 4, 32])
    mb.coreml_update_state(state=state, value=updated)
    return mb.relu(x=updated if standalone else mb.read_state(input=state))
