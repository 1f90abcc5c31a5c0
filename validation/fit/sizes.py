"""What a target is: the numbers of one of the official sizes, of a checkpoint, or of a build with its own files.

The words that mean something: a size's name, `tiny`, a checkpoint folder, a Hub id that is in the cache, a build
folder. A path that exists is one; `./0.5b` is a folder where `0.5b` is a size.
It knows no chips and reads no weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.errors import UsageError
from fastvlm.manifest import NAME as MANIFEST
from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.synthetic.sizes import SIZES

if TYPE_CHECKING:
    from validation.fit.built import Built

EMBEDDED = "tiny"
HUB_IDS = {"0.5b": "apple/FastVLM-0.5B", "1.5b": "apple/FastVLM-1.5B", "7b": "apple/FastVLM-7B"}
ACCEPTED = f"{', '.join(SIZES)}, {EMBEDDED}, a checkpoint folder, a Hub id that is in the cache, or a build folder"


@dataclass(frozen=True)
class Sizes:
    """A target: what the user typed, of which kind it is, and its numbers.

    kind: "size" | "checkpoint" | "build". checkpoint: what `fastvlm export` takes for it, None where nobody released
    one. assumed: one sentence per thing that the target does not state. built: the files and ops of a build.
    """

    name: str
    kind: str
    vision: VisionConfig
    text: TextConfig
    checkpoint: str | None
    assumed: tuple[str, ...] = ()
    built: Built | None = None


def sizes_of(target: str | Path) -> Sizes:
    """Returns what `target` means.

    Raises UsageError for a word that means nothing, CheckpointError (HubError, ConfigError), BuildError or PackageError
    for a folder that cannot be read.
    """
    if isinstance(target, str) and target.casefold() in SIZES and not _is_path(target):
        return _official(target.casefold())
    if target == EMBEDDED:
        return _checkpoint(EMBEDDED)
    path = Path(target)
    try:
        there, folder = os.path.exists(path), os.path.isdir(path)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UsageError(f"{str(target)[:60]!r}: {error.strerror}; expected {ACCEPTED}") from error
    if folder:
        return _folder(target, path)
    if there:
        raise UsageError(f"{path} is a file, expected {ACCEPTED}; name the folder it lies in")
    return _word(str(target))


def _is_path(word: str) -> bool:
    return "/" in word or "\\" in word


def _official(name: str) -> Sizes:
    size = SIZES[name]
    assumed = () if name in HUB_IDS else (f"nobody released a FastVLM of {name}: the paper's, under the same tower",)
    return Sizes(name, "size", size.vision, size.text, HUB_IDS.get(name), assumed)


def _folder(target: str | Path, path: Path) -> Sizes:
    if (path / MANIFEST).is_file():
        from validation.fit.built import read_built

        return read_built(path)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return _checkpoint(target)
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        raise UsageError(f"{path} is one package, expected {ACCEPTED}; name the build folder that it lies in")
    raise UsageError(f"{path} is neither a checkpoint (no config.json) nor a build ({MANIFEST}); expected {ACCEPTED}")


def _word(word: str) -> Sizes:
    """What is no path here: an id of the Hub, or nothing."""
    if _is_path(word):
        return _checkpoint(word)
    raise UsageError(f"{word[:60]!r} is no size and no folder; expected {ACCEPTED}")


def _checkpoint(target: str | Path) -> Sizes:
    from validation.fit.checkpoint import read_sizes

    return read_sizes(target)
