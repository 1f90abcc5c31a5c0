"""Which files of a folder are the checkpoint: config.json and the safetensors it belongs to.

Notable choices: a single `model.safetensors` wins over an index (as transformers reads it); names in an index must be
plain file names; a tensor in two shards, or one that the index places elsewhere, is an error, never a guess.
It does not know layouts; it only reads.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastvlm.errors import CheckpointError
from fastvlm.json_file import parse
from fastvlm.paths import check_entry, is_plain
from fastvlm.quoting import printable, spelled
from fastvlm_ref.checkpoint.tensors import LazyTensor, TensorFile
from fastvlm_ref.files import read_file, size_of

SUFFIX = ".safetensors"
VISIBLE_WEIGHTS = "[!.]*.safetensors"  # macOS leaves a `._NAME` beside each file on other file systems
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "mm_projector*.bin", "consolidated*.pth", "model*.pt")
JSON_LIMIT = 8 * 1024 * 1024  # bytes; an index of 7B has 0.1 MB (tokenizers have a limit of their own)
TEXT_LIMIT = 4 * 1024 * 1024  # bytes of a README, a licence or a chat template; the longest licences have 0.1 MB

LISTED = 20  # names in one message


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder: where it is, its config.json, its weight files and their tensors by stored name."""

    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...] = ()


def check_folder(path: Path) -> None:
    """Raises CheckpointError unless `path` is a folder that looks like a checkpoint."""
    if not os.path.exists(path):
        raise CheckpointError(f"no such folder: {path}; name a checkpoint folder, or `tiny` for the embedded one")
    if not os.path.isdir(path):
        raise CheckpointError(f"{path} is a file, expected a checkpoint folder; name the folder that holds config.json")
    check_entry(path, CheckpointError)
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        _no_checkpoint(path, "config.json")


def _no_checkpoint(path: Path, missing: str) -> NoReturn:
    """Raises the error for a folder without `missing`, naming what a trainer may have left inside instead."""
    numbered = [
        (int(found[1]), entry.name)
        for entry in path.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", entry.name))
    ]
    if numbered:
        name = max(numbered)[1]
        raise CheckpointError(
            f"{path} holds no {missing}, but found {name}/ inside it: pass that folder, {path / name}"
        )
    raise CheckpointError(f"{path} is not a checkpoint: found no {missing}; expected config.json and *.safetensors")


def read_text(path: Path) -> str:
    """Returns a text that people wrote, bytes that are no UTF-8 replaced; CheckpointError where it is too long."""
    check_text_size(path)
    text = read_file(path, TEXT_LIMIT).decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text_size(path: Path) -> None:
    """Raises CheckpointError for a file too large to be the text that its name promises."""
    size = size_of(path)
    if size > TEXT_LIMIT:
        raise CheckpointError(
            f"{path} has {size:,} bytes, a text of this name at most {TEXT_LIMIT:,}; remove it or give it another name"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises CheckpointError when it is anything else."""
    text = read_file(path, JSON_LIMIT)
    try:
        data = parse(text, once=True)
    except ValueError as problem:
        raise CheckpointError(f"{path} is not JSON ({str(problem)[:120]}); fetch it again") from problem
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def open_folder(path: Path) -> Folder:
    """Opens a checkpoint folder: checks it, parses config.json, maps every weight file.

    Raises CheckpointError for a folder that is no checkpoint and for any file in it that is damaged.
    """
    check_folder(path)
    config = read_json(path / "config.json")
    notes: list[str] = []
    index = path / INDEX
    if (path / "model.safetensors").is_file():
        files, placed = [path / "model.safetensors"], None
        if index.is_file():
            notes.append(
                f"{path.name} holds model.safetensors and {INDEX}; the single file is read, as transformers does"
            )
    elif index.is_file():
        files, placed = _shards(path, index)
    else:
        files, placed = _unindexed(path), None
    return Folder(path, config, tuple(files), _join(files, placed, index), tuple(notes))


def _unindexed(path: Path) -> list[Path]:
    files = sorted(entry for entry in path.glob(VISIBLE_WEIGHTS) if not entry.name.startswith("adapter_"))
    if files:
        return files
    pickles = sorted(entry.name for pattern in PICKLES for entry in path.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{path} holds its weights in {pickles[0]}, a pickle, which can run code and is not read; "
            "save it again with save_pretrained(folder, safe_serialization=True)"
        )
    _no_checkpoint(path, "*.safetensors")


def _shards(path: Path, index: Path) -> tuple[list[Path], dict[str, str]]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(value, str) for value in placed.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names; fetch it again")
    names = sorted(set(placed.values()))
    foreign = [spelled(name) for name in names if not is_plain(name) or "/" in name]
    if foreign:
        raise CheckpointError(f"{index} names files outside its folder: {_listed(foreign)}; expected plain file names")
    others = [name for name in names if not name.endswith(SUFFIX)]
    if others:
        raise CheckpointError(f"{index} names {_listed(others)}, expected files that end in {SUFFIX}; fetch it again")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} of {len(names)} shards: {_listed(missing)}; fetch them")
    return [path / name for name in names], placed


def _listed(names: list[str]) -> str:
    """The first few of names that a stranger has chosen."""
    return ", ".join(printable(name) for name in names[:LISTED]) + ", …" * (len(names) > LISTED)


def _join(files: list[Path], placed: dict[str, str] | None, index: Path) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        for name, tensor in TensorFile(file).tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in {tensors[name].where} and in {file.name}; expected it once"
                )
            if placed is not None and placed.get(name) != file.name:
                raise CheckpointError(
                    f"{file} holds {name!r}, which {index.name} places in {placed.get(name, 'no file')}"
                )
            tensors[name] = tensor
    absent = sorted(set(placed or ()) - set(tensors))
    if absent:
        raise CheckpointError(f"{index} lists {len(absent)} tensors that no shard holds: {', '.join(absent[:20])}")
    return tensors
