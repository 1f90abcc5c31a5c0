"""Parts of a stored constant, without the rest of it; codes narrower than a byte, spread out."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fastvlm.errors import PackageError
from validation.mil.blob import BlobFile
from validation.mil.dtypes import BY_NAME, DType, unpack


def bit_by_bit(packed: np.ndarray, bits: int, count: int, signed: bool) -> list[int]:
    """The definition: lowest bits first, without gaps."""
    whole = int.from_bytes(packed.tobytes(), "little")
    codes = [whole >> bits * place & (1 << bits) - 1 for place in range(count)]
    return [code - (1 << bits) if signed and code >> bits - 1 else code for code in codes]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 64, 257])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_codes_are_spread_out_as_they_are_defined(bits: int, count: int, signed: bool) -> None:
    packed = np.random.default_rng(bits * count).integers(0, 256, -(-bits * count // 8), dtype=np.uint8)
    found = unpack(packed, bits, count, signed)
    assert found.dtype == (np.int8 if signed else np.uint8)
    assert found.tolist() == bit_by_bit(packed, bits, count, signed)


def blob_file(path: Path, dtype: DType, raw: bytes) -> BlobFile:
    """A weight file of one blob, at offset 64."""
    header, metadata = struct.pack("<II", 1, 2), struct.pack("<IIQQQ", 0xDEADBEEF, dtype.blob, len(raw), 128, 0)
    path.write_bytes(header.ljust(64, b"\0") + metadata.ljust(64, b"\0") + raw)
    return BlobFile(path)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "uint4", "uint6"])
def test_a_part_is_what_the_whole_has_there(tmp_path: Path, name: str) -> None:
    dtype, shape = BY_NAME[name], (8, 24)
    raw = np.random.default_rng(0).integers(0, 120, 192 * dtype.bits // 8, dtype=np.uint8).tobytes()
    file = blob_file(tmp_path / "weight.bin", dtype, raw)
    whole = file.read(64, dtype, shape).reshape(-1)
    for first, count in ((0, 192), (0, 8), (24, 96), (184, 8), (192, 0), (8, 3)):
        assert np.array_equal(file.part(64, dtype, shape, first, count), whole[first : first + count])


@pytest.mark.parametrize(("first", "count"), [(-4, 4), (188, 8), (200, 4), (1, 8)])
def test_what_is_no_part_is_refused(tmp_path: Path, first: int, count: int) -> None:
    """The last begins inside a byte."""
    file = blob_file(tmp_path / "weight.bin", BY_NAME["int4"], bytes(96))
    with pytest.raises(ValueError, match="are no part"):
        file.part(64, BY_NAME["int4"], (192,), first, count)


def test_a_part_of_a_blob_that_lies_is_refused(tmp_path: Path) -> None:
    file = blob_file(tmp_path / "weight.bin", BY_NAME["int8"], bytes(96))
    with pytest.raises(PackageError, match="96 bytes stored"):
        file.part(64, BY_NAME["int8"], (192,), 0, 8)
