"""What was shipped once stays readable: a bundle of each schema is kept, and a newer one is refused by its version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fastvlm.errors import BundleError
from fastvlm.hashes import hash_tree
from fastvlm.manifest import dump
from ios_bundle import verify
from ios_bundle.layout import CHECKSUMS, METADATA, SCHEMA
from ios_bundle.metadata import read_metadata
from ios_bundle.seal import Seal, seal_of, write_seal

BUNDLES = Path(__file__).resolve().parent.parent / "data" / "bundles"
# Written down when each was made, because a bundle that is made again would verify as well.
TREES = {"0.1": "ebb98fe4a332a28c7f1cc76f98489d6c25cc7d1054e84f8f4e5260e2717f2198"}


def resealed(bundle: Path, change: dict[str, object], schema: str = SCHEMA) -> Path:
    """A bundle whose own metadata says something else, sealed as its maker would have."""
    metadata = json.loads((bundle / METADATA).read_text("utf-8"))
    metadata["bundle"] |= change
    (bundle / METADATA).write_bytes(dump(metadata))
    seal = seal_of(hash_tree(bundle, (CHECKSUMS,)))
    if schema != SCHEMA:
        from fastvlm.hashes import sha256_bytes

        seal = Seal(seal.files, sha256_bytes(dump({"schema": schema, "files": seal.files})), schema)
    write_seal(bundle, seal)
    return bundle


def test_a_bundle_of_each_schema_is_kept() -> None:
    assert {path.name for path in BUNDLES.iterdir()} == TREES.keys()
    assert SCHEMA in TREES


@pytest.mark.parametrize("schema", TREES)
def test_what_was_shipped_stays_readable(schema: str) -> None:
    found = verify(BUNDLES / schema, tree=TREES[schema])
    assert found.whole, found.problems
    assert found.validated
    assert read_metadata(BUNDLES / schema)["bundle"]["schema"] == schema


@pytest.mark.parametrize("schema", TREES)
def test_what_was_shipped_still_answers(schema: str) -> None:
    from validation.bundle_selftest import run_selftest

    result = run_selftest(BUNDLES / schema)
    assert result.passed, result.checks


def test_unknown_keys_and_a_later_minor_are_read(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLES / "0.1", tmp_path / "copy"))
    found = verify(resealed(copy, {"schema": "0.99", "new": {"key": [1]}}, schema="0.99"))
    assert found.whole
    assert found.seal is not None
    assert found.seal.schema == "0.99"


@pytest.mark.parametrize("place", [METADATA, CHECKSUMS])
def test_a_newer_major_is_refused_by_its_version(place: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLES / "0.1", tmp_path / "copy"))
    if place == METADATA:
        resealed(copy, {"schema": "1.0"})
    else:
        resealed(copy, {}, schema="1.0")
    with pytest.raises(BundleError, match=r"schema 1\.0, this fastvlm reads up to 0\.x; install a fastvlm that reads"):
        verify(copy)
