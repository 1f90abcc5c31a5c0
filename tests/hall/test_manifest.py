"""Manifests: the same bytes for the same content, and one named error per way in which a build can lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastvlm.errors import BuildError, FastVLMError
from fastvlm.hashes import hash_tree, list_tree, sha256_bytes
from fastvlm.manifest import SCHEMA, check_files, dump, is_build, read_manifest, significant, write_manifest

EMPTY: dict[str, Any] = {
    "fastvlm_version": "0.1.0", "source": {}, "model": {}, "image": {}, "prompt": {}, "functions": {}, "packages": {},
    "compression": {"scheme": "fp16"}, "licence": "unknown",
}  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "embeddings.bin").write_bytes(b"12345")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    write_manifest(folder / "manifest.json", {**EMPTY, "files": hash_tree(folder)})
    return folder


def edit(build: Path, **changes: Any) -> None:
    manifest = json.loads((build / "manifest.json").read_bytes())
    (build / "manifest.json").write_text(json.dumps(manifest | changes))


def test_round_trip(build: Path) -> None:
    manifest = read_manifest(build)
    assert manifest == read_manifest(build / "manifest.json")
    assert manifest["schema"] == SCHEMA
    assert manifest["files"]["embeddings.bin"] == {"bytes": 5, "sha256": sha256_bytes(b"12345")}
    assert is_build(build)
    check_files(build, manifest)


def test_bytes_are_canonical() -> None:
    assert dump({"b": 1, "a": {"é": 0.5}}) == '{\n "a": {\n  "é": 0.5\n },\n "b": 1\n}\n'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        dump({"a": float("nan")})


def test_three_significant_digits() -> None:
    assert [significant(value) for value in (0.0123456, 78.96, 1e-12, 0.0)] == [0.0123, 79.0, 1e-12, 0.0]


def test_unknown_keys_and_newer_minor_are_read(build: Path) -> None:
    edit(build, schema="0.99", novelty={"x": 1})
    assert read_manifest(build)["novelty"] == {"x": 1}


def test_newer_major_is_named(build: Path) -> None:
    edit(build, schema="2.3")
    with pytest.raises(BuildError, match=r"schema 2\.3.*reads up to 0\.x.*reads schema 2\.x"):
        read_manifest(build)


@pytest.mark.parametrize("schema", [1, None, "1", "x.y", "0.1.2", "-1.0", "9999999.0"])
def test_senseless_schema(build: Path, schema: object) -> None:
    edit(build, schema=schema)
    with pytest.raises(BuildError, match="schema"):
        read_manifest(build)


def test_all_missing_fields_are_listed(build: Path) -> None:
    edit(build, source=None, files=[])
    with pytest.raises(BuildError, match="source, files"):
        read_manifest(build)


@pytest.mark.parametrize("entry", [None, 3, {}, {"sha256": "", "bytes": "3"}, {"sha256": 1, "bytes": 3}])
def test_senseless_file_entries(build: Path, entry: object) -> None:
    edit(build, files={"x": entry})
    with pytest.raises(BuildError, match=r"lacks files\.x"):
        read_manifest(build)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '"x"', "\x00\xff"])
def test_no_json(build: Path, text: str) -> None:
    (build / "manifest.json").write_text(text)
    with pytest.raises(BuildError):
        read_manifest(build)
    assert not is_build(build)


def test_no_build(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="fastvlm export"):
        read_manifest(tmp_path)
    with pytest.raises(BuildError, match="nothing there"):
        read_manifest(tmp_path / "absent")


def test_every_damage_is_listed(build: Path) -> None:
    manifest = read_manifest(build)
    manifest["files"]["gone"] = {"bytes": 1, "sha256": ""}
    (build / "embeddings.bin").write_bytes(b"12346")
    (build / "tokenizer" / "tokenizer.json").write_text("{ }")
    (build / "tokenizer" / "extra").write_text("")
    with pytest.raises(BuildError) as caught:
        check_files(build, manifest)
    parts = ("gone: missing", "embeddings.bin: its bytes changed", "tokenizer.json: 3 bytes", "tokenizer/extra: not in")
    assert [part for part in parts if part not in str(caught.value)] == []


def test_what_validate_adds_is_no_damage(build: Path) -> None:
    (build / "validation.json").write_text("{}")
    (build / "selftest").mkdir()
    for name in ("picture.png", "photo.png", "features.bin", "selftest.json"):
        (build / "selftest" / name).write_bytes(b"")
    check_files(build, read_manifest(build))


def test_manifest_cannot_point_outside(build: Path) -> None:
    manifest = read_manifest(build)
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    with pytest.raises(BuildError, match="plain relative path"):
        check_files(build, manifest)


def test_hashing_is_told_in_bytes(build: Path, heard: Any) -> None:
    (build / "embeddings.bin").write_bytes(bytes(3_000_000))
    files = hash_tree(build, ("manifest.json",), "hashing", heard)
    size = sum(entry["bytes"] for entry in files.values())
    check_files(build, {"files": files}, heard)
    assert size > 3_000_000
    assert heard.stages == {"hashing": [size, size], "Checking the files": [size, size]}


def test_tree_reads_linked_files_and_refuses_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_text("x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to("../blobs/1")
    assert hash_tree(tmp_path / "snapshot") == {"config.json": {"bytes": 1, "sha256": sha256_bytes(b"x")}}
    (tmp_path / "snapshot" / "loop").symlink_to(".")
    with pytest.raises(FastVLMError, match="link to a folder"):
        list_tree(tmp_path / "snapshot")
