"""From a path to tensors under our names: the folder opened, an adapter merged into its base, branches fused.

What comes out is independent of the layout; what is wrong with single tensors is gathered, not raised, so that
`load.py` can list all of it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.folder import Folder, check_folder, open_folder, read_json
from fastvlm_ref.checkpoint.fuse import Fused, fuse
from fastvlm_ref.checkpoint.hub import on_disk
from fastvlm_ref.checkpoint.layouts import layout_of, renamed
from fastvlm_ref.checkpoint.lora import is_adapter, merged, needs_base, open_adapter
from fastvlm_ref.checkpoint.source import EMBEDDED, Source, source_of

TINY = Path(__file__).resolve().parent.parent / "tiny"


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors can be read: fused, by our names, with the config and folders that describe it."""

    config: dict[str, Any]
    folders: tuple[Path, ...]  # where side files are looked for, in this order
    layout: str
    fused: Fused
    source: Source
    notes: tuple[str, ...]


def open_checkpoint(
    path: str | Path, base: str | Path | None, allow_pickle: bool, progress: Progress = SILENT
) -> Opened:
    """Opens a checkpoint folder, "tiny", a Hub id, or an adapter together with its `base`, either of these too.

    Raises CheckpointError for anything that is not a whole checkpoint, UsageError for a base where none is needed.
    """
    folder, name = _located(path, progress)
    check_folder(folder)
    if is_adapter(folder):
        if base is None:
            raise needs_base(folder)
        return _open_adapted(folder, *_located(base, progress), allow_pickle)
    if base is not None:
        raise UsageError(f"--base is for LoRA adapters, and {folder} holds a whole checkpoint; leave it out")
    opened = open_folder(folder)
    source = source_of(folder, layout_of(opened.tensors), opened.weight_files, name)
    return _opened(opened, source, opened.notes + _other_tiny(name))


def folder_of(path: str | Path) -> Path:
    """Returns the folder that a CHECKPOINT means: the embedded one's for "tiny", the cache's for a Hub id."""
    return _located(path, SILENT)[0]


def _located(path: str | Path, progress: Progress) -> tuple[Path, str | None]:
    """The word `tiny` is the embedded checkpoint; `./tiny`, or any Path, is a folder."""
    return (TINY, EMBEDDED) if path == EMBEDDED else (Path(on_disk(path, progress)), None)


def _other_tiny(name: str | None) -> tuple[str, ...]:
    """Tells whoever has a checkpoint of that name in the current folder that it was not the one read."""
    if name == EMBEDDED and (Path(EMBEDDED) / "config.json").is_file():
        return (f"{EMBEDDED} is the embedded checkpoint; the folder of that name here is ./{EMBEDDED}",)
    return ()


def _opened(folder: Folder, source: Source, notes: tuple[str, ...]) -> Opened:
    layout = layout_of(folder.tensors)
    return Opened(folder.config, (folder.path,), layout, fuse(renamed(folder.tensors)), source, notes)


def _open_adapted(folder: Path, base_path: Path, base_name: str | None, allow_pickle: bool) -> Opened:
    base = open_folder(base_path)
    adapter = open_adapter(folder, allow_pickle)
    layout = layout_of(base.tensors)
    tensors = merged(renamed(base.tensors), list(base.tensors), adapter)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else base.config
    base_source = source_of(base_path, layout, base.weight_files, base_name)
    source = source_of(folder, f"{layout}+lora", adapter.files, None, base_source)
    return Opened(config, (folder, base_path), layout, fuse(tensors), source, base.notes)
