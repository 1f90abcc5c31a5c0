"""A pickle of tensors, as `torch.save` writes one, judged whole before torch sees it.

Notable choices, each because a weights-only unpickler alone does not see to it:
- the container: a zip of stored entries that together are no larger than the file (a deflated megabyte can hold
  gigabytes), with one directory, at the end, that no two readers could find at different places;
- the pickle: only the opcodes and the names that tensors need, and no tuple used twice (as the key of a table, tuples
  of tuples take for ever to hash);
- the tensors: read first as plain numbers. A storage has the bytes that it claims, a tensor lies inside its storage.
Then torch's weights-only reader opens it, once. Files of torch before 1.6, which are no zip, are not read.
It does not know LoRA. Source: `torch/serialization.py`, `pickletools`; APPNOTE.TXT of PKWARE for the zip.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import stat
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm.quoting import one_line, short
from fastvlm_ref.checkpoint.header import TENSOR_LIMIT, is_name
from fastvlm_ref.checkpoint.tensors import COUNTER, FLOATS, LazyTensor, computed
from fastvlm_ref.files import open_file

FILE_LIMIT = (1 << 32) - 1  # bytes: what a zip can tell without its second directory; LLaVA's pickles have 0.1 GB
DIRECTORY_LIMIT = 4 * 1024 * 1024  # bytes; an entry takes some 130
PICKLE_LIMIT = 2 * 1024 * 1024  # bytes of data.pkl; a tensor takes some 150
MOST_OPS = 1_000_000
USUAL = 3  # the newest pickle_protocol that writes none but these opcodes; torch.save's own is 2
AGAIN = "save it again with torch.save(TENSORS, FILE), where TENSORS is one dict of names and float tensors"
ENTRY = re.compile(
    r"([^/]{1,200})/(data\.pkl|data/\d{1,20}|version|byteorder|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id)"
)
OPS = set(
    "PROTO EMPTY_DICT EMPTY_TUPLE MARK BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE BININT BININT1 BININT2 "
    "GLOBAL TUPLE TUPLE1 TUPLE2 TUPLE3 BINPERSID NEWTRUE NEWFALSE NONE REDUCE SETITEM SETITEMS BUILD STOP".split()
)
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
BUILD_STOP, POP_STOP = b"b.", b"0."
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Plan(NamedTuple):
    """A tensor as the pickle describes it: (dtype, key, bytes) of its storage, and where it lies in it, in elements."""

    storage: tuple[torch.dtype, str, int]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: Any
    metadata: Any = None


def _parameter(data: Any, *_: Any) -> Any:
    return data


NAMES: dict[str, Any] = {
    "collections OrderedDict": OrderedDict,
    "torch._utils _rebuild_tensor_v2": _Plan,
    "torch._utils _rebuild_parameter": _parameter,
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}


def read_pickle(file: Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a pickle by name; raises CheckpointError for anything but a table of float tensors."""
    try:
        with open_file(file) as handle:
            plans = _planned(handle)
            _check(plans)
            handle.seek(0)
            held = torch.load(handle, map_location="cpu", weights_only=True)
        _compare(held, plans)
    except OSError as problem:
        raise CheckpointError(f"{file} cannot be read ({problem.strerror}); check its permissions") from problem
    except CheckpointError as problem:
        raise CheckpointError(f"{file} {problem}; {AGAIN}") from problem
    except Exception as problem:  # zipfile, pickle and torch answer damaged bytes with errors of many kinds
        reason = one_line(str(problem), 160) or type(problem).__name__
        raise CheckpointError(f"{file} cannot be read as a pickle of tensors ({reason}); {AGAIN}") from problem
    return {name: _lazy(value, file.name) for name, value in held.items()}


def _lazy(value: Tensor, where: str) -> LazyTensor:
    return computed(tuple(value.shape), where, lambda: value.detach().to(torch.float32, copy=True).contiguous())


def _planned(handle: BinaryIO) -> Any:
    """Returns what the pickle of an open file describes, tensors as `_Plan`, nothing of it executed."""
    entries = _entries(handle)
    (root,) = {found[1] for name in entries if (found := ENTRY.fullmatch(name)) and found[2] == "data.pkl"}
    entry = entries[f"{root}/data.pkl"]
    if entry.file_size > PICKLE_LIMIT:
        raise ValueError(f"its pickle has {entry.file_size:,} bytes, at most {PICKLE_LIMIT:,} are read")
    with zipfile.ZipFile(handle) as archive:
        data = archive.read(entry)
    _check_ops(data)
    return _Reader(data, {name.removeprefix(f"{root}/"): entry.file_size for name, entry in entries.items()}).load()


def _entries(handle: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries of a zip by name; ValueError for one that `torch.save` does not write."""
    status = os.fstat(handle.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    if status.st_size > FILE_LIMIT:
        raise ValueError(f"it has {status.st_size:,} bytes, at most {FILE_LIMIT:,} are read; store it as safetensors")
    _check_directory(handle, status.st_size)
    with zipfile.ZipFile(handle) as archive:
        found = archive.infolist()
    entries = {entry.filename: entry for entry in found}
    odd = next((entry for entry in found if not ENTRY.fullmatch(entry.filename)), None)
    if odd is not None or len({name.split("/")[0] for name in entries}) != 1 or len(entries) != len(found):
        raise ValueError(f"it holds {short(odd.filename) if odd else 'two pickles'}, which torch.save does not write")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in found):
        raise ValueError("it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in found) > status.st_size:
        raise ValueError(f"its entries claim more than the {status.st_size:,} bytes that it has")
    return entries


def _check_directory(handle: BinaryIO, size: int) -> None:
    """Raises ValueError unless the last bytes are the end of a zip, of one directory that lies right before it."""
    end = struct.Struct("<4s4H2IH")
    if size < end.size or not handle.read(4) == b"PK\x03\x04":
        raise ValueError("it is no zip; torch writes zips since 1.6")
    at = size - end.size
    mark, disk, other, here, count, length, start, comment = end.unpack(_bytes_at(handle, at, end.size))
    if mark != b"PK\x05\x06" or disk or other or comment or here != count:
        raise ValueError("it has no end of a zip; it is cut or damaged")
    far, locator = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
    if at >= far.size + locator.size:
        mark, _, place, _ = locator.unpack(_bytes_at(handle, at - locator.size, locator.size))
        if mark == b"PK\x06\x07":
            at -= locator.size + far.size
            mark, *_, far_here, far_count, far_length, far_start = far.unpack(_bytes_at(handle, at, far.size))
            told = (b"PK\x06\x06", at, here, count, length, start)
            if (mark, place, far_here, far_count, far_length, far_start) != told:
                raise ValueError("its two directories differ; it is damaged")
    if start + length != at or length > DIRECTORY_LIMIT or count > TENSOR_LIMIT + 100:
        raise ValueError(f"its directory lists {count:,} entries in {length:,} bytes at {start:,}; it is damaged")


def _bytes_at(handle: BinaryIO, at: int, count: int) -> bytes:
    handle.seek(at)
    return handle.read(count)


def _check_ops(data: bytes) -> None:
    """Raises ValueError for an opcode or a name that no table of tensors needs, and for a tuple that is used twice."""
    before, protocol = "", 0
    tuples: set[int] = set()
    for number, (op, argument, place) in enumerate(pickletools.genops(data)):
        if op.name not in OPS or number > MOST_OPS:
            newer = f" (its pickle_protocol is {protocol}; leave that to torch.save)" if protocol > USUAL else ""
            raise ValueError(f"opcode {op.name} at {place}, which tensors do not need{newer}")
        if op.name == "PROTO":
            protocol = int(argument or 0)
        if op.name == "GLOBAL" and argument not in NAMES:
            raise ValueError(f"it names {short(argument)}, which is no tensor")
        if op.name.endswith("BINPUT"):
            if not isinstance(argument, int) or argument > MOST_OPS:
                raise ValueError(f"it keeps a value as number {argument}")
            (tuples.add if before in TUPLES else tuples.discard)(argument)
        if op.name.endswith("BINGET") and argument in tuples:
            raise ValueError(f"it uses a tuple twice at {place}")
        if before == "BUILD" and op.name != "STOP":  # only a state_dict's own attributes, which come last
            why = "which tensors do not need; of a table within another save the inner one alone"
            raise ValueError(f"opcode BUILD before {place}, {why}")
        before = op.name


class _Reader(pickle.Unpickler):
    """Reads a pickle whose opcodes were checked: names become the inert ones of NAMES, storages their claims."""

    def __init__(self, data: bytes, sizes: dict[str, int]) -> None:
        # BUILD would set attributes of whatever lies on the stack; what it would set here plays no part.
        super().__init__(io.BytesIO(data[:-2] + POP_STOP if data.endswith(BUILD_STOP) else data))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of an allowed name."""
        return NAMES[f"{module} {name}"]

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str, int]:
        """Returns (dtype, key, bytes) of a storage whose bytes are in the file."""
        kind, dtype, key, _, count = pid
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or not isinstance(key, str)
            or type(count) is not int
        ):
            raise ValueError(f"storage {short(pid)}")
        claimed, size = count * dtype.itemsize, self.sizes.get(f"data/{key}")
        if claimed != size:
            raise ValueError(f"storage {short(key)} claims {short(claimed)} bytes, its entry has {size}")
        return dtype, key, claimed


def _check(plans: Any) -> None:
    """Raises CheckpointError unless these are tensors with names, each inside its storage."""
    odd = "one tensor alone" if isinstance(plans, _Plan) else f"a {type(plans).__name__}"
    if type(plans) in (dict, OrderedDict):
        odd = next((found for name, plan in plans.items() if (found := _odd(name, plan))), "")
    if odd:
        raise CheckpointError(f"holds something else than a table of names and float tensors: {odd}")
    if len(plans) > TENSOR_LIMIT:
        raise CheckpointError(f"holds {len(plans):,} tensors, at most {TENSOR_LIMIT:,} are read")
    for name, plan in plans.items():
        numbers = (plan.offset, *plan.size, *plan.stride)
        if len(plan.size) != len(plan.stride) or not all(type(number) is int and number >= 0 for number in numbers):
            raise CheckpointError(f"places tensor {short(name)} at {short(numbers)}")
        elements = plan.storage[2] // plan.storage[0].itemsize
        last = plan.offset + sum((side - 1) * step for side, step in zip(plan.size, plan.stride, strict=True))
        if math.prod(plan.size) > elements or (math.prod(plan.size) and last >= elements):
            spread = " (it was expanded: save TENSOR.contiguous())" if 0 in plan.stride else ""
            raise CheckpointError(
                f"holds tensor {short(name)} of {short(plan.size)} in a storage of {elements} values{spread}"
            )


def _odd(name: Any, plan: Any) -> str:
    """Says why an entry is no float tensor under a name, and what to do about it; nothing where it is one."""
    if isinstance(plan, dict):
        return f"{short(name)} is a table of its own; save that one alone"
    if not is_name(name) or not isinstance(plan, _Plan):
        return f"{short(name)} is no tensor under a name"
    if plan.storage[0] in FLOATS.values() or name.endswith(COUNTER):
        return ""
    return f"{short(name)} holds {str(plan.storage[0]).removeprefix('torch.')}; leave it out"


def _compare(held: Any, plans: dict[str, _Plan]) -> None:
    """Raises CheckpointError unless torch has read what was planned: dense float tensors in memory."""
    if held.keys() != plans.keys() or not all(
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        and tuple(value.shape) == tuple(plans[name].size) and value.dtype == plans[name].storage[0]
        for name, value in held.items()
    ):  # fmt: skip
        raise CheckpointError("holds other tensors than it describes")
