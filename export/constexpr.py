"""How a weight's numbers lie in the weight file and in the program: fp16, or codes with the tables that they refer to.

A compressed weight is a `constexpr_*` op in place of a `const`, of the same name, type and shape: whoever reads it gets
fp16 numbers, and the codes and tables lie in the weight file (the ops are those of coremltools' own compression).
It does not choose who is compressed how (`export.choice`), nor how (`export.compression`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.compression.blocks import in_order
from export.compression.codes import compress
from export.compression.packing import BLOB_DTYPES, pack, padding_bits
from export.compression.schemes import Scheme
from export.compression.stored import Codes
from export.parameters import GraphWeight
from export.quiet import import_coremltools
from export.weightfile import WeightWriter
from fastvlm.errors import PackageError

BLOB_FILE = "@model_path/weights/weight.bin"
CODES = {"constexpr_blockwise_shift_scale": "data", "constexpr_lut_to_dense": "indices"}  # by op, its input of codes


def store(writer: WeightWriter, weight: GraphWeight, op: Any, clamped: dict[str, int]) -> None:
    """Writes a weight unless it lies there already, and makes the program's `const` op read it.

    coremltools keeps fewer than ten numbers in the program itself, and there they stay.
    """
    shape = tuple(dimension.constant.size for dimension in op.outputs[0].type.tensorType.dimensions)
    if shape != weight.shape:
        raise PackageError(
            f"the converted graph has {weight.name} of shape {list(shape)}, expected {list(weight.shape)}; "
            "install the coremltools and torch of constraints.txt"
        )
    held = op.attributes["val"]
    if weight.scheme is None and held.WhichOneof("value") == "immediateValue":  # of fewer than ten numbers
        held.immediateValue.tensor.bytes.values = b"".join(weight.halves(clamped))
    elif weight.scheme is None:
        value = held.blobFileValue
        value.offset = writer.add_parameter(
            weight.name, BLOB_DTYPES["fp16"], 2 * prod(shape), lambda: weight.halves(clamped)
        )
        value.fileName = BLOB_FILE
    else:
        _become_constexpr(op, weight.scheme, shape, _store_codes(writer, weight, weight.scheme, clamped))


def codes_of(name: str) -> str:
    """Returns by what name the weight file knows the codes of a weight."""
    return f"{name}/codes"


def _store_codes(writer: WeightWriter, weight: GraphWeight, scheme: Scheme, clamped: dict[str, int]) -> dict[str, int]:
    """Writes codes and tables; returns where each lies, by the op's input."""
    tables: dict[str, list[Tensor]] = {}

    def codes() -> Iterator[bytes]:
        for made, packed in in_order(lambda rows: _compressed(scheme, rows, weight), weight.blocks(clamped)):
            for name, table in made.tables.items():
                tables.setdefault(name, []).append(table)
            yield packed

    size = prod(weight.shape) * scheme.bits // 8
    places = {CODES[scheme.op]: writer.add_parameter(codes_of(weight.name), BLOB_DTYPES[scheme.dtype], size, codes)}
    for name, shape in scheme.table_shapes(weight.shape).items():
        bits, dtype = (scheme.bits, scheme.dtype) if name == "offset" else (16, "fp16")

        def table(name: str = name, bits: int = bits) -> Iterator[bytes]:
            whole = torch.cat(tables[name])
            yield np.ascontiguousarray(whole.numpy()).tobytes() if bits == 16 else pack(whole, bits)

        padding = padding_bits(prod(shape), bits)
        size = (prod(shape) * bits + padding) // 8
        places[name] = writer.add_parameter(f"{weight.name}/{name}", BLOB_DTYPES[dtype], size, table, padding)
    return places


def _compressed(scheme: Scheme, rows: Tensor, weight: GraphWeight) -> tuple[Codes, bytes]:
    made = compress(scheme, rows, weight.importance)
    return made, pack(made.codes, scheme.bits)


def _become_constexpr(op: Any, scheme: Scheme, shape: tuple[int, ...], places: dict[str, int]) -> None:
    """Turns a `const` op into the op that makes codes and tables dense, in place."""
    types = import_coremltools().proto.MIL_pb2.DataType
    shapes = {CODES[scheme.op]: shape, **scheme.table_shapes(shape)}
    op.type = scheme.op
    del op.attributes["val"]
    for name, offset in places.items():
        dtype = scheme.dtype if name in (CODES[scheme.op], "offset") else "float16"
        value = op.inputs[name].arguments.add().value
        kind = value.type.tensorType
        kind.dataType, kind.rank = types.Value(dtype.upper()), len(shapes[name])
        for length in shapes[name]:
            kind.dimensions.add().constant.size = length
        value.blobFileValue.fileName, value.blobFileValue.offset = BLOB_FILE, offset
