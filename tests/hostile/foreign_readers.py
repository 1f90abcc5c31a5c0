"""Six readers of files that name other files, each over a small folder of its own that it reads whole when untouched.

A reader's `read` returns only where it has accepted everything: `name` is what its file names in the place of
`target`, the plain file in the folder that it names otherwise. Whatever `name` may lead to holds the very bytes of the
target, so that nothing but the path rule refuses it. `canary` lies outside of the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from export.onnx.graph import IR_VERSION, OPSET
from fastvlm.hashes import file_hash
from fastvlm.manifest import check_files, dump, read_manifest
from fastvlm_ref.checkpoint.folder import INDEX, open_folder
from validation.bundle_host.host import Host
from validation.mil.dtypes import BY_NAME
from validation.mil.package import open_folder as open_package
from validation.mil.schema import model_message
from validation.ort.loading import load_here
from validation.ort.opening import OnnxFile, open_file
from validation.ort.providers import CPU
from validation.ort.settings import Settings

TINY = Path(__file__).resolve().parents[2] / "fastvlm_ref" / "tiny"
FLOAT = np.float32([1, 2, 3, 4])


@dataclass(frozen=True)
class Reader:
    """One reader: its folder, the target in it, from which folder names count, and how it reads.

    between: a place where something may happen between the check of the target and its use, for a library that opens
    files by itself; None where all that is read is read from what was checked.
    """

    title: str
    folder: Path
    target: str
    below: str
    read: Callable[[str], object]
    between: Callable[[Callable[[], None]], object] | None = None

    @property
    def canary(self) -> Path:
        """A file outside of the folder, with the target's bytes."""
        return self.folder.parent / f"canary{Path(self.target).suffix}"

    @property
    def named(self) -> str:
        """The target as the file names it."""
        return self.target.removeprefix(self.below)


def readers(place: Path) -> list[Reader]:
    """Returns all of them, each with a folder and a canary below `place`."""
    made = [make(place / make.__name__.strip("_") / "inside") for make in MAKERS]
    for reader in made:
        shutil.copyfile(reader.folder / reader.target, reader.canary)
        reader.read(reader.named)  # untouched, it is read
    return made


def _build(folder: Path) -> Reader:
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.bin").write_bytes(bytes(range(256)))
    sum_ = file_hash(folder / "a" / "b.bin")
    fields: dict[str, Any] = {
        key: {} for key in ("source", "model", "image", "prompt", "functions", "packages", "compression")
    }
    head = {"schema": "0.3", "fastvlm_version": "1", "licence": "unknown", **fields}

    def read(name: str) -> object:
        (folder / "manifest.json").write_bytes(dump({**head, "files": {"a/b.bin": sum_, name: sum_}}))
        manifest = read_manifest(folder)
        return check_files(folder, manifest)

    return Reader("build manifest", folder, "a/b.bin", "", read)


def _index(folder: Path) -> Reader:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "one.safetensors").write_bytes(save({"w": FLOAT}))

    def read(name: str) -> object:
        (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
        return open_folder(folder).tensors["w"].read()

    return Reader("shard index", folder, "one.safetensors", "", read)


def _package(folder: Path) -> Reader:
    _write_package(folder)

    def read(name: str) -> object:
        _name_model(folder, name)
        return open_package(folder)

    return Reader("package", folder, "Data/m/model.mlmodel", "Data/", read)


def _weights(folder: Path) -> Reader:
    _write_package(folder)
    _name_model(folder, "m/model.mlmodel")

    def read(name: str) -> object:
        return open_package(folder).read_blob(f"@model_path/{name}", 64, BY_NAME["fp32"], (4,))

    return Reader("package weights", folder, "Data/m/weights/weight.bin", "Data/m/", read)


def _write_package(folder: Path) -> None:
    """A package of an empty program and a weight file of one float32 blob, whose metadata lies at 64."""
    spec = model_message()
    spec.mlProgram.version = 1
    metadata = np.array([0xDEADBEEF, 2], "<u4").tobytes() + np.array([FLOAT.nbytes, 128], "<u8").tobytes()
    blob = np.array([1, 2], "<u4").tobytes() + bytes(56) + metadata.ljust(64, b"\0") + FLOAT.tobytes()
    (folder / "Data" / "m" / "weights").mkdir(parents=True)
    (folder / "Data" / "m" / "model.mlmodel").write_bytes(spec.SerializeToString())
    (folder / "Data" / "m" / "weights" / "weight.bin").write_bytes(blob)


def _name_model(folder: Path, name: str) -> None:
    items = {"rootModelIdentifier": "m", "itemInfoEntries": {"m": {"path": name}}}
    (folder / "Manifest.json").write_text(json.dumps(items))


def _data(folder: Path) -> Reader:
    folder.mkdir(parents=True)
    (folder / "m.data").write_bytes(FLOAT.tobytes())

    def opened(name: str) -> OnnxFile:
        (folder / "m.onnx").write_bytes(_model(name))
        return open_file(folder / "m.onnx")

    def between(act: Callable[[], None]) -> object:
        found = opened("m.data")
        act()
        return load_here(found, (CPU,), Settings())

    return Reader("ONNX data", folder, "m.data", "", lambda name: load_here(opened(name), (CPU,), Settings()), between)


def _model(location: str) -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(onnx.ModelProto.SerializeToString(model))


def _bundle(folder: Path) -> Reader:
    (folder / "tokenizer").mkdir(parents=True)
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    (folder / "embeddings.bin").write_bytes(bytes(8 * 4 * 2))
    turns = {"system": "", "system_turn": "", "before": "{prompt}", "after": ""}
    language = {"prefill_chunk_size": 64, "max_context_length": 512, "vocab_size": 8, "head_dim": 32}
    metadata: dict[str, Any] = {
        "bundle": {"schema": "0.1"}, "kind": "vlm", "profiles": [{"image_size": 256}],
        "prompt": {**turns, "bos_id": None, "stop_ids": [1], "controls": []},
        "language": {**language, "rope_theta": 10_000.0, "mask_value": -10_000.0, "chain": []},
        "embedding": {"file": "embeddings.bin", "dtype": "float16", "rows": 8, "width": 4},
    }  # fmt: skip

    def read(name: str) -> object:
        (folder / "metadata.json").write_text(json.dumps({**metadata, "files": {"tokenizer": name}}))
        return Host(folder)

    return Reader("bundle", folder, "tokenizer/tokenizer.json", "", read)


MAKERS = (_build, _index, _package, _weights, _data, _bundle)
