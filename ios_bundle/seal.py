"""checksums.json: the seal of a bundle, written last, and the reading of one.

It lists the SHA-256 and length of every other file, and closes with the tree hash: the SHA-256 of all that stands
before it, in canonical JSON. So no byte of a bundle, of the list or of its layout can change alone: a file no longer
fits its line, a line no longer fits the tree hash, and text that says the same in other bytes is not canonical.
Who can write every file can seal anew; therefore `verify` also takes the tree hash that one expects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import BundleError
from fastvlm.hashes import FileHash, list_tree, sha256_bytes
from fastvlm.json_file import parse, read_plain
from fastvlm.manifest import dump
from fastvlm.paths import is_plain
from ios_bundle.layout import CHECKSUMS, SCHEMA

MAX_BYTES = 4 << 20  # a bundle has dozens of files, each a line of 150 bytes
LARGEST = 1 << 53  # bytes of a file: what every reader of JSON holds exactly
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEMA = re.compile(r"(\d{1,6})\.\d{1,6}")


@dataclass(frozen=True)
class Seal:
    """What a bundle's files must be, path -> hash and bytes; `tree` identifies the whole bundle."""

    files: dict[str, FileHash]
    tree: str
    schema: str = SCHEMA

    @property
    def bytes(self) -> int:
        """All sealed files together."""
        return sum(entry["bytes"] for entry in self.files.values())


def seal_of(files: dict[str, FileHash]) -> Seal:
    """Returns the seal of these files."""
    return Seal(files, sha256_bytes(dump({"schema": SCHEMA, "files": files})))


def write_seal(bundle: Path, seal: Seal) -> None:
    """Writes checksums.json."""
    (bundle / CHECKSUMS).write_bytes(dump({"schema": seal.schema, "files": seal.files, "tree": seal.tree}))


def read_seal(bundle: Path) -> tuple[Seal | None, str | None]:
    """Returns the seal of a bundle, or None and why there is none that holds.

    Raises BundleError for a schema that this version does not read.
    """
    path = bundle / CHECKSUMS
    try:
        data = read_plain(path, MAX_BYTES)
        content = parse(data)
    except FileNotFoundError:
        return None, f"{CHECKSUMS}: missing"
    except OSError as problem:
        return None, f"{CHECKSUMS}: cannot be read ({problem.strerror})"
    except ValueError as problem:
        return None, f"{CHECKSUMS}: is no JSON that can be read ({str(problem)[:80]})"
    if b"\r\n" in data:
        return None, f"{CHECKSUMS}: line ends were changed, as git's core.autocrlf does; tell git `-text` for bundles"
    if isinstance(content, dict):
        check_schema(content.get("schema"), bundle / CHECKSUMS)
    if not _is_seal(content):
        return None, f"{CHECKSUMS}: holds something else than schema, files and tree"
    if not _holds(content, data):
        return None, f"{CHECKSUMS}: was changed, its tree hash does not fit what it lists"
    return Seal(content["files"], content["tree"], content["schema"]), None


def check_sealed(bundle: Path) -> None:
    """Raises BundleError where what lies in a folder has other names or sizes than its seal; no byte is hashed again.

    For the moment before a bundle gets its name: its hashes were taken of the files that lie there.
    """
    seal, problem = read_seal(bundle)
    expected = {name: entry["bytes"] for name, entry in seal.files.items()} if seal else {}
    found = {name: (bundle / name).lstat().st_size for name in list_tree(bundle, skip=(CHECKSUMS,))}
    wrong = [problem] if problem else sorted(name for name, _ in expected.items() ^ found.items())
    if wrong:
        raise BundleError(
            f"the finished bundle does not lie in {bundle} as it was written ({', '.join(wrong[:5])}); check the disk, "
            "and that nothing else changes that folder, and type the same command again"
        )


def check_schema(found: Any, where: Path) -> None:
    """Raises BundleError for a schema of a newer MAJOR; what is no schema at all is damage, for the caller to tell."""
    match = _SCHEMA.fullmatch(found) if isinstance(found, str) else None
    if match and int(match[1]) > int(SCHEMA.partition(".")[0]):
        raise BundleError(
            f"{where} has schema {found}, this fastvlm reads up to {SCHEMA.partition('.')[0]}.x; "
            f"install a fastvlm that reads schema {match[1]}.x"
        )


def _holds(content: dict[str, Any], data: bytes) -> bool:
    """Whether the text is canonical and its tree hash that of all the rest; keys that a later MINOR adds count too."""
    rest = {key: value for key, value in content.items() if key != "tree"}
    return dump(content) == data and sha256_bytes(dump(rest)) == content["tree"]


def _is_seal(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and content.keys() >= {"schema", "files", "tree"}
        and isinstance(content["schema"], str)
        and _SCHEMA.fullmatch(content["schema"]) is not None
        and isinstance(content["tree"], str)
        and isinstance(content["files"], dict)
        and all(is_plain(name) and _is_entry(entry) for name, entry in content["files"].items())
    )


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"sha256", "bytes"}
        and isinstance(entry["sha256"], str)
        and _DIGEST.fullmatch(entry["sha256"]) is not None
        and type(entry["bytes"]) is int
        and 0 <= entry["bytes"] < LARGEST
    )
