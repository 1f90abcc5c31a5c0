"""Is a bundle whole? Every file against the seal, and nothing else beside them.

It reads the bundle as an attacker or a bad copy may have left it: links are not followed, pipes are not opened, no file
is believed to be what its name says. It says nothing of numbers: `fastvlm verify --run` executes the bundle.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from fastvlm.errors import BundleError
from fastvlm.hashes import FileHash, sha256_file
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.paths import check_entry, is_plain, open_plain
from fastvlm.progress import SILENT, Advance, Progress
from fastvlm.quoting import spelled
from ios_bundle.layout import CHECKSUMS, COMPILED, METADATA, MODELS, PACKAGE, SELFTEST
from ios_bundle.metadata import read_metadata
from ios_bundle.seal import Seal, read_seal

SMALL = 1 << 20  # bytes: texts, not weights
FINDER = (".DS_Store", "__MACOSX", "._")


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the bundle's name and tree hash where they could be read, and every problem."""

    folder: Path
    name: str | None
    seal: Seal | None
    validated: bool
    compiled: tuple[str, ...]  # models that were compiled on a Mac, which no hash covers
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """True when every sealed file is there, bit for bit, and nothing else."""
        return not self.problems

    @property
    def has_selftest(self) -> bool:
        """Whether a self-test was sealed with it."""
        return self.seal is not None and f"{SELFTEST}/selftest.json" in self.seal.files

    def as_json(self) -> dict[str, object]:
        """The same as plain data."""
        return {
            "name": self.name, "whole": self.whole, "validated": self.validated,
            "tree": self.seal.tree if self.seal else None, "files": len(self.seal.files) if self.seal else None,
            "bytes": self.seal.bytes if self.seal else None, "compiled": list(self.compiled),
            "problems": list(self.problems),
        }  # fmt: skip


def verify(
    bundle: str | Path, *, tree: str | None = None, compiled: bool = False, progress: Progress = SILENT
) -> Verification:
    """Compares every file of a bundle with its seal.

    `tree` is the tree hash that the bundle should have, or its first digits. `compiled` is for what
    `scripts/compile_models.sh` made: each package may then be replaced by the model compiled of it, which no hash
    covers. Raises BundleError for a folder that is no bundle, or one of a newer schema.
    """
    folder = Path(bundle)
    check_entry(folder, BundleError)
    if not any((folder / name).is_file() for name in (METADATA, CHECKSUMS)):
        raise BundleError(_no_bundle(folder))
    seal, damage = read_seal(folder)
    if seal is None:
        return Verification(folder, None, None, False, (), (damage or "",))
    there, problems = _files(folder)
    models = _compiled(there, seal)
    problems += _problems(folder, seal, there, models if compiled else (), progress)
    if METADATA not in seal.files:
        problems.append(f"{METADATA}: was never sealed, and a bundle is nothing without it")
    if models and not compiled:
        problems.insert(0, f"{', '.join(models)}: compiled on a Mac; with --compiled everything else is checked")
    if tree is not None and not seal.tree.startswith(tree.lower()):
        problems.append(f"{CHECKSUMS}: tree hash {seal.tree}, expected {tree}: whole or not, it is another bundle")
    known = any(problem.startswith(f"{METADATA}:") for problem in problems)
    metadata = None if known else read_metadata(folder)
    name = metadata["name"] if metadata else None
    validated = metadata is not None and metadata["validation"].get("verdict") == "passed"
    return Verification(folder, name, seal, validated, models if compiled else (), tuple(problems))


def holds_bundle_alone(folder: Path) -> bool:
    """Whether `folder` is a bundle in which nobody has put anything: only then may it be replaced."""
    try:
        seal, _ = read_seal(folder)
    except BundleError:
        return False
    if seal is None:
        return False
    found, problems = _files(folder)
    problems += [name for name in found & seal.files.keys() if _edited(folder / name, seal.files[name])]
    others = [problem for problem in problems if not problem.partition(":")[0].endswith(FINDER[0])]
    return not others and found <= seal.files.keys() | {CHECKSUMS}


def _files(folder: Path) -> tuple[set[str], list[str]]:
    """The plain files below `folder` by their relative paths, and what else there is that should not be."""
    found: set[str] = set()
    problems: list[str] = []
    waiting = [""]
    while waiting:
        base = waiting.pop()
        try:
            entries = sorted(os.scandir(folder / base), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(f"{_shown(base or '.')}: cannot be listed ({error.strerror})")
            continue
        if base and not entries:
            problems.append(f"{_shown(base)}: an empty folder, which no bundle has")
        for entry in entries:
            path = f"{base}/{entry.name}" if base else entry.name
            problem, is_folder = _oddity(entry, path)
            if problem:
                problems.append(problem)
            elif is_folder:
                waiting.append(path)
            else:
                found.add(path)
    return found, sorted(problems)


def _oddity(entry: os.DirEntry[str], path: str) -> tuple[str | None, bool]:
    """What is wrong with an entry before its content is looked at, or None; and whether it is a folder."""
    if entry.name.startswith(FINDER):
        return f"{_shown(path)}: macOS put it there; delete it", False
    if entry.name.startswith(".") or not is_plain(path):  # nor does any go so deep
        return f"{_shown(path)}: hidden, or a name that no bundle has", False
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except OSError as error:
        return f"{_shown(path)}: cannot be looked at ({error.strerror})", False
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None, stat.S_ISDIR(mode)
    return f"{path}: {'a link' if stat.S_ISLNK(mode) else 'neither file nor folder'}, expected plain files alone", False


def _problems(folder: Path, seal: Seal, found: set[str], compiled: tuple[str, ...], progress: Progress) -> list[str]:
    replaced = tuple(f"{model.removesuffix(COMPILED)}{PACKAGE}/" for model in compiled)
    kept = {name: entry for name, entry in seal.files.items() if not name.startswith(replaced)}
    with progress.stage("Checking the files", sum(entry["bytes"] for entry in kept.values())) as advance:
        problems = [
            f"{name}: {problem}"
            for name, entry in kept.items()
            if (problem := _difference(folder / name, name in found, entry["bytes"], entry["sha256"], advance))
        ]
    made = tuple(f"{model}/" for model in compiled)
    foreign = (name for name in sorted(found - kept.keys() - {CHECKSUMS}) if not name.startswith(made))
    return problems + [f"{_shown(name)}: not in {CHECKSUMS}" for name in foreign]


def _difference(path: Path, there: bool, size: int, digest: str, advance: Advance) -> str | None:
    if not there:
        return "missing"
    try:
        if (actual := path.stat().st_size) != size:
            return f"{actual:,} bytes, expected {size:,}"
        return None if sha256_file(path, advance, open_plain) == digest else "its bytes changed (sha256 differs)"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"


def _compiled(found: set[str], seal: Seal) -> tuple[str, ...]:
    """The models, `models/STEM.mlmodelc`, that stand in place of a package: all of it is gone, and they are whole."""
    packages = {"/".join(name.split("/")[:2]) for name in seal.files if name.startswith(f"{MODELS}/")}
    models = ((package, package.removesuffix(PACKAGE) + COMPILED) for package in sorted(packages))
    return tuple(
        model
        for package, model in models
        if f"{model}/coremldata.bin" in found and not any(name.startswith(f"{package}/") for name in found)
    )


def _edited(path: Path, sealed: FileHash) -> bool:
    """Whether somebody has worked on a file, as far as a quick look tells: by size, and the content of small ones."""
    size = path.stat().st_size
    return size != sealed["bytes"] or (size < SMALL and sha256_file(path) != sealed["sha256"])


def _no_bundle(folder: Path) -> str:
    """What a folder is that is no bundle, and what to do."""
    made = "make one with `fastvlm bundle BUILD -o DIR`"
    if (folder / MANIFEST).is_file():
        return f"{folder} is a build folder and no bundle; {made.replace('BUILD', shlex.quote(str(folder)))}"
    found = f"neither {METADATA} nor {CHECKSUMS} in it" if folder.is_dir() else "no folder there"
    return f"{folder} is no bundle, found {found}; {made}"


def _shown(path: str) -> str:
    """Names of a stranger's choice, as many as lead into a compiled model."""
    return spelled(path, 300)
