"""A validated build becomes a bundle: refused or made whole, never half.

What can be known without reading gigabytes is checked first: the build's parts, its names, the verdict, the size
against what an app may have, the free disk. Then everything is copied into a hidden folder beside the target, hashed
there, held to the manifest and the verdict, sealed, and takes its name.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastvlm.app_limits import APP_LIMIT
from fastvlm.build import Build, read_build
from fastvlm.errors import BuildError, OutputError
from fastvlm.hashes import FileHash
from fastvlm.licences import APPLE
from fastvlm.manifest import SELFTEST, dump, find_changes
from fastvlm.mlpackage import MANIFEST_FILE, MODEL_FILE, WEIGHT_FILE, canonical_manifest, leads_to_ours
from fastvlm.progress import SILENT, Progress, ignore
from fastvlm.publish import check_apart, check_output, staged_folder
from ios_bundle import layout
from ios_bundle.card import model_card, notice
from ios_bundle.contents import Entry, entries, made
from ios_bundle.copying import FILE_MODE, FOLDER_MODE, copy_entries, write_entry
from ios_bundle.host_files import generation_record
from ios_bundle.metadata import metadata_record
from ios_bundle.promises import check_promises
from ios_bundle.seal import Seal, check_sealed, seal_of, write_seal
from ios_bundle.standing import Standing, manifest_digest, standing_of
from ios_bundle.verification import holds_bundle_alone

PURPOSES = ("app", "server")
MARGIN = 16_000_000  # bytes for what is written beside the copies, and for the file system's own


def bundle(
    build: str | Path,
    output: str | Path,
    *,
    purpose: str = "app",
    unvalidated: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Makes an iOS bundle of a build folder at `output`, atomically, and returns its place.

    purpose: "app" refuses what is larger than an app may be, "server" does not. `unvalidated` also takes a build whose
    validation failed, never was, or speaks of other files; metadata.json then says so. Raises BuildError (incomplete,
    changed, not validated, links or odd files), OutputError (the place exists, is in the build, or has no room).
    """
    opened = read_build(build)
    opened.check_whole()
    check_promises(opened)
    check_apart(output, [opened.folder], kind="build")
    place = check_output(output, overwrite, holds_bundle_alone)
    standing = _check_names(opened, standing_of(opened))
    found = entries(opened)
    generation_record(opened)  # what it is made of is read here, before gigabytes are copied
    size = sum(entry.size(opened.folder) for entry in found)
    if not unvalidated and not standing.validated:
        raise _not_validated(opened, standing)
    _check_size(opened, size, purpose)
    _check_space(place, size)
    with staged_folder(
        output, overwrite, holds_bundle_alone, progress, needed=size + MARGIN, check=check_sealed
    ) as folder:
        folder.chmod(FOLDER_MODE)
        standing = _write(opened, folder, found, standing, unvalidated, progress)
    _tell(opened, found, standing, progress)
    return place


def _write(
    build: Build, folder: Path, found: list[Entry], standing: Standing, unvalidated: bool, progress: Progress
) -> Standing:
    """Writes the whole bundle; returns what it says of itself."""
    promised = {name: str(entry["sha256"]) for name, entry in build.manifest["files"].items()}
    promised |= {f"{SELFTEST}/{name}": digest for name, digest in standing.selftest.items()}
    files, changed = copy_entries(build.folder, folder, found, promised, progress)
    if not standing.validated:  # nothing was promised of a self-test
        changed = [source for source in changed if source in promised]
    if changed:
        standing = standing.because(f"changed since: {', '.join(changed[:10])}", changed=True)
        if not unvalidated:
            raise _not_validated(build, standing)
    _make_canonical(folder, files)
    copied = replace(build, tokenizer=folder / layout.TOKENIZER, prompts=folder / layout.PROMPTS)
    for entry in made(copied):
        files[entry.path] = write_entry(folder, folder, entry, ignore)
    seal = _describe(copied, folder, files, standing)
    write_seal(folder, seal)
    (folder / layout.CHECKSUMS).chmod(FILE_MODE)
    return standing


def _describe(build: Build, folder: Path, files: dict[str, FileHash], standing: Standing) -> Seal:
    """Writes what speaks of the other files, and returns the seal of all."""
    name = layout.bundle_name(build.source_id, build.image_sizes, *_unusual(build))
    for entry in (
        Entry(layout.NOTICE, data=notice(build).encode()),
        Entry(layout.CARD, data=model_card(build, name, files, standing).encode()),
    ):
        files[entry.path] = write_entry(build.folder, folder, entry, ignore)
    size = sum(entry["bytes"] for entry in files.values())
    tests = f"{layout.SELFTEST}/selftest.json" in files
    record = metadata_record(build, name, size, standing, manifest_digest(build), tests)
    entry = Entry(layout.METADATA, data=dump(record))
    files[entry.path] = write_entry(build.folder, folder, entry, ignore)
    return seal_of(dict(sorted(files.items())))


def _unusual(build: Build) -> list[str]:
    """What tells this bundle from the usual one of the same checkpoint: its compression, target and context."""
    scheme = str(build.manifest["compression"].get("scheme", "fp16"))
    words = [scheme] if scheme != "fp16" and scheme.isalnum() and scheme.isascii() else []
    return words + [build.target] * (build.target != "ane") + [f"c{build.context}"] * (build.context != 2048)


def _check_names(build: Build, standing: Standing) -> Standing:
    """Raises BuildError for files that are missing or foreign, or no plain files; other sizes count against it."""
    changes = find_changes(build.folder, build.manifest)
    fatal = [change for change in changes if change.endswith((": missing", ": not in the manifest"))]
    if fatal:
        raise BuildError(
            f"{build.folder} is not the build that its manifest lists: {'; '.join(fatal[:10])}; "
            "copy it again, take away what is not in the manifest, or export it again"
        )
    return standing.because(*changes, changed=True) if changes else standing


def _make_canonical(folder: Path, files: dict[str, FileHash]) -> None:
    """Lets every package's Manifest.json follow from its content, whatever tool has saved it since the export.

    Raises BuildError where it names another program or other weights than those that were copied.
    """
    packages = {name.removesuffix(f"/{MODEL_FILE}") for name in files if name.endswith(f"/{MODEL_FILE}")}
    for package in sorted(packages):
        if not leads_to_ours(folder / package / MANIFEST_FILE):
            raise BuildError(f"{package}: its {MANIFEST_FILE} names other items than its own; export the build again")
        hashes = [files[f"{package}/{name}"]["sha256"] for name in (MODEL_FILE, WEIGHT_FILE)]
        entry = Entry(f"{package}/{MANIFEST_FILE}", data=canonical_manifest(*hashes).encode())
        files[entry.path] = write_entry(folder, folder, entry, ignore)


def _check_size(build: Build, size: int, purpose: str) -> None:
    if purpose == "app" and size > APP_LIMIT:
        raise BuildError(
            f"{build.folder} makes a bundle of {size / 1e9:.2f} GB, and an app may have "
            f"{APP_LIMIT / 1e9:.0f} GB uncompressed; export it smaller (--quantize int8, lut4), or add "
            "--for server and let the app download it (Background Assets)"
        )


def _check_space(place: Path, size: int) -> None:
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    needed, free = size + MARGIN, shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"this bundle needs {needed / 1e9:.2f} GB in {there}, and {free / 1e9:.2f} GB are free; "
            "free some, or choose another disk with -o"
        )


def _not_validated(build: Build, standing: Standing) -> BuildError:
    return BuildError(
        f"{build.folder} is not a validated build: {'; '.join(standing.reasons[:10])}; {standing.cure}, or add "
        "--unvalidated, and the bundle will say that nothing was proven"
    )


def _tell(build: Build, found: list[Entry], standing: Standing, progress: Progress) -> None:
    """Notes what a developer must know before passing the bundle on."""
    licence: Any = build.manifest["licence"]
    if not any(entry.path.startswith(f"{layout.LICENSES}/") for entry in found):
        progress.note(
            f"the checkpoint's licence is {licence}, and its folder held no text of it; before you pass the bundle on, "
            "put the text into the checkpoint's folder and export again"
        )
    if licence == APPLE:
        progress.note(f"{APPLE}: for non-commercial research only, no product development; it binds this bundle too")
    if not standing.validated:
        progress.note(f"the bundle says of itself that it is unvalidated: {'; '.join(standing.reasons[:10])}")
