"""Small checkpoints as bytes, for suites that damage them by the thousand, and safetensors files put together by hand.

A whole one has 114 kB and loads in 50 ms, so a suite keeps its files in memory and writes a folder for each case.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import synthetic
from safetensors_bytes import with_header as with_header

from fastvlm_ref.config import FastVLMConfig, VisionConfig

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MICRO = FastVLMConfig(
    "llava_qwen2",
    VisionConfig(
        image_size=128, depths=(1, 1, 1, 1, 1), widths=(8, 8, 16, 32, 32), mlp_widths=(8, 16, 16, 32, 32), features=64,
        se_channels=4,
    ),
    replace(synthetic.TEXT, hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate_size=32),
)  # fmt: skip
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """Returns what a checkpoint needs of its folder's files, by name."""
    needed = (".safetensors", ".json", ".jinja")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith(needed)}


def micro_files(layout: str = "llava", dtype: str = "BF16", shards: int = 1) -> Files:
    """Returns the files of the smallest checkpoint, in one of its layouts."""
    tensors = synthetic.state(MICRO, dtype=dtype)
    named, config = {
        "llava": lambda: (synthetic.llava_names(tensors), synthetic.llava_config(MICRO)),
        "hf": lambda: (synthetic.hf_names(tensors, MICRO), synthetic.hf_config(MICRO, head_dim=16)),
        "mlx": lambda: (synthetic.mlx_names(tensors), synthetic.llava_config(MICRO)),
    }[layout]()
    with tempfile.TemporaryDirectory() as place:
        return files_of(synthetic.write(Path(place) / "it", named, config, shards))


@contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with these files, gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        for name, content in files.items():
            (place / name).write_bytes(content)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns the parsed header of a safetensors file, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]
