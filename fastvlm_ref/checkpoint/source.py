"""Where a loaded model came from: enough to name it, and to prove later that the same files were used.

Hashes are worked out when asked for: hashing 15 GB takes longer than many a use of the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastvlm.hashes import FileHash, file_hash

TEXT_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja", "model.safetensors.index.json",
    "adapter_config.json", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSE_MODEL",
)  # fmt: skip


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

    def files(self) -> dict[str, FileHash]:
        """Returns {file name: {"sha256", "bytes"}} of every file read, sorted; those of a LoRA's base under `base/`."""
        found = {name: file_hash(self.folder / name) for name in self.names}
        if self.base is not None:
            found |= {f"base/{name}": value for name, value in self.base.files().items()}
        return dict(sorted(found.items()))


def source_of(
    folder: Path, layout: str, weight_files: tuple[Path, ...], name: str | None, base: Source | None = None
) -> Source:
    """Returns the Source of an opened folder; a folder of the Hub's cache gives its repository and revision."""
    names = sorted({path.name for path in weight_files} | {name for name in TEXT_FILES if (folder / name).is_file()})
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/([0-9a-f]{7,40})/?$", folder.resolve().as_posix())
    if name is None and cached:
        return Source(cached[1].replace("--", "/"), cached[2], layout, folder, tuple(names), base)
    return Source(name or folder.resolve().name, None, layout, folder, tuple(names), base)
