"""Where a loaded model came from: enough to name it, and to prove later that the same files were used.

Hashes are worked out when asked for: hashing 15 GB takes longer than many a use of the model.
A checkpoint is called by its folder's name, which says nothing about its content: what identifies a model is
`weight_hashes`. The one name with a meaning is "tiny", the embedded checkpoint; no folder goes by it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.hashes import FileHash, hash_files
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.folder import check_text_size
from fastvlm_ref.files import open_file, size_of

EMBEDDED = "tiny"
PROMPTS = "prompts.json"  # ready-made prompts of the checkpoint's own (`fastvlm_ref.ready_prompts`)
TEXT_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja", "model.safetensors.index.json",
    "adapter_config.json", PROMPTS, "README.md",
)  # fmt: skip
LICENCE = re.compile(r"(licen[cs]e|copying|notice)([._-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """The checkpoint behind a model: id (folder or Hub name), revision where known, layout, folder and files read.

    `base` is the checkpoint that a LoRA was merged into.
    """

    id: str
    revision: str | None
    layout: str  # llava | hf | mlx, with "+lora" for a merged adapter
    folder: Path
    names: tuple[str, ...]  # files read, relative to `folder`
    base: Source | None = None
    options: tuple[tuple[str, str], ...] = ()  # what `load_checkpoint` was told in place of what the folder states

    @property
    def paths(self) -> dict[str, Path]:
        """Every file read, by the name that reports give it; those of a LoRA's base are under `base/`."""
        found = {name: self.folder / name for name in self.names}
        if self.base is not None:
            found |= {f"base/{name}": path for name, path in self.base.paths.items()}
        return found

    @property
    def named(self) -> dict[str, Any]:
        """The names of the checkpoint for a manifest: id, revision and layout, those of a LoRA's base under `base`."""
        base = {} if self.base is None else {"base": self.base.named}
        return {"id": self.id, "revision": self.revision, "layout": self.layout, **base}

    def files(self, progress: Progress = SILENT) -> dict[str, FileHash]:
        """Returns {file name: {"sha256", "bytes"}} of every file in `paths`, sorted."""
        return hash_files(self.paths, "Hashing the checkpoint", progress, open_file)


def is_licence(name: str) -> bool:
    """Tells whether a file's name is that of a licence text: LICENSE, LICENSE_MODEL, COPYING.txt, NOTICE, …"""
    return LICENCE.fullmatch(name) is not None


def licence_files(folder: Path) -> list[Path]:
    """Returns the licence texts of a checkpoint folder, by name: what must go along with anything made from it.

    Raises CheckpointError for a file too large to be one, and for a link, a pipe or a device in its place.
    """
    found = sorted(path for path in folder.iterdir() if is_licence(path.name) and not _is_folder(path))
    for path in found:
        check_text_size(path)
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def differing(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Returns the names whose values differ or that only one side has; README.md, licences and prompts.json left out.

    Values are whatever describes a file: its size, its hash. Those texts change nothing that a model computes.
    """
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name) and not is_prose(name.rpartition("/")[2])]


def is_prose(name: str) -> bool:
    """Tells whether a file is text for people, which changes nothing that a model computes."""
    return name in ("README.md", PROMPTS) or is_licence(name)


def weight_hashes(files: Mapping[str, FileHash]) -> dict[str, str]:
    """Returns, of `Source.files()`, {file name: sha256} of the weights alone: the same wherever a checkpoint lies."""
    plain = {name: name.rpartition("/")[2] for name in files}
    return {name: files[name]["sha256"] for name in files if not (plain[name] in TEXT_FILES or is_licence(plain[name]))}


def source_of(
    folder: Path, layout: str, weight_files: tuple[Path, ...], name: str | None, base: Source | None = None
) -> Source:
    """Returns the Source of an opened folder; a folder of the Hub's cache gives its repository and revision."""
    texts = [path.name for path in licence_files(folder)] + [
        name for name in TEXT_FILES if os.path.lexists(folder / name)
    ]
    names = sorted({path.name for path in weight_files}.union(texts))
    for text in texts:
        size_of(folder / text)  # a link or a pipe is told now, not when a build is ready for it
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/([0-9a-f]{7,40})/?$", folder.resolve().as_posix())
    if name is None and cached:
        return Source(_not_embedded(cached[1].replace("--", "/")), cached[2], layout, folder, tuple(names), base)
    return Source(name or _not_embedded(folder.resolve().name), None, layout, folder, tuple(names), base)


def _not_embedded(name: str) -> str:
    """A folder called `tiny` is named as one types it; without that, `validate` would compare with the embedded one."""
    return f"./{name}" if name == EMBEDDED else name
