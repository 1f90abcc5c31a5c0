"""A bundle cut short and sealed again: the layout of a real one in a few kilobytes."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastvlm.hashes import hash_tree
from ios_bundle.layout import CHECKSUMS, METADATA
from ios_bundle.seal import seal_of, write_seal


def shrink(bundle: Path, place: Path, most: int = 3000) -> Path:
    """Copies a bundle with every file but metadata.json cut to `most` bytes, and seals the copy."""
    shutil.copytree(bundle, place)
    for path in place.rglob("*"):
        if path.is_file() and path.name != METADATA:
            with path.open("r+b") as handle:
                handle.truncate(min(most, path.stat().st_size))
    write_seal(place, seal_of(hash_tree(place, (CHECKSUMS,))))
    return place
