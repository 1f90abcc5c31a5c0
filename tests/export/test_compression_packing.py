"""Codes to bytes: the runtime's reading gives them back, and coremltools' own writer would have written the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.compression.codes import compress
from export.compression.packing import BLOB_DTYPES, pack, padding_bits
from export.compression.schemes import SCHEMES, Scheme
from export.weightfile import WeightReader
from validation.mil.dtypes import BY_NAME, unpack

ALL = tuple(SCHEMES.values())


def limits(dtype: str) -> tuple[int, int]:
    return BY_NAME[dtype].limits


@given(st.sampled_from([scheme.dtype for scheme in ALL]), st.data())
def test_the_runtime_reads_back_what_was_packed(dtype: str, data: st.DataObject) -> None:
    kind = BY_NAME[dtype]
    low, high = limits(dtype)
    values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=70))
    packed = pack(torch.tensor(values, dtype=kind.torch), kind.bits)
    assert 8 * len(packed) == len(values) * kind.bits + padding_bits(len(values), kind.bits)
    signed = low < 0
    assert unpack(np.frombuffer(packed, np.uint8), kind.bits, len(values), signed).tolist() == values


@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4", "uint6"])
@pytest.mark.parametrize("count", [96, 5])
def test_coremltools_writes_the_same_bytes(dtype: str, count: int, tmp_path: Path) -> None:
    from export.quiet import import_coremltools

    import_coremltools()
    from coremltools.converters.mil.mil import types
    from coremltools.libmilstoragepython import _BlobStorageWriter

    low, high = limits(dtype)
    codes = torch.randint(low, high + 1, (count,), dtype=BY_NAME[dtype].torch)
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    native = codes.numpy().astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))
    offset = getattr(writer, f"write_{dtype}_data")(native)
    del writer  # its destructor writes
    bits = BY_NAME[dtype].bits
    with WeightReader(tmp_path / "weight.bin") as reader:
        assert reader.read(offset) == (BLOB_DTYPES[dtype], padding_bits(count, bits), pack(codes, bits))


def test_the_dtypes_are_those_of_the_runtime() -> None:
    assert BLOB_DTYPES == {name: BY_NAME[name].blob for name in BLOB_DTYPES}
    assert {scheme.dtype for scheme in ALL} < BLOB_DTYPES.keys()


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_blocks_of_rows_join_without_gaps(scheme: Scheme) -> None:
    """The bytes of two blocks after each other are those of the whole, and as many as the scheme says."""
    weights = torch.randn(64, 32)
    whole = compress(scheme, weights)
    joined = b"".join(pack(part, scheme.bits) for part in whole.codes.split(32))
    assert joined == pack(whole.codes, scheme.bits)
    tables = {name: table for name, table in whole.tables.items() if name != "offset"}
    size = len(joined) + sum(2 * table.numel() for table in tables.values())
    if "offset" in whole.tables:
        size += len(pack(whole.tables["offset"], scheme.bits))
    assert size == scheme.bytes((64, 32))


def test_other_widths_are_refused() -> None:
    with pytest.raises(KeyError):
        pack(torch.zeros(8, dtype=torch.uint8), 3)
