"""Pickles that mean harm, as bytes: they run code, claim what is not there, or grow without bound when they are read.

`traps(marker)` are those that would leave a marker if anything of theirs ran; `lies()` only mislead. Each stands inside
the zip that `torch.save` writes, so that nothing but their content can give them away, some also bare.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GOOD = {"model.mm_projector.0.bias": torch.arange(4.0)}
PROTO = b"\x80\x02"


class Calls:
    """Pickles as a call of `function` with these arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def saved(value: Any, **options: Any) -> bytes:
    """Returns what `torch.save` writes."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def with_pickle(data: bytes, good: bytes | None = None) -> bytes:
    """Returns a zip as `torch.save` writes it, with this pickle in place of its own."""
    return rewritten(lambda name, old: data if name.endswith("/data.pkl") else old, good)


def rewritten(
    change: Callable[[str, bytes], bytes], good: bytes | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """Returns a saved file with its entries changed, stored by `method`."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good or saved(GOOD))) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def plain_pickle() -> bytes:
    """Returns data.pkl of a good file."""
    with zipfile.ZipFile(io.BytesIO(saved(GOOD))) as archive:
        return archive.read("archive/data.pkl")


def _quantised() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to give them up
        return saved({"a": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)})


def traps(marker: Path) -> dict[str, bytes]:
    """Returns files that leave `marker` when they run, by name."""
    touch = f"touch {marker}"
    calls = {
        "os.system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Calls(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "open": Calls(open, str(marker), "w"),
        "Path.touch": Calls(Path.touch, marker),
        "subprocess": Calls(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "torch.load": Calls(torch.load, "/etc/passwd"),
        "torch.hub": Calls(torch.hub.load, "owner/name", "evil"),
        "sys.path": Calls(sys.path.insert, 0, str(marker.parent)),
    }
    found: dict[str, bytes] = {}
    for name, call in calls.items():
        table: dict[str, Any] = {**GOOD, "model.mm_projector.2.bias": call}
        try:
            found[name] = with_pickle(pickle.dumps({"a": call}, 2))
            found[f"{name} beside a tensor"] = saved(table)
        except (pickle.PicklingError, AttributeError):  # a method that cannot be named is no way in
            continue
    system = b"cposix\nsystem\n"
    quoted = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    found |= {
        "bare": pickle.dumps({"a": Calls(os.system, touch)}, 2),
        "bare, protocol 0": pickle.dumps({"a": Calls(os.system, touch)}, 0),
        "bare, protocol 4": pickle.dumps({"a": Calls(os.system, touch)}, 4),
        "protocol 4 in a zip": with_pickle(pickle.dumps({"a": Calls(os.system, touch)}, 4)),
        "INST": with_pickle(b"(S'" + touch.encode() + b"'\niposix\nsystem\n."),
        "OBJ": with_pickle(b"(" + system + quoted + b"o."),
        "NEWOBJ": with_pickle(PROTO + system + quoted + b"\x85\x81."),
        "STACK_GLOBAL": with_pickle(b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + quoted + b"\x85R."),
        "EXT": with_pickle(PROTO + b"\x82\x01."),
        "behind the end": with_pickle(plain_pickle()[:-1] + system + quoted + b"\x85R0."),
        "BUILD of a class": with_pickle(PROTO + b"ctorch\nFloatStorage\n}(X\x01\0\0\0aK\x01ub" + plain_pickle()[2:]),
        "a legacy file": saved({"a": Calls(os.system, touch)}, _use_new_zipfile_serialization=False),
    }
    return found


def lies() -> dict[str, bytes]:
    """Returns files that would crash, hang or fill the machine of who believes them, by name."""
    laughs = b"]q\0" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(200))
    tuples = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(100))
    claim = plain_pickle().replace(b"K\x04tq", b"J\xff\xff\xff\x7ftq", 1)
    big = saved({"a": torch.zeros(8_000_000)})
    cut = saved(GOOD)
    script = io.BytesIO()
    with zipfile.ZipFile(script, "w") as archive:
        for name in ("archive/data.pkl", "archive/constants.pkl", "archive/code/__torch__.py"):
            archive.writestr(name, plain_pickle())
    return {
        "32 MB deflated to 40 kB": rewritten(lambda _, old: old, big, zipfile.ZIP_DEFLATED),
        "one entry deflated": rewritten(lambda _, old: old, None, zipfile.ZIP_BZIP2),
        "a billion laughs": with_pickle(PROTO + laughs + b"."),
        "tuples that take for ever to hash": with_pickle(PROTO + b"}(" + tuples + b"K\x01u."),
        "a storage that claims 8 GB": with_pickle(claim),
        "a text of 2 GB": with_pickle(PROTO + b"X\xff\xff\xff\x7fa."),
        "bytes of 8 EB": with_pickle(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."),
        "a number of 2 GB": with_pickle(PROTO + b"\x8b\xff\xff\xff\x7f."),
        "a place in the memo of 4 G": with_pickle(PROTO + b"}r\xff\xff\xff\xff."),
        "a place in the memo below 0": with_pickle(b"}p-1\n."),
        "marks by the million": with_pickle(PROTO + b"(" * 1_500_000 + b"t" * 500_000 + b"."),
        "a bytearray of 64 GB": with_pickle(PROTO + b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        "one value seen 2^38 times": saved({"a": torch.zeros(1).expand(2**38)}),
        "one value seen 2^30 times": saved({"a": torch.zeros(1).expand(2**30)}),
        "sparse": saved({"a": torch.zeros(3).to_sparse()}),
        "without memory": saved({"a": torch.zeros(3, device="meta")}),
        "quantised": _quantised(),
        "complex": saved({"a": torch.zeros(3, dtype=torch.complex64)}),
        "of eight bits": saved({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}),
        "a name that a terminal obeys": saved({"\x1b[2J\n": torch.zeros(3)}),
        "half a character for a name": saved({"\ud800": torch.zeros(3)}),
        "a number for a name": saved({3: torch.zeros(3)}),
        "a tensor and no table": saved(torch.zeros(3)),
        "tensors by the ten thousand": saved(dict.fromkeys(map(str, range(20_001)), torch.zeros(1))),
        "a programme of TorchScript": script.getvalue(),
        "a zip of zips": rewritten(lambda _, __: cut),
        "two ends": cut + cut[-22:],
        "a comment": cut[:-2] + b"\x05\0hello",
        "cut": cut[:-30],
        "cut in its data": cut[:700] + cut[-200:],
        "a head alone": b"PK\x03\x04",
        "an end alone": cut[-22:],
        "no byte": b"",
        "no pickle in it": with_pickle(b""),
        "no stop": with_pickle(plain_pickle()[:-1]),
        "a storage that is not there": cut.replace(b"archive/data/0", b"archive/data/1"),
        "text": b"not a pickle at all" * 100,
    }  # fmt: skip
