"""The original of a build, which it is compared with: found, held to what the manifest says of its source, read.

Notable choices:
- sizes are compared before gigabytes are fetched or read, hashes once they are;
- it is read with what was asked for at the export, unless the user says otherwise;
- another checkpoint is refused, or with `other` let pass where its shape is that of the build, and named for it.
It does not compare numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.build import SOURCE_OPTIONS, Build
from fastvlm.errors import UsageError
from fastvlm.progress import Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.hub import fetch, hub_id, on_disk
from fastvlm_ref.checkpoint.load import read_config
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.checkpoint.source import differing
from fastvlm_ref.config import FastVLMConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import Tokenizer
from validation.other_reference import check_shape
from validation.verdict import ReferenceFiles


@dataclass(frozen=True)
class Source:
    """The reference before its weights are read: how the user named it, where it is, how it is read, what it is."""

    named: str | Path
    found: str | Path
    options: dict[str, Any]
    config: FastVLMConfig


def open_reference(
    build: Build, reference: str | Path | None, progress: Progress, options: dict[str, Any], other: bool
) -> Source:
    """Finds the checkpoint, to be read with what was asked for at the export, and compares file sizes.

    Raises UsageError where it is another one: unless `other` allows that, and then where its shape is another.
    """
    if reference is None:
        if build.source_id != "tiny":
            raise UsageError(f"this build was made from {build.source_id}; name it: --reference CHECKPOINT")
        reference = "tiny"
    told: dict[str, Any] = {**build.source_options, **options}
    found = _on_disk(build, reference, "", progress, other)
    if told.get("base") is not None:
        told["base"] = _on_disk(build, told["base"], "base/", progress, other)
    opened = open_checkpoint(found, told.get("base"), told.get("allow_pickle", False))
    sizes = {name: path.stat().st_size for name, path in opened.source.paths.items()}
    listed = {name: row.get("bytes") for name, row in build.source_files.items() if isinstance(row, dict)}
    # before gigabytes are read and hashed
    different = _check_same(build, reference, differing(sizes, listed), other)
    config = read_config(opened, **{name: told.get(name) for name in SOURCE_OPTIONS})
    if different:
        check_shape(build, config, reference)
    return Source(reference, found, told, config)


def load_reference(
    build: Build, source: Source, progress: Progress, other: bool, stream: bool
) -> tuple[FastVLM, Tokenizer, ReferenceFiles]:
    """Loads the checkpoint, `stream`: its decoder's weights when they are used; UsageError as above, by hashes."""
    model = load_checkpoint(source.found, progress=progress, stream=stream, **source.options)
    if model.source is None or model.tokenizer is None:
        raise UsageError(f"{source.named} has no source or no tokenizer")
    files = model.source.files(progress)
    different = _check_same(build, source.named, differing(files, build.source_files), other)
    if different:
        check_shape(build, model.config, source.named)
        progress.note(f"{source.named} is not what this build was made from: whatever the limits say, it cannot pass")
    recorded = files if different else build.source_files
    return model, model.tokenizer, ReferenceFiles({name: row["sha256"] for name, row in recorded.items()}, different)


def _on_disk(build: Build, reference: str | Path, part: str, progress: Progress, other: bool) -> str | Path:
    """Fetches a Hub id, `part` "base/" for a LoRA's base; UsageError before that where its files have other sizes.

    An id without a revision means the commit that the manifest records: a branch may have moved on since.
    """
    listed = {
        name.removeprefix(part): row.get("bytes")
        for name, row in build.source_files.items()
        if isinstance(row, dict) and name.startswith(part) and (part or not name.startswith("base/"))
    }

    def accept(sizes: Mapping[str, int]) -> None:
        _check_same(build, reference, differing({name: sizes.get(name) for name in listed}, listed), other)

    recorded = build.manifest["source"].get("base", {}) if part else build.manifest["source"]
    commit = recorded.get("revision") if isinstance(recorded, dict) and recorded.get("id") == reference else None
    pinned = hub_id(f"{reference}@{commit}") if commit and hub_id(reference) else None
    if pinned is None:
        return on_disk(reference, progress, accept)
    progress.note(f"{reference} is read at commit {commit}, which this build was made from")
    return fetch(pinned, progress, accept)


def _check_same(build: Build, reference: str | Path, different: list[str], other: bool) -> tuple[str, ...]:
    """Returns the names of files that differ from the build's source; UsageError unless `other` allows any."""
    if different and not other:
        raise UsageError(
            f"{reference} is not what this build was made from ({', '.join(different[:5])} differ); give the "
            f"checkpoint {build.source_id} it was exported from, export again, or compare all the same with "
            "--other-reference"
        )
    return tuple(different)
