"""What the tests of fine-tuning share: two rows of data, and the command."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from PIL import Image

from fastvlm.cli import cli


def write_rows(folder: Path) -> Path:
    """Writes rows.jsonl: one row about one picture of each of two colours."""
    for colour in ("red", "blue"):
        Image.new("RGB", (120, 80), colour).save(folder / f"{colour}.png")
    lines = [{"image": f"{colour}.png", "prompt": "What is it?", "answer": colour} for colour in ("red", "blue")]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return file


def train(*arguments: str | int | Path) -> Result:
    """Runs `fastvlm train`."""
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])
