"""A conversion that this run of the tests has made already is not made again.

coremltools takes three quarters of the time of an export of a small model, and most exports of the tests give it the
same graphs: with stand-ins for weights, whatever the weights. Its part of a conversion, `export.convert.convert`, is
kept in a folder of the run, which the processes of pytest-xdist share, by a hash of all that it is given: the traced
graph without Python's names for its modules, every constant and parameter byte for byte, the contract, the passes.
A command in a process of its own converts as always; so does every graph that is changed by as much as one number.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from made_once import made_once

MANGLED = re.compile(r"___torch_mangle_\d+\.")  # how often a module was traced before
PROTO, PACKAGE = "proto", "package"

Convert = Callable[[Any, Any], tuple[Any, Path]]


def remembering(convert: Convert, folder: Path) -> Convert:
    """Returns `convert`, which looks into `folder` first and keeps there what it makes."""

    @functools.wraps(convert)
    def look_first(traced: Any, spec: Any) -> tuple[Any, Path]:
        from coremltools.proto import Model_pb2

        kept = made_once(folder / key(traced, spec), lambda place: _keep(*convert(traced, spec), place))
        proto = Model_pb2.Model()
        proto.ParseFromString((kept / PROTO).read_bytes())
        return proto, Path(shutil.copytree(kept / PACKAGE, tempfile.mkdtemp(), dirs_exist_ok=True))

    return look_first


def _keep(proto: Any, package: Path, place: Path) -> None:
    place.mkdir()
    (place / PROTO).write_bytes(proto.SerializeToString())
    shutil.move(package, place / PACKAGE)


def key(traced: Any, spec: Any) -> str:
    """Returns a hash of what decides on a conversion."""
    from export import convert

    graph = traced.inlined_graph
    found = hashlib.sha256(MANGLED.sub("", graph.str(False)).encode())
    found.update(repr((spec, convert.PASSES)).encode())
    for name, tensor in [*_constants(graph), *sorted(traced.state_dict().items())]:
        stored = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
        found.update(repr((name, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())).encode())
        found.update(stored.numpy().tobytes())
    return found.hexdigest()


def _constants(graph: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a graph, whose numbers its text leaves out."""
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            yield node.output().debugName(), node.t("value")
