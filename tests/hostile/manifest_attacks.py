"""Builds whose manifest, or what it lists, one check must refuse, as `package_attacks` has packages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from package_attacks import Attack
from stand_in import stand_in, whole


def build(change: Callable[[dict[str, Any]], object]) -> Attack:
    """A build whose manifest says something else."""

    def attack(folder: Path) -> None:
        made = built(folder)
        manifest = json.loads((made / "manifest.json").read_text())
        change(manifest)
        (made / "manifest.json").write_text(json.dumps(manifest))
        whole(made)

    return attack


@cache
def _content() -> dict[str, bytes]:
    folder = Path(mkdtemp())
    stand_in(folder / "build", "any")
    found = {str(path.relative_to(folder / "build")): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    return found


def built(folder: Path) -> Path:
    """A whole build of the stand-in."""
    for name, data in _content().items():
        (folder / "build" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "build" / name).write_bytes(data)
    return folder / "build"


def changed(change: Callable[[Path], object]) -> Attack:
    """A build in which something lies otherwise."""

    def attack(folder: Path) -> None:
        made = built(folder)
        change(made)
        whole(made)

    return attack


def _moved(path: Path) -> None:
    os.rename(path, path.parents[1] / "kept")
    path.symlink_to(path.parents[1] / "kept")


def _other_bytes(made: Path) -> None:
    path = made / "embeddings.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def _elsewhere(manifest: dict[str, Any]) -> None:
    manifest["files"]["../other"] = {"sha256": "0" * 64, "bytes": 0}


def _rewritten(content: Callable[[bytes], bytes]) -> Attack:
    return changed(lambda made: (path := made / "manifest.json").write_bytes(content(path.read_bytes())))


MANIFESTS: dict[str, Attack] = {
    "no manifest": changed(lambda made: (made / "manifest.json").unlink()),
    "a bundle": changed(lambda made: [(made / "manifest.json").rename(made / "metadata.json"),
                                      (made / "checksums.json").touch()]),
    "a file for a build": lambda folder: ((folder / "file").touch(), whole(folder / "file")),
    "a manifest that is a link": changed(lambda made: _moved(made / "manifest.json")),
    "a manifest that is a folder": changed(lambda made: ((made / "manifest.json").unlink(),
                                                        (made / "manifest.json").mkdir())),
    "no JSON": _rewritten(lambda _: b"{"),
    "a list": _rewritten(lambda _: b"[]"),
    "NaN": _rewritten(lambda data: data.replace(b"{", b'{"x": NaN,', 1)),
    "beyond any number": _rewritten(lambda data: data.replace(b"{", b'{"x": 1e999,', 1)),
    "half a character": _rewritten(lambda data: data.replace(b"{", b'{"x": "\\ud800",', 1)),
    "nested without end": _rewritten(lambda data: data.replace(b"{", b'{"x": ' + b"[" * 400_000, 1)),
    "lists by the million": _rewritten(lambda data: data.replace(b"{", b'{"x": [' + b"[]," * 1_000_001 + b"0],", 1)),
    "values by the million": _rewritten(lambda data: data.replace(b"{", b'{"x": [' + b"1," * 2_000_001 + b"0],", 1)),
    "32 MB of blanks": _rewritten(lambda data: data + b" " * (33 << 20)),
    "no schema": build(lambda manifest: manifest.update(schema="new")),
    "a schema to come": build(lambda manifest: manifest.update(schema="9.0")),
    "a field that is missing": build(lambda manifest: manifest.pop("licence")),
    "a field of another type": build(lambda manifest: manifest.update(model=[])),
    "a size that is a text": build(lambda manifest: manifest["files"]["embeddings.bin"].update(bytes="20000")),
    "a hash that is a number": build(lambda manifest: manifest["files"]["embeddings.bin"].update(sha256=3)),
    "a path with ..": build(_elsewhere),
    "a file that is missing": changed(lambda made: (made / "embeddings.bin").unlink()),
    "a file that is longer": changed(lambda made: (made / "embeddings.bin").write_bytes(bytes(20_001))),
    "a file of other bytes": changed(_other_bytes),
    "a file that is a link": changed(lambda made: _moved(made / "embeddings.bin")),
    "a file that nobody listed": changed(lambda made: (made / "more").touch()),
}  # fmt: skip
