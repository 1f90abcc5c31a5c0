"""manifest.json, the part of a build folder that says what the rest is and how to run it.

The schema is MAJOR.MINOR. Readers ignore keys they do not know, accept older schemas, and refuse a newer MAJOR
by naming it: that is what lets an old tool fail with a sentence instead of a wrong answer. The text is the same
bytes for the same content: sorted keys, indent 1, one newline at the end, no time, no path, no machine.
It knows nothing of packages or models beyond the names of the fields.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fastvlm.errors import BuildError, FastVLMError
from fastvlm.hashes import FileHash, list_tree, sha256_open
from fastvlm.json_file import read_json
from fastvlm.paths import check_entry, contained, open_contained
from fastvlm.progress import SILENT, Advance, Progress

# 0.2: functions.language is a list, one entry for each of packages.language
# 0.3: prompts names the file of ready-made prompts with their ids, tokenizer.bos_id begins every sequence, for
# names the app that an encoder alone was made for
SCHEMA = "0.3"
NAME = "manifest.json"

# What every reader may rely on; other fields (docs/architecture.md) depend on what was asked for (`--only encoder`).
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema": str,
    "fastvlm_version": str,
    "source": dict,
    "model": dict,
    "image": dict,
    "prompt": dict,
    "functions": dict,
    "packages": dict,
    "compression": dict,
    "licence": str,
    "files": dict,
}
_MAX_BYTES = 32 << 20
LARGEST_FILE = 1 << 60
# Written into a finished build by `validate` (and by macOS), therefore never in the manifest's own list.
SELFTEST, SELFTEST_FILES = "selftest", ("picture.png", "photo.png", "features.bin", "selftest.json")
_ADDED_LATER = ("validation.json", ".DS_Store", *(f"{SELFTEST}/{name}" for name in SELFTEST_FILES))
_UNFINISHED = re.compile(r"\.[^/]+\.(?:stage|older)-(?:[0-9a-f]{16}){1,2}(/.*)?")  # left by a killed `validate`


def significant(value: float, digits: int = 3) -> float:
    """A measured number rounded to `digits` significant digits, as everything stored is."""
    return float(f"{value:.{digits}g}")


def dump(content: dict[str, Any]) -> bytes:
    """The canonical bytes of a JSON document: sorted keys, indent 1, newline at the end; NaN is a ValueError."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def write_manifest(path: str | Path, manifest: dict[str, Any]) -> None:
    """Write `manifest` (stamped with this SCHEMA if it names none) to `path`; BuildError if a field is missing."""
    complete = {"schema": SCHEMA, **manifest}
    _check_fields(complete, Path(path))
    Path(path).write_bytes(dump(complete))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read the manifest of a build, given the build folder or the file itself.

    Raises BuildError: no such build, not JSON, a newer MAJOR schema, or required fields missing (all listed).
    """
    path = Path(path)
    file = path if path.name == NAME and os.path.isfile(path) else path / NAME
    check_entry(path)
    manifest = _load(file)
    _check_schema(manifest, file)
    _check_fields(manifest, file)
    return manifest


def is_onnx(build: str | Path) -> bool:
    """Returns whether a build folder holds ONNX files, as its manifest says; raises as `read_manifest`."""
    return read_manifest(build).get("format") == "onnx"


def is_older(manifest: dict[str, Any], schema: str) -> bool:
    """Whether a manifest that `read_manifest` returned is of an older schema than `schema`, MAJOR.MINOR."""
    found, asked = (tuple(map(int, text.split("."))) for text in (manifest["schema"], schema))
    return found < asked


def is_build(folder: Path) -> bool:
    """Whether `folder` holds a manifest that this tool, of any version, wrote."""
    try:
        manifest = _load(folder / NAME)
    except BuildError:
        return False
    return isinstance(manifest.get("fastvlm_version"), str) and isinstance(manifest.get("schema"), str)


def holds_build_alone(folder: Path) -> bool:
    """Whether `folder` is a build in which nobody has put anything: only then may it be replaced."""
    if not is_build(folder):
        return False
    try:
        return not _foreign(folder, _load(folder / NAME))
    except FastVLMError:  # a link to a folder: not this tool's work
        return False


def _foreign(root: Path, manifest: dict[str, Any]) -> list[str]:
    """Files below `root` that neither the manifest lists nor a later command writes."""
    listed = manifest.get("files")
    known = {NAME, *(listed if isinstance(listed, dict) else ())}
    found = (name for name in list_tree(root, skip=_ADDED_LATER) if name not in known)
    return [name for name in found if not name.endswith("/.DS_Store") and not _UNFINISHED.fullmatch(name)]


def find_changes(build: str | Path, manifest: dict[str, Any]) -> list[str]:
    """What differs from the manifest as far as sizes and names tell, which costs nothing: no byte is read.

    Raises BuildError for a path that leads out of the build.
    """
    root, files = Path(build), manifest["files"]
    problems = (_size_problem(contained(root, name), name, entry) for name, entry in files.items())
    return [problem for problem in problems if problem] + [
        f"{name}: not in the manifest" for name in _foreign(root, manifest)
    ]


def check_files(build: str | Path, manifest: dict[str, Any], progress: Progress = SILENT) -> None:
    """Compare every file of a build with its manifest; BuildError lists all that are missing, changed or foreign."""
    root, files = Path(build), manifest["files"]
    with progress.stage("Checking the files", sum(entry["bytes"] for entry in files.values())) as advance:
        problems = [problem for name, entry in files.items() if (problem := _problem(root, name, entry, advance))]
    problems += [f"{name}: not in the manifest" for name in _foreign(root, manifest)]
    if problems:
        raise BuildError(
            f"{root} is not the build its manifest describes ({len(problems)} of {len(manifest['files'])} files): "
            f"{'; '.join(problems[:20])}{' …' if len(problems) > 20 else ''}; copy it again, or export it again"
        )


def _problem(root: Path, name: str, entry: FileHash, advance: Advance) -> str | None:
    """What is wrong with one listed file, or None."""
    if problem := _size_problem(contained(root, name), name, entry):
        return problem
    try:
        with open_contained(root, name) as file:
            same = sha256_open(file, advance) == entry["sha256"]
    except FileNotFoundError:
        return f"{name}: missing"
    return None if same else f"{name}: its bytes changed (sha256 differs)"


def _size_problem(path: Path, name: str, entry: FileHash) -> str | None:
    if not path.is_file():
        return f"{name}: missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{name}: {size:,} bytes, expected {entry['bytes']:,}"
    return None


def _load(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file, _MAX_BYTES)
    except FileNotFoundError as missing:
        raise BuildError(_no_build(file.parent)) from missing
    except NotADirectoryError as problem:
        raise BuildError(f"{file.parent} is a file, expected a build folder; name the folder") from problem
    except OSError as problem:
        raise BuildError(f"{file} cannot be read ({problem.strerror}); check the path and its permissions") from problem
    except ValueError as problem:
        raise BuildError(f"{file} is not valid JSON ({str(problem)[:120]}); export the build again") from problem
    if not isinstance(content, dict):
        raise BuildError(f"{file} holds a JSON {type(content).__name__}, expected an object; export the build again")
    return content


def _no_build(folder: Path) -> str:
    """What a folder is that is no build, and what to do."""
    if all(os.path.isfile(folder / name) for name in ("metadata.json", "checksums.json")):
        return f"{folder} is an iOS bundle and no build folder; `fastvlm verify` and `fastvlm run` take one"
    found = f"a folder without {NAME}" if os.path.isdir(folder) else "nothing there"
    return f"{folder} is not a build folder: found {found}; make one with `fastvlm export CHECKPOINT -o BUILD`"


def _check_schema(manifest: dict[str, Any], file: Path) -> None:
    found = manifest.get("schema")
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", found) if isinstance(found, str) else None
    if match is None:
        raise BuildError(f"{file} has schema {found!r}, expected MAJOR.MINOR such as {SCHEMA!r}; export again")
    if int(match[1]) > int(SCHEMA.split(".")[0]):
        raise BuildError(
            f"{file} has schema {found}, this fastvlm reads up to {SCHEMA.split('.')[0]}.x; "
            f"install a fastvlm that reads schema {match[1]}.x"
        )


def _check_fields(manifest: dict[str, Any], file: Path) -> None:
    wrong = [name for name, kind in _REQUIRED.items() if not isinstance(manifest.get(name), kind)]
    if "files" not in wrong:
        wrong += [f"files.{name}" for name, entry in manifest["files"].items() if not is_file_hash(entry)]
    if wrong:
        names = ", ".join(wrong[:20]) + (" …" if len(wrong) > 20 else "")
        raise BuildError(f"{file} lacks {names} (missing or of the wrong type); export the build again")


def is_file_hash(entry: Any) -> bool:
    """Whether an entry says of a file its `sha256` and its `bytes`, as many as a disk may hold."""
    size = entry.get("bytes") if isinstance(entry, dict) else None
    return type(size) is int and 0 <= size < LARGEST_FILE and isinstance(entry.get("sha256"), str)
