"""A finished build, opened again where it lies, before it has a name: the disk is held to what the manifest says.

Every hash in a manifest was taken of a file as it was read back, so that hashing gigabytes once more would prove
nothing new: a file that was cut, lost or added since shows in names and sizes, and what the disk could not keep, its
sync has told. Only small files, the programs and whatever a reader parses, are hashed again, which takes milliseconds.
"""

from __future__ import annotations

from pathlib import Path

from fastvlm.build import FORMATS, read_build
from fastvlm.errors import FastVLMError, OutputError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import find_changes

SMALL = 4 << 20  # bytes; 7B's programs have 2 MB


def check_written(folder: Path) -> None:
    """Raises OutputError where a build's folder is not what its manifest says, or the manifest is none to run by."""
    try:
        manifest = read_build(folder, FORMATS).manifest
        changes = find_changes(folder, manifest)
        changes += [
            f"{name}: its bytes changed"
            for name, entry in manifest["files"].items()
            if entry["bytes"] <= SMALL and not changes and sha256_file(folder / name) != entry["sha256"]
        ]
    except (FastVLMError, OSError) as problem:
        changes = [str(problem)[:300]]
    if changes:
        raise OutputError(
            f"the finished build does not lie in {folder} as it was written ({'; '.join(changes[:5])}); check the "
            "disk, and that nothing else changes that folder, and type the same command again"
        )
